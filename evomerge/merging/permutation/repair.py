"""REPAIR for networks with batch normalisation: the statistics of an interpolated network, taken anew.

Between two networks the activations of the average vary less than those of either (variance collapse). REPAIR (Jordan
et al. 2022, arXiv:2211.08403) rescales each channel so that its mean and deviation are the mean of both networks'.
Behind batch normalisation these are its bias and weight, which are interpolated with all others: what is left to do is
to measure the statistics that it normalises by on data (their section 4, "reset").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def repair(
    model: torch.nn.Module, batches: Iterable[Any], forward: Callable[[torch.nn.Module, Any], Any] | None = None
) -> int:
    """Sets the running statistics of all batch norms of a model to those of its own activations on `batches`, all of
    which count alike. The model is changed in place.

    Args:
        model: with the interpolated weights.
        batches: large ones, as in training.
        forward: runs the model on a batch; default: ``model(batch)``.

    Returns:
        How many batch norms it has; with none, nothing is run.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    return len(norms)
