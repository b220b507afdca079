"""`evomerge.align`: one model with its hidden units in the order of another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.write import check_target
from evomerge.errors import InputError, Where
from evomerge.examine.references import check_places
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec
from evomerge.merging.permutation.stored import ENDING, StoredModel, shared_symmetries
from evomerge.recipe.mergekit import recipe_of
from evomerge.safety.paths import absolute
from evomerge.scoring.preflight import check_fitness
from evomerge.study.observer import Observer

if TYPE_CHECKING:
    from evomerge.merging.permutation.alignment import Alignment
    from evomerge.merging.permutation.weight_matching import Matching


@with_pickles
def align(
    reference: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    spec: str | Path | None = None,
    fitness: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    memory: str | None = None,
    overwrite: bool = False,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> Alignment:
    """Permutes the hidden units of `model` so that it is as near to `reference` as it can be, and writes it to `out`.
    What it computes stays the same.

    Git Re-Basin (Ainsworth et al. 2022, arXiv:2209.04836): units are matched by weights, or, with `fitness`, by what
    they do on search items.

    Args:
        reference, model: two checkpoints (folder, hub id), or two safetensors files of tensors alone.
        out: the folder, or the file, to write.
        spec: a file that says which axes follow which group of units; default: the built-in specification.
        fitness: a fitness file, for language models.
        seed: of the order in which groups are matched.
        device, memory, trust_tasks: as in `evaluate`; they count with `fitness` alone.
        overwrite: replace what is at `out`.
        allow_pickle: pickled weights are read, too, where a model has no others.
        observer: is told what happens.

    Raises:
        InputError: an argument or a file is wrong, or the two cannot be aligned. Nothing was written then.
    """
    observer = observer or Observer()
    if not 0 <= seed < 2**63:
        raise InputError(f"{seed} is no seed", "give a whole number from 0 to 2^63 - 1", Where("--seed"))
    for given in (reference, model):
        if recipe_of(given) is not None:
            raise InputError(f"{given} is a recipe, not a model", "write its checkpoint first (`evomerge merge`)")
        if Path(given).suffix != ENDING:
            check_places(None, [given])
    _check_out(Path(out), overwrite, [reference, model])
    file = None if spec is None else absolute(spec, where=Where("--spec"))
    scored = None if fitness is None else _read_items(Path(fitness), trust_tasks)
    one, other = StoredModel.open(reference), StoredModel.open(model)
    _check_kind(other, Path(out))
    specification, symmetries = shared_symmetries(one, other, file)
    observer.note(f"specification: {specification.name}, {len(symmetries.groups)} groups of units")
    # These import torch: what is wrong above is reported before.
    from evomerge.merging.permutation.alignment import align_models, write_aligned

    match: Callable[..., Matching] | None = None
    if scored is not None:
        if other.checkpoint is None or not other.config:
            problem = f"{model} is no language model: its activations on items are unknown"
            raise InputError(problem, "leave --fitness out, or match by activations from Python (docs/align.md)")
        from evomerge.examine.activations import matcher

        match = matcher(str(reference), str(model), symmetries, scored, seed, device, memory, observer)
    observer.phase(f"aligning {other.name} with {one.name}")
    result = align_models(one, other, specification, symmetries, seed=seed, match=match, progress=observer.progress)
    target = absolute(out)
    write_aligned(other, symmetries, result.orders, target, overwrite=overwrite, progress=observer.progress)
    return result


def _read_items(file: Path, trust_tasks: bool) -> FitnessSpec:
    """A fitness file without its floors, as nothing is held to them. InputError if something is wrong with it."""
    spec = read_fitness(file)
    spec = replace(spec, trust_tasks=trust_tasks, slices={n: replace(s, floor=None) for n, s in spec.slices.items()})
    check_fitness(spec, [])
    return spec


def _check_out(out: Path, overwrite: bool, read: list[str | Path]) -> None:
    """InputError where the target cannot be written, before anything is read."""
    inputs = [Path(given).expanduser() for given in read if Path(given).expanduser().exists()]
    if out.suffix != ENDING:
        check_target(absolute(out), overwrite, inputs=inputs)
        return
    if out.is_dir():
        raise InputError(f"{out} is a folder", "name a file, or a folder that is not named like one")
    if any(given.resolve() == out.resolve() for given in inputs):
        raise InputError(f"{out} is read and to be written", "name another file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists", "name another file, or replace it with --overwrite")
    if not out.absolute().parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", "create it")


def _check_kind(model: StoredModel, out: Path) -> None:
    """InputError where a folder is to be written as a file, or a file as a folder."""
    if (model.checkpoint is None) != (out.suffix == ENDING):
        what = "a file of tensors" if model.checkpoint is None else "a folder"
        mend = "name OUT.safetensors" if model.checkpoint is None else "name a folder"
        raise InputError(f"{model.name} is {what}, and {out} would not be one", mend)
