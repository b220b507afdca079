"""Checkpoints activations (Chen et al. 2016, arXiv:1604.06174): layers keep their inputs only and run again on the way
back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from evomerge.checkpoints.structure import configured_layers, find_stack
from evomerge.errors import InputError


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoints every decoder layer of a transformers model. transformers' own switch works in training mode only,
    which would draw dropout.

    Raises:
        InputError: the names of the model's parameters do not show its layers.
    """
    with ExitStack() as stack:
        for layer in decoder_layers(model):
            stack.enter_context(_recomputed(layer))
        yield


def decoder_layers(model: Any) -> list[nn.Module]:
    """The modules of the layer stack, in order. InputError where the parameters' names do not show it."""
    layers = configured_layers(model.config.to_dict())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    stack = find_stack(names, layers) if layers else None
    if stack is None:
        problem = f"{type(model).__name__} has no numbered stack of {layers} layers"
        raise InputError(problem, "its activations cannot be checkpointed")
    return [model.get_submodule(f"{stack.prefix}.{number}") for number in range(stack.layers)]


@contextmanager
def _recomputed(layer: nn.Module) -> Iterator[None]:
    """Replaces `forward`, not the call: hooks of the layer run once. A `forward` that was replaced before (accelerate
    moves inputs between devices that way) is restored."""
    replaced, forward = vars(layer).get("forward"), layer.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        # Nothing is drawn in evaluation mode, so the random generators need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    _replace(layer, again)
    try:
        yield
    finally:
        if replaced is None:
            del layer.forward
        else:
            _replace(layer, replaced)


def _replace(layer: nn.Module, forward: Callable[..., Any]) -> None:
    layer.forward = forward
