"""Stacks the slices of a module: the models of each slice, and the output tensors in the order of the model.

The rules are mergekit 0.1.5's (`mergekit.plan`): the slices of a module stack to its layers; tensors before the stack
take the first slice's models and parameters, tensors after it the last slice's, both at depth t = 0; layer i of a slice
of L layers has depth i / (L - 1), a single layer depth 1. So an empty slice at an end chooses the tensors there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evomerge.checkpoints.structure import Place, Stack, is_head, text_config
from evomerge.errors import InputError, Where
from evomerge.merging.plan.jobs import Model
from evomerge.recipe.parameters import Levels
from evomerge.recipe.recipe import Document, Input, Module, Slice
from evomerge.registry import METHODS

Find = Callable[[str, Where | None], Model]


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a slice: the recipe's entry, the model, its first layer, its number of layers."""

    input: Input
    model: Model
    start: int
    layers: int


@dataclass(frozen=True, eq=False)
class Group:
    """The models that one slice merges.

    Attributes:
        members: all of them, in the recipe's order.
        base: the base among them where the method treats it otherwise than the others, else None.
        reference: the slice's base model, for any method.
        alone: whether its only model is taken as it is, whatever the method.
    """

    levels: Levels
    members: tuple[Member, ...]
    base: Model | None
    reference: Model | None
    alone: bool = False

    @property
    def merged(self) -> list[Member]:
        """The members that the method merges: all, or all but the base."""
        return [m for m in self.members if self.base is None or m.model.reference != self.base.reference]


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """One output tensor: its name, its name in each member of its group, and its depth in the slice."""

    group: Group
    name: str
    names: tuple[str, ...]
    t: float


class Stacking:
    """Stacks one module of a document. `name` None: the whole model. `mix_types`: see `plan`."""

    def __init__(
        self, document: Document, module: Module, name: str | None, donor: Model, find: Find, mix_types: bool = False
    ) -> None:
        self.document, self.name, self.donor, self._mix_types = document, name, donor, mix_types
        self._module, self._find = module, find
        self.method = METHODS[document.method]
        self.groups = [self._group(slice_) for slice_ in module.slices]
        self.lengths = [self._length(group) for group in self.groups]
        stack, layers = donor.stack(name), sum(self.lengths)
        self.stack = stack if layers == stack.layers else Stack(stack.prefix, layers)

    def outputs(self) -> Iterator[OutputTensor]:
        """All output tensors, in the order of the model."""
        first, last = self.groups[0], self.groups[-1]
        yield from (self._outside(first, name) for name in self._before())
        layer = 0
        for group, length in zip(self.groups, self.lengths, strict=True):
            for depth in range(length):
                yield from self._layer(group, depth, depth / (length - 1) if length > 1 else 1.0, layer)
                layer += 1
        yield from (self._outside(last, name) for name in self._after())

    def _stack(self, model: Model) -> Stack:
        """The stack of the module in a model."""
        return model.stack(self._module_in(model))

    def _places(self, model: Model) -> Mapping[Place, list[str]]:
        return model.places(self._module_in(model))

    def _module_in(self, model: Model) -> str | None:
        """What the module is in a model: the whole of a language model that is merged into the language part of one
        with more modules, and the language part of that one among language models."""
        single = len(model.modules.stacks) == 1
        if self.name is None:
            return None if single or len(self.donor.modules.stacks) > 1 else model.modules.main
        return None if single and self.name == self.donor.modules.main else self.name

    def _before(self) -> list[str]:
        return _union(self._places(m.model).get("before", []) for m in self.groups[0].members)

    def _after(self) -> list[str]:
        """A head that any model stores is an output of its own; models that tie theirs give their embeddings for it."""
        after = [self._following(m.model) for m in self.groups[-1].members]
        heads = [self._places(m.model).get("after", []) for m in self.groups[0].members]
        return _union([*after, *([n for n in names if is_head(n)] for names in heads)])

    def outside_of(self, model: Model) -> dict[str, str]:
        """A model's names of its tensors outside of its layers, by their names in the output."""
        before, after = (self._places(model).get(place, []) for place in ("before", "after"))
        return dict(zip([*before, *self._following(model)], [*before, *after], strict=True))

    def _following(self, model: Model) -> list[str]:
        """The names in the output of a model's tensors after its layers. A prediction layer behind its stack stands
        behind the output's stack, however many layers that has."""
        stack, names = self._stack(model), self._places(model).get("after", [])
        behind = {name: at for name in names if (at := stack.behind(name)) is not None}
        last = self.stack.layers
        return [self.stack.name(last + behind[n][0], behind[n][1]) if n in behind else n for n in names]

    def _outside(self, group: Group, name: str) -> OutputTensor:
        """An output tensor outside the layers, which has one name in all models, but for prediction layers."""
        names, behind = [name] * len(group.members), self.stack.behind(name)
        if behind is not None:
            stacks = [self._stack(m.model) for m in group.members]
            names = [stack.name(stack.layers + behind[0], behind[1]) for stack in stacks]
        return OutputTensor(group, name, tuple(names), 0.0)

    def _layer(self, group: Group, depth: int, t: float, layer: int) -> Iterator[OutputTensor]:
        for part in _union(self._places(m.model).get(m.start + depth, []) for m in group.members):
            names = tuple(self._stack(m.model).name(m.start + depth, part) for m in group.members)
            yield OutputTensor(group, self.stack.name(layer, part), names, t)

    def _group(self, slice_: Slice) -> Group:
        members = [self._member(source) for source in slice_.inputs]
        reference = self._base(slice_)
        if self._is_alone(slice_, members, reference):
            return Group(Levels(self.document, slice_, self._module), tuple(members), None, reference, alone=True)
        if reference is not None:
            members += self._unlisted(slice_, members, reference)
        base = None if self.method.base == "ordinary" else reference
        levels = Levels(self.document, slice_, self._module)
        group = Group(levels, tuple(members), base, reference)
        self._check(group)
        return group

    def _is_alone(self, slice_: Slice, members: Sequence[Member], base: Model | None) -> bool:
        """Whether a slice names one model, which is to be kept as it is: under slerp any (mergekit up to 0.1.4), under
        other methods that start from a base the base itself."""
        if slice_.whole or len(members) != 1 or self.method.base == "ordinary":
            return False
        return self.document.method == "slerp" or (base is not None and members[0].model.reference == base.reference)

    def _member(self, source: Input) -> Member:
        model = self._find(source.model, source.where)
        self._check_module(source, model)
        count = self._stack(model).layers
        start, end = source.layers or (0, count)
        if end > count:
            problem = f"layer_range [{start}, {end}) of {source.model}, which has {count} layers"
            raise InputError(problem, f"end at {count} at most", source.where)
        ours, theirs = self.donor.config.get("model_type"), model.config.get("model_type")
        if not self._mix_types and not _types(self.donor) & _types(model):
            problem = f"{source.model} is a {theirs} model, the merge is of {ours} models"
            mend = "merge fine-tunes of one base; if its tensors have the same names, merge with --allow-crimes"
            raise InputError(problem, mend, source.where)
        return Member(source, model, start, end - start)

    def _check_module(self, source: Input, model: Model) -> None:
        module, main = self._module_in(model), self.donor.modules.main
        if module is not None and module not in model.modules.stacks:
            problem = f"{source.model} has no module {module}, which the merge has"
            mend = f"merge the language part alone: modules: {{{main}: {{models: [...]}}}}; the others stay the base's"
            raise InputError(problem, mend, source.where)

    def _base(self, slice_: Slice) -> Model | None:
        written = slice_.base or self.document.base
        return None if written is None else self._find(written, slice_.where if slice_.base else self.document.where)

    def _unlisted(self, slice_: Slice, members: Sequence[Member], base: Model) -> list[Member]:
        """The base as a member, if it is not listed: it takes part with the layers that the others have."""
        if any(m.model.reference == base.reference for m in members):
            return []
        if self.method.base == "ordinary" and not slice_.whole:
            return []  # such a base decides the configuration only
        written = slice_.base or self.document.base
        assert written is not None
        ranges = {source.layers for source in slice_.inputs}
        if len(ranges) > 1:
            problem = "the base is not listed, and the models' layer ranges differ"
            raise InputError(problem, f"list {written} with the layers that it gives", slice_.where)
        return [self._member(Input(written, ranges.pop(), where=self.document.where))]

    def _check(self, group: Group) -> None:
        name, method, slice_ = self.document.method, self.method, group.levels.slice
        seen: set[str] = set()
        for member in group.members:
            if member.model.reference in seen:
                raise InputError(f"{member.input.model} is listed twice", "list each model once", slice_.where)
            seen.add(member.model.reference)
        if method.base in ("subtracted", "endpoint") and group.base is None:
            raise InputError(f"{name} needs a base_model", "add base_model: the common ancestor", self.document.where)
        count, (least, most) = len(group.merged), method.sources
        if not least <= count <= most:
            besides = "" if method.base == "ordinary" else " besides the base"
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            raise InputError(f"{name} takes {wanted} model{besides}, not {count}", "mend the list", slice_.where)

    def _length(self, group: Group) -> int:
        """The number of layers that a group makes."""
        spans = {m.layers for m in group.members}
        if len(spans) != 1:
            numbers = ", ".join(map(str, sorted(spans)))
            problem = f"its models give different numbers of layers ({numbers})"
            raise InputError(problem, "give every model of a slice equally many layers", group.levels.slice.where)
        return spans.pop()


def _types(model: Model) -> set[str]:
    """The types of a model and of its language part, as far as its configuration has them."""
    return {str(part.get("model_type")) for part in (model.config, text_config(model.config))}


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    """All names, each once, in the order in which they first stand."""
    return list(dict.fromkeys(name for names in lists for name in names))
