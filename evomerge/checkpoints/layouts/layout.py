"""Where each tensor of a checkpoint is in a model of transformers.

transformers renames stored tensors and fuses them as it loads: `experts.3.up_proj.weight` becomes a part of
`experts.gate_up_proj`. Its own conversion mapping says how (`transformers.conversion_mapping`, the one that
`from_pretrained` follows). It is followed backwards here: the operations that make a parameter of stored tensors are
undone by views of the parameter, so that to write a merged tensor into its view is to load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.layouts.unread import Loader
from evomerge.checkpoints.structure import is_head

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Slot:
    """The place of one stored tensor.

    Attributes:
        tensor: the place itself, of the stored tensor's shape: a parameter or buffer of the model, or a view of a part
            of one, which need not be contiguous.
        home: the parameter or buffer.
    """

    tensor: Tensor
    home: Tensor

    def of(self, gradient: Tensor) -> Tensor:
        """The part of the home's gradient that is the tensor's."""
        if self.tensor is self.home:
            return gradient
        offset = self.tensor.storage_offset() - self.home.storage_offset()
        return gradient.contiguous().as_strided(self.tensor.size(), self.tensor.stride(), offset)


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a checkpoint are in a model.

    Attributes:
        slots: by name, of those that have one.
        unread: the names of those that the model does not read: prediction layers, value heads.
    """

    slots: dict[str, Slot]
    unread: frozenset[str]


def layout(model: PreTrainedModel, shapes: Mapping[str, Sequence[int]]) -> Layout:
    """The layout of stored tensors of these names and shapes. One that the model reads in a way that is not known here
    has no slot and is not among the unread."""
    state: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    loader, found = Loader(model, state), dict[str, Slot]()
    groups: dict[str, _Group] = {}
    unread = set[str]()
    # 1. Rename as the loader does: a name is in the model then, or it is one of several that make a parameter.
    for name in loader.in_order(shapes):
        key, converter, pattern = loader.place(name)
        if key not in state:
            unread.add(name)
        elif converter is None:
            found[name] = Slot(state[key], state[key])
        else:
            group = groups.setdefault(key, _Group(state[key], converter, {}))
            group.stored.setdefault(pattern, {})[name] = tuple(shapes[name])
    # 2. Undo what the loader would do with these.
    for group in groups.values():
        found.update(group.slots())
    # 3. A head under a name of its own.
    for name in shapes:
        if name not in found and is_head(name) and model.get_output_embeddings() is not None:
            weight = model.get_output_embeddings().weight
            found[name] = Slot(weight, weight)
    return Layout({name: found[name] for name in shapes if name in found}, frozenset(unread - found.keys()))


_Shapes = dict[str, list[tuple[int, ...]]]
_Views = dict[str, list["Tensor"]]
"""Of each pattern of a converter, the tensors (or their shapes) that it names, in order."""


@dataclass
class _Group:
    """Stored tensors that make one parameter.

    Attributes:
        home: the parameter.
        converter: of transformers.
        stored: pattern -> name -> shape, in order.
    """

    home: Tensor
    converter: Any
    stored: dict[str, dict[str, tuple[int, ...]]]

    def slots(self) -> dict[str, Slot]:
        """The view of each tensor; none of any where an operation is unknown or the shapes do not fit."""
        operations = [_OPERATIONS.get(type(o).__name__) for o in self.converter.operations]
        shapes: _Shapes = {p: list(self.stored[p].values()) for p in self.converter.source_patterns if p in self.stored}
        # 1. The shapes before each operation.
        before = []
        for operation, known in zip(self.converter.operations, operations, strict=True):
            if known is None or len(self.converter.target_patterns) > 1:
                return {}
            before.append(shapes)
            shapes = known.shapes(operation, shapes, self.home)
        if [s for tensors in shapes.values() for s in tensors] != [tuple(self.home.shape)]:
            return {}
        # 2. From the parameter backwards.
        views: _Views = {next(iter(shapes)): [self.home]}
        for operation, known, stage in zip(
            self.converter.operations[::-1], operations[::-1], before[::-1], strict=True
        ):
            assert known is not None
            views = known.undone(operation, views, stage)
        return {
            name: Slot(view, self.home)
            for pattern, names in self.stored.items()
            for name, view in zip(names, views[pattern], strict=True)
        }


class _Stacked:
    """`MergeModulelist`: the tensors of each pattern become one, with a dimension more."""

    @staticmethod
    def shapes(operation: Any, shapes: _Shapes, home: Tensor) -> _Shapes:
        first = {pattern: list(tensors[0]) for pattern, tensors in shapes.items()}
        for pattern, shape in first.items():
            shape.insert(operation.dim, len(shapes[pattern]))
        return {pattern: [tuple(shape)] for pattern, shape in first.items()}

    @staticmethod
    def undone(operation: Any, views: _Views, before: _Shapes) -> _Views:
        return {pattern: list(tensors[0].unbind(operation.dim)) for pattern, tensors in views.items()}


class _Concatenated:
    """`Concatenate`: all tensors become one, in the order of the patterns."""

    @staticmethod
    def shapes(operation: Any, shapes: _Shapes, home: Tensor) -> _Shapes:
        every = [shape for tensors in shapes.values() for shape in tensors]
        whole = list(every[0])
        whole[operation.dim] = sum(shape[operation.dim] for shape in every)
        return {next(iter(shapes)): [tuple(whole)]}

    @staticmethod
    def undone(operation: Any, views: _Views, before: _Shapes) -> _Views:
        [whole] = next(iter(views.values()))
        sizes = [shape[operation.dim] for tensors in before.values() for shape in tensors]
        parts = iter(whole.split(sizes, operation.dim))  # type: ignore[no-untyped-call]
        return {pattern: [next(parts) for _ in tensors] for pattern, tensors in before.items()}


class _Transposed:
    """`Transpose`; with `check_dims` only where the stored shape is not the parameter's."""

    @staticmethod
    def shapes(operation: Any, shapes: _Shapes, home: Tensor) -> _Shapes:
        [(pattern, [shape])] = shapes.items()
        if operation.check_dims and shape == tuple(home.shape):
            return shapes
        turned = list(shape)
        turned[operation.dim0], turned[operation.dim1] = turned[operation.dim1], turned[operation.dim0]
        return {pattern: [tuple(turned)]}

    @staticmethod
    def undone(operation: Any, views: _Views, before: _Shapes) -> _Views:
        [(pattern, [view])] = views.items()
        same = operation.check_dims and before[pattern] == [tuple(view.shape)]
        return views if same else {pattern: [view.transpose(operation.dim0, operation.dim1)]}


_OPERATIONS: Mapping[str, type[_Stacked | _Concatenated | _Transposed]] = {
    "MergeModulelist": _Stacked,
    "Concatenate": _Concatenated,
    "Transpose": _Transposed,
}
