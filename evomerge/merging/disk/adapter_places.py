"""Where a LoRA adapter holds the change of each tensor: PEFT names modules as they are in memory, not as they are in
files, and has other matrices for embeddings than for linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from evomerge.checkpoints.layouts.layout import layout
from evomerge.checkpoints.layouts.unread import skeleton
from evomerge.checkpoints.structure import is_head
from evomerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
"""What PEFT has before the name of a module in memory."""

Kind = Literal["linear", "embedding", "whole"]

_FUSED = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), "out_proj"
"""Model types, and their layer whose weight kernels read by themselves: PEFT refuses an adapter on it."""


@dataclass(frozen=True)
class AdapterPlace:
    """The place of one stored tensor.

    Attributes:
        module: its module's name in memory.
        parameter: its name in that module: `weight`, `bias`.
        kind: "linear" and "embedding" weights have low ranks; every other tensor of a module without modules in it is
            held whole.
        turned: whether a weight is stored as [inputs, outputs], so that its change is the transpose of B A.
    """

    module: str
    parameter: str
    kind: Kind
    turned: bool = False

    @property
    def low_rank(self) -> bool:
        return self.kind != "whole"

    def keys(self, adapted: bool) -> tuple[str, ...]:
        """The names of its tensors in an adapter: A and B, or the whole tensor. `adapted`: whether the module has A and
        B, which wrap it."""
        module = f"{PREFIX}{self.module}"
        if self.kind == "linear":
            return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        if self.kind == "embedding":
            return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        return (f"{module}.{'base_layer.' if adapted else ''}{self.parameter}",)


def adapter_places(
    config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[AdapterPlace, ...]]:
    """The places of a checkpoint's tensors, by name: two of embeddings that are the head as well, as an adapter of one
    of the two modules leaves the other as it is. A tensor that is one of several that a parameter is made of, as a
    matrix of stacked experts, has none.

    Raises:
        InputError: transformers does not know the model, so PEFT could not load an adapter of it.
    """
    model = skeleton(config)
    if model is None:
        problem = f"transformers has no model of the type {config.get('model_type')}, and PEFT needs one"
        raise InputError(problem, "write a whole checkpoint: leave out --as-adapter")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    head_apart, places = any(map(is_head, shapes)), dict[str, tuple[AdapterPlace, ...]]()
    for stored, slot in layout(model, shapes).slots.items():
        held = names.get(id(slot.home), []) if slot.tensor is slot.home else []
        if head_apart:
            held = [name for name in held if is_head(name) == is_head(stored)] or held[:1]
        found = [place for name in held if (place := _place(model, name)) is not None]
        if found and len(found) == len(held):
            low = all(place.low_rank for place in found)
            places[stored] = tuple(place if low else replace(place, kind="whole", turned=False) for place in found)
    return places


def _place(model: PreTrainedModel, name: str) -> AdapterPlace | None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    path, _, parameter = name.rpartition(".")
    module = model.get_submodule(path)
    types, fused = _FUSED
    if model.config.model_type in types and path.endswith(f".{fused}"):
        return AdapterPlace(path, parameter, "whole")
    if parameter == "weight" and type(module) is nn.Linear:
        return AdapterPlace(path, parameter, "linear")
    if parameter == "weight" and type(module) is Conv1D:
        return AdapterPlace(path, parameter, "linear", turned=True)
    if parameter == "weight" and type(module) is nn.Embedding:
        return AdapterPlace(path, parameter, "embedding", turned=True)
    return None if next(module.children(), None) is not None else AdapterPlace(path, parameter, "whole")
