"""Permutation specifications: which axes of which tensors follow which group of units, as data (docs/align.md).

A specification is laid over the tensors of a checkpoint: every one of them must be named, and the sizes must agree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.checkpoints.structure import is_counter, text_config
from evomerge.errors import InputError, Where
from evomerge.escape import quoted
from evomerge.merging.permutation.symmetries import AxisPart, Group, Symmetries

MEND = "write a specification (docs/align.md), and give it by --spec FILE.yaml"

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Term:
    """A part of an axis.

    group: that it follows.
    declared: the group's name as it is declared, with stars.
    members: it has an entry, or a block of them, for each member of each unit.
    blocks: it has a block of entries for each unit, though no configuration says how many units there are: a flattened
        image.
    """

    group: str
    declared: str
    members: bool = False
    blocks: bool = False


@dataclass(frozen=True)
class AxisRule:
    """Terms one after the other along an axis; with `each` they follow each other anew for every unit. Without terms
    the axis stays as it is."""

    terms: tuple[Term, ...] = ()
    each: bool = False


@dataclass(frozen=True)
class GroupRule:
    """How many units a group has, and members in all: numbers, or keys of the configuration, of which the first that is
    there counts. `units` None: as many as its shortest axis has entries."""

    units: tuple[int | str, ...] | None = None
    members: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class TensorRule:
    """The rules of the axes of the tensors that a pattern names; None: nothing of them moves."""

    pattern: re.Pattern[str]
    axes: tuple[AxisRule, ...] | None


@dataclass(frozen=True)
class Specification:
    """A specification as written.

    name: of the family, or of the file.
    model_types: the model types that it is for; none: plain state dicts.
    requires: what their configuration has to say.
    groups: by name; a star in a name stands for a number of the tensor's name.
    rules: in order; the first that fits a tensor's name counts.
    """

    name: str
    model_types: tuple[str, ...]
    requires: Mapping[str, Any]
    groups: Mapping[str, GroupRule]
    rules: tuple[TensorRule, ...]

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether it is for models of this configuration."""
        fits = all(config.get(key) == value for key, value in self.requires.items())
        return config.get("model_type") in self.model_types and fits

    def digest(self) -> str:
        """sha256 (hex) over what it says."""
        rules = [(rule.pattern.pattern, rule.axes) for rule in self.rules]
        return hashlib.sha256(repr((dict(self.groups), rules)).encode()).hexdigest()

    def over(self, shapes: Shapes, config: Mapping[str, Any], where: Where | None = None) -> Symmetries:
        """The symmetries of a checkpoint of these shapes. Counters of training steps need not be named.

        Raises:
            InputError: a tensor is not named, or has another number of axes; a size does not agree.
        """
        # 1. The rule of each axis, with the groups' names.
        axes: dict[str, list[AxisRule]] = {}
        for name, shape in shapes.items():
            if not shape and is_counter(name):
                continue
            rule, numbers = self._rule(name, where)
            if rule.axes is None:
                continue
            if len(rule.axes) != len(shape):
                problem = f"the specification {self.name} says {len(rule.axes)} axes of {name}, which has {len(shape)}"
                raise InputError(problem, MEND, where)
            axes[name] = [_numbered(axis, numbers) for axis in rule.axes]
        # 2. The size of each group.
        groups = self._sizes(axes, shapes, config, where)
        # 3. The places of the entries along each axis.
        placed: dict[str, tuple[tuple[AxisPart, ...], ...]] = {}
        for name, rules in axes.items():
            pairs = zip(rules, shapes[name], strict=True)
            placed[name] = tuple(self._axis_parts(name, axis, int(length), groups, where) for axis, length in pairs)
        return Symmetries(groups, placed)

    def _rule(self, name: str, where: Where | None) -> tuple[TensorRule, tuple[str, ...]]:
        for rule in self.rules:
            if match := rule.pattern.fullmatch(name):
                return rule, match.groups()
        raise InputError(f"the specification {self.name} says nothing of {name}", MEND, where)

    def _sizes(
        self, axes: Mapping[str, list[AxisRule]], shapes: Shapes, config: Mapping[str, Any], where: Where | None
    ) -> dict[str, Group]:
        lengths: dict[str, list[int]] = {}
        declared: dict[str, GroupRule] = {}
        for name, rules in axes.items():
            for axis, length in zip(rules, shapes[name], strict=True):
                for term in axis.terms:
                    lengths.setdefault(term.group, []).append(int(length) // len(axis.terms))
                    declared[term.group] = self.groups[term.declared]
        groups = {}
        for group, rule in sorted(declared.items()):
            units = min(lengths[group]) if rule.units is None else self._number(rule.units, config, where)
            members = units if rule.members is None else self._number(rule.members, config, where)
            if units < 1 or members < 1 or members % units:
                problem = f"{members} members of {group} cannot be dealt to {units} units"
                raise InputError(problem, "check the configuration", where)
            groups[group] = Group(units, members // units)
        return groups

    def _number(self, keys: tuple[int | str, ...], config: Mapping[str, Any], where: Where | None) -> int:
        text = text_config(config)
        for key in keys:
            value = text.get(key) if isinstance(key, str) else key
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if value is not None:
                raise InputError(
                    f"{key} in config.json is {quoted(str(value), 40)}, not a whole number", "correct it", where
                )
        problem = f"the specification {self.name} needs {' or '.join(map(str, keys))} of a config.json"
        raise InputError(problem, "write the number itself", where)

    def _axis_parts(
        self, name: str, rule: AxisRule, length: int, groups: Mapping[str, Group], where: Where | None
    ) -> tuple[AxisPart, ...]:
        """The places of an axis' entries. All of its terms have blocks of one size, which follows from its length."""
        if not rule.terms:
            return ()
        blocks = [groups[t.group].members if t.members else 1 for t in rule.terms]  # of each unit
        counts = [groups[t.group].units * n for t, n in zip(rule.terms, blocks, strict=True)]
        size, left = divmod(length, sum(counts))
        sized = all(t.blocks or self.groups[t.declared].units is not None for t in rule.terms)
        if left or size < 1 or (size > 1 and not sized):
            units = " and ".join(f"{n} of {t.group}" for t, n in zip(rule.terms, counts, strict=True))
            problem = f"the specification {self.name} does not fit: {name} has {length} entries for {units}"
            raise InputError(problem, MEND, where)
        return tuple(_placed(rule, blocks, counts, size))


def _placed(rule: AxisRule, blocks: Sequence[int], counts: Sequence[int], size: int) -> Iterator[AxisPart]:
    import numpy as np  # a tenth of a second

    start = 0
    for term, of_unit, count in zip(rule.terms, blocks, counts, strict=True):
        if rule.each:
            units = np.arange(count // of_unit)[:, None] * sum(blocks)
            first = (units + start + np.arange(of_unit)[None, :]).ravel() * size
            start += of_unit
        else:
            first = (start + np.arange(count)) * size
            start += count
        yield AxisPart(term.group, term.members, first[:, None] + np.arange(size)[None, :])


def _numbered(rule: AxisRule, numbers: Sequence[str]) -> AxisRule:
    """The rule with the numbers of a tensor's name in place of the stars in its groups' names."""

    def named(term: Term) -> Term:
        left = iter(numbers)
        return replace(term, group=re.sub(r"\*", lambda _: next(left, "*"), term.group))

    return AxisRule(tuple(map(named, rule.terms)), rule.each)
