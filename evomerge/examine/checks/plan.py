"""The memory that a search over these models takes, and the time of a candidate, as a search's dry run plans them."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.evaluator.device import place_sizes
from evomerge.examine.checks.findings import Finding, warning
from evomerge.merging.resident.placement import ModelSizes


def planned(
    base: Checkpoint, models: Mapping[str, Checkpoint], dtype: str, device: str, memory: str | None
) -> tuple[dict[str, str], list[Finding]]:
    """The plan in words, and a warning where the model does not fit.

    Args:
        base: whose shapes the merged model has.
        models: all that candidates read, by name.
        dtype: of the merged model.
        device, memory: as a search takes them.

    Raises:
        InputError: there is no such device, or the limits are none.
    """
    sizes = ModelSizes.of({name: info.elements for name, info in base.tensors.items()}, dtype, base.stack)
    try:
        return place_sizes(sizes, models, device, memory).facts(), []
    except InputError as error:
        if error.where is None or "free" not in error.problem:
            raise
        return {}, [warning("memory", f"a search would not fit here: {error.problem}; {error.mend}")]
