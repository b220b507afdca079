"""Names of tensors that differ between checkpoints of one model: wrappers of training leave a word in them, and a model
that was saved without its head (`AutoModel`) has none of the prefix of one with a head: ``layers.0.`` for
``model.layers.0.``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from evomerge.checkpoints.structure import Stack

T = TypeVar("T")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The words of torch.compile, FSDP and activation checkpointing, which transformers does not take away."""


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors under names without the words of wrappers. Names that would then be one stay as they are."""
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name for name in tensors}
    if len(set(names.values())) < len(names):
        return dict(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def rename_between(theirs: Stack, ours: Stack, names: Collection[str]) -> Callable[[str], str] | None:
    """Turns names of a model with the layer stack `theirs` into those of one with `ours` and the tensors `names`: where
    one of them has a prefix more (``model.``) before the same stack, or is the language part of a model with more
    (``model.language_model.layers`` for ``model.layers``). None where there is nothing to turn."""
    if theirs.prefix == ours.prefix:
        return None
    if ours.prefix.endswith(f".{theirs.prefix}"):
        more = ours.prefix.removesuffix(theirs.prefix)
        layers = f"{theirs.prefix}."
        return lambda name: more + name if name.startswith(layers) or more + name in names else name
    if theirs.prefix.endswith(f".{ours.prefix}"):
        less = theirs.prefix.removesuffix(ours.prefix)
        return lambda name: name.removeprefix(less)
    (before, _, last), (after, _, same) = theirs.prefix.rpartition("."), ours.prefix.rpartition(".")
    if last != same or not before or not after:
        return None

    def rename(name: str) -> str:
        moved = f"{after}{name[len(before) :]}" if name.startswith(f"{before}.") else name
        return moved if moved.startswith(f"{ours.prefix}.") or moved in names else name

    return rename
