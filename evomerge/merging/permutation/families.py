"""Reads permutation specifications: the built-in ones of `families/`, and those of users, which have the same form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import quoted
from evomerge.files.nodes import Node
from evomerge.files.trees import load
from evomerge.merging.permutation.sequential import norm_of_groups, sequential
from evomerge.merging.permutation.specification import (
    MEND,
    AxisRule,
    GroupRule,
    Shapes,
    Specification,
    TensorRule,
    Term,
)
from evomerge.merging.permutation.symmetries import Symmetries

_FOLDER = Path(__file__).parent / "families"
_MEMBERS, _BLOCKS = "members of ", "blocks of "
_MOST_NAMES = 1_000
"""Names that the braces of one pattern may stand for."""
_KEYS = ("groups", "tensors", "untouched", "model_types", "requires", "prefixes", "like")


def symmetries_of(
    weights: Mapping[str, Any], config: Mapping[str, Any] | None = None, file: Path | None = None
) -> Symmetries:
    """The symmetries of a model in memory. Raises InputError as `specification_for` does.

    Args:
        weights: its tensors, by name: a state dict.
        config: config.json of a language model; without one it is a network of another kind.
        file: a specification of the user's.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return specification_for(shapes, config or {}, file).over(shapes, config or {})


def specification_for(
    shapes: Shapes, config: Mapping[str, Any], file: Path | None = None, where: Where | None = None
) -> Specification:
    """The specification of a checkpoint: that of a file, the built-in one of its model type, or, without a
    configuration, the first built-in one that fits, and else that of a chain of layers (`sequential`).

    Raises:
        InputError: there is none; the message says how to write one.
    """
    if file is not None:
        if not file.exists():
            mend = "check the path, or leave it out: the built-in specification is taken then"
            raise InputError(f"there is no specification {file}", mend, where)
        return read_specification(file)
    kind = config.get("model_type")
    if kind is not None:
        found = next((s for s in built_in() if s.takes(config)), None)
        if found is None:
            known = any(kind in s.model_types for s in built_in())
            what = "with this configuration " if known else ""
            raise InputError(
                f"no permutation specification is built in for {quoted(kind, 60)} {what}".strip(), MEND, where
            )
        return found
    if (norm := norm_of_groups(shapes)) is not None:
        problem = f"{norm} may be a norm of groups of channels, which keep their order"
        raise InputError(problem, MEND, where)
    for candidate in built_in():
        if not candidate.model_types and _fits(candidate, shapes):
            return candidate
    return sequential(shapes, where)


def _fits(candidate: Specification, shapes: Shapes) -> bool:
    try:
        candidate.over(shapes, {})
    except InputError:
        return False
    return True


@lru_cache(maxsize=1)
def built_in() -> tuple[Specification, ...]:
    """All built-in specifications, those that require something of the configuration first."""
    found = [read_specification(file) for file in sorted(_FOLDER.glob("*.yaml"))]
    return tuple(sorted(found, key=lambda s: not s.requires))


def read_specification(file: Path) -> Specification:
    """Reads a specification. InputError, with file, line and key, where something in it is wrong."""
    root = load(file)
    parts = root.mapping((), _KEYS, "groups: ..., tensors: ...")
    kinds = tuple(node.text() for node in parts["model_types"].sequence()) if "model_types" in parts else ()
    requires = parts["requires"].data if "requires" in parts and parts["requires"].mapping() else {}
    prefixes = [str(node.value or "") for node in parts["prefixes"].sequence()] if "prefixes" in parts else None
    groups = _groups(parts.get("groups"))
    like = _like(parts.get("like"), file)
    if like is not None:
        groups = {**like.groups, **groups}
        prefixes = prefixes if prefixes is not None else _prefixes_of(parts["like"])
    rules = _rules(parts, groups, prefixes or [""])
    if not groups or not (rules or like):
        root.fail("names no groups, or no tensors", "write groups: and tensors: (docs/align.md)")
    used = {term.declared for rule in rules for axis in rule.axes or () for term in axis.terms}
    unused = next((name for name in groups if name not in used and (like is None or name not in like.groups)), None)
    if unused is not None:
        parts["groups"].fail(f"no tensor follows the group {quoted(unused, 80)}", "name tensors of it, or remove it")
    return Specification(file.stem, kinds, requires, groups, (*rules, *(like.rules if like else ())))


def _like(node: Node | None, file: Path) -> Specification | None:
    """The built-in specification that another one adds to."""
    if node is None:
        return None
    names = [other.stem for other in _FOLDER.glob("*.yaml")]
    if node.text() not in names or node.text() == file.stem:
        node.fail(f"no built-in specification {node.shown()}", suggestion(node.text(), names))
    return read_specification(_FOLDER / f"{node.text()}.yaml")


def _prefixes_of(like: Node) -> list[str]:
    parts = load(_FOLDER / f"{like.text()}.yaml").mapping()
    if "prefixes" in parts:
        return [str(node.value or "") for node in parts["prefixes"].sequence()]
    return _prefixes_of(parts["like"]) if "like" in parts else [""]


def _groups(node: Node | None) -> dict[str, GroupRule]:
    if node is None:
        return {}
    groups = {}
    for name, rule in node.mapping().items():
        if rule.value is None:
            groups[name] = GroupRule()
            continue
        parts = rule.mapping((), ("units", "members"), "{units: num_key_value_heads, members: num_attention_heads}")
        groups[name] = GroupRule(*(_counts(parts[key]) if key in parts else None for key in ("units", "members")))
    return groups


def _counts(node: Node) -> tuple[int | str, ...]:
    nodes = node.sequence() if isinstance(node.value, list) else [node]
    return tuple(n.text() if isinstance(n.value, str) else n.integer(1) for n in nodes)


def _rules(parts: Mapping[str, Node], groups: Mapping[str, GroupRule], prefixes: Sequence[str]) -> list[TensorRule]:
    rules = []
    if "tensors" in parts:
        for name, node in parts["tensors"].mapping().items():
            axes = tuple(_axis(axis, groups) for axis in node.sequence())
            rules += [TensorRule(p, axes) for p in _patterns(name, prefixes, node)]
    if "untouched" in parts:
        for node in parts["untouched"].sequence():
            rules += [TensorRule(p, None) for p in _patterns(node.text(), prefixes, node)]
    return rules


def _axis(node: Node, groups: Mapping[str, GroupRule]) -> AxisRule:
    if node.value is None:
        return AxisRule()
    if isinstance(node.value, dict):
        inner = node.mapping(["each"], (), "{each: [members of heads, heads, heads]}")["each"]
        return AxisRule(tuple(_term(term, groups) for term in inner.sequence()), each=True)
    terms = node.sequence() if isinstance(node.value, list) else [node]
    return AxisRule(tuple(_term(term, groups) for term in terms))


def _term(node: Node, groups: Mapping[str, GroupRule]) -> Term:
    text = node.text()
    group = text.removeprefix(_MEMBERS).removeprefix(_BLOCKS).strip()
    declared = next((name for name in groups if name == group or re.fullmatch(_pattern(name), group)), None)
    if declared is None:
        node.fail(f"unknown group {quoted(group, 80)}", suggestion(group, groups))
    return Term(group, declared, text.startswith(_MEMBERS), text.startswith(_BLOCKS))


def _patterns(name: str, prefixes: Sequence[str], node: Node) -> list[re.Pattern[str]]:
    """The names that a pattern stands for: `{a,b}` is either, a star a number, and each prefix may stand before."""
    names = [name]
    while any("{" in n for n in names):
        names = [new for n in names for new in _opened(n, node)]
        if len(names) > _MOST_NAMES:
            node.fail("stands for too many names", "write several lines")
    return [re.compile(_pattern(prefix + n)) for n in names for prefix in prefixes]


def _opened(name: str, node: Node) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        if "{" in name:
            node.fail(f"{quoted(name, 80)} has a brace without its other one", "write {a,b}")
        return [name]
    return [name[: match.start()] + choice + name[match.end() :] for choice in match[1].split(",")]


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\*", r"(\d+)")
