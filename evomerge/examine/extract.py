"""`evomerge.extract`: the change from a base to a model as a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.write import check_target
from evomerge.errors import InputError, Where
from evomerge.examine.references import check_places
from evomerge.recipe.mergekit import recipe_of
from evomerge.safety.paths import absolute
from evomerge.study.observer import Observer

if TYPE_CHECKING:
    from evomerge.merging.disk.adapter import AdapterContent


@with_pickles
def extract(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    rank: int,
    device: str = "cpu",
    overwrite: bool = False,
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> AdapterContent:
    """Writes what `model` has learned since `base` as a LoRA adapter that PEFT loads. Of each matrix's change the
    largest singular directions are kept, as many as the rank; vectors that changed are held whole.

    Args:
        base: the checkpoint (folder, hub id) that the adapter belongs to.
        model: a fine-tune of it, or an adapter, which gets another rank.
        out: the folder to write; it appears when it is whole.
        rank: of the adapter.
        device: where a merged model is computed; decompositions are computed on the processor.
        overwrite: replace an adapter that is there.
        allow_pickle: read pickled weights, too, where a model has no others.
        observer: is told what happens.

    Returns:
        What it holds: the norm of each change, and how much of it is lacking.

    Raises:
        InputError: the two are not of one form, the rank is none, or the folder cannot be written. Nothing was written
            then.
    """
    observer = observer or Observer()
    if rank < 1:
        raise InputError(f"{rank} is no rank", "give a whole number above 0", Where("--rank"))
    for given in (base, model):
        if recipe_of(given) is not None:
            problem = f"{given} is a recipe, not a model"
            raise InputError(problem, "write its merge as an adapter: `evomerge merge --as-adapter`")
        check_places(None, [given])
    check_target(absolute(out), overwrite)
    # torch takes seconds to import.
    from evomerge.merging.disk.as_adapter import write_extracted

    observer.phase(f"taking the change from {base} to {model}")
    return write_extracted(
        str(base),
        str(model),
        absolute(out),
        rank,
        device=device,
        overwrite=overwrite,
        progress=observer.progress,
        note=observer.note,
    )
