"""`evomerge.export`: a run's recipe as mergekit YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.merging.disk.naming import Names
from evomerge.merging.disk.record import RECORD, read_record
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import relocated
from evomerge.registry import runs_in_mergekit
from evomerge.safety.durable import write_whole
from evomerge.study.after.shipped import origin_of
from evomerge.study.after.status import NothingFeasible, Status, status
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.manifest import Environment
from evomerge.study.run.trial import Trial
from evomerge.types import SplitName


def export(
    run: str | Path,
    output: str | Path | None = None,
    *,
    trial: int | None = None,
    allow_infeasible: bool = False,
    portable: bool = False,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    as_adapter: bool = False,
    rank: int | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    progress: Callable[[str, float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> str:
    """The recipe of a run's winner (or best feasible trial so far, or `trial`) as mergekit YAML; several documents
    are a recipe for mergekit-multi. Written to `output`, if given, and returned. Models on the hub go by id and commit,
    others by their paths as seen from the folder of `output`, or from the current one.

    Args:
        portable: models that are here only go by the names of their folders: for others to read.
        checkpoint: also merge the recipe, into this folder. Its card has the run's scores.
        as_adapter, rank: write that merge as a LoRA adapter of the base, of this rank, in place of a checkpoint.
        device, overwrite, push_to_hub, public, progress, note: of that merge.

    Raises:
        InputError: there is no such run or trial, or a file or folder cannot be written.
        NothingFeasible: the recipe misses a floor, or was not scored on all items, and `allow_infeasible` is false.
    """
    if checkpoint is None and (push_to_hub is not None or public):
        raise InputError("a recipe alone is not pushed", "add --checkpoint DIR", Where("--push-to-hub"))
    if checkpoint is None and (as_adapter or rank is not None):
        raise InputError("a recipe alone is no adapter", "add --checkpoint DIR", Where("--as-adapter"))
    state = status(run)
    chosen, leaderboard, split = _chosen(state, trial)
    missed = [v.slice for v in leaderboard.verdicts(chosen) if not v.passed]
    if chosen.state == "pruned" and not allow_infeasible:
        problem = f"{chosen.name} was pruned after {chosen.evaluated} of {chosen.items} items"
        raise NothingFeasible(f"{problem}, whether it passes is open; --allow-infeasible exports it all the same")
    if missed and not allow_infeasible:
        problem = f"{chosen.name} misses the floor of {', '.join(missed)} on the {split} split"
        raise NothingFeasible(f"{problem}; --allow-infeasible exports it all the same")
    header = _header(state, chosen, split, missed)
    text = write_recipe(portable_recipe(chosen.recipe, output, portable), header)
    if checkpoint is not None:
        # torch takes seconds to import.
        from evomerge.merging.disk.stream import merge

        folder = merge(
            chosen.recipe,
            checkpoint,
            device=device,
            overwrite=overwrite,
            as_adapter=as_adapter,
            rank=rank,
            push_to_hub=push_to_hub,
            public=public,
            allow_pickle=Environment.read(state.folder).launch.allow_pickle,
            origin=origin_of(state, chosen, leaderboard, split, header),
            progress=progress,
            note=note,
        )
        if note is not None and not as_adapter and read_record(folder / RECORD).digest != chosen.digest:
            note(f"warning: these are not the weights that were scored ({chosen.digest}); merge on the same device")
    if output is not None:
        try:
            write_whole(Path(output), text)
        except OSError as error:
            raise InputError(
                f"cannot write {output} ({error.strerror})", "give another file", Where("--output")
            ) from None
    return text


def portable_recipe(recipe: Recipe, output: str | Path | None, bare: bool = False) -> Recipe:
    """The recipe as it is written to a file (None: to stdout), without paths that mean nothing elsewhere. `bare`:
    models that are here only go by the names of their folders."""
    names = Names(recipe)
    if bare:
        return names.named()
    folder = Path.cwd() if output is None else Path(output).absolute().parent
    return relocated(recipe, names.seen_from(folder.resolve(), bare=False))


def _chosen(state: Status, number: int | None) -> tuple[Trial, Leaderboard, SplitName]:
    if not state.search.settled:
        raise NothingFeasible(f"the run {state.folder.name!r} has not scored all its references yet")
    if number is not None:
        return _numbered(state, number)
    if state.release is not None and state.release.winner is not None:
        return state.release.winner, state.release.leaderboard, "holdout"
    leaderboard = state.release.leaderboard if state.release else state.search
    split: SplitName = "holdout" if state.release else "search"
    merges = leaderboard.merges()
    if not merges:
        raise NothingFeasible(f"the run {state.folder.name!r} has no finished merge yet")
    return merges[0], leaderboard, split


def _numbered(state: Status, number: int) -> tuple[Trial, Leaderboard, SplitName]:
    places: list[tuple[Leaderboard, SplitName]] = [(state.release.leaderboard, "holdout")] if state.release else []
    for leaderboard, split in (*places, (state.search, "search")):
        for trial in leaderboard.trials:
            if trial.number == number and trial.ranked:
                return trial, leaderboard, split
    count = len(state.search.trials)
    raise InputError(f"the run {state.folder.name!r} has no complete trial {number}", f"it has {count}, from 0")


def _header(state: Status, trial: Trial, split: str, missed: list[str]) -> str:
    lines = [f"evomerge run {state.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}"]
    lines.append(f"digest of the weights {trial.digest}")
    for name, value in trial.scores.items():
        fact = state.slices[name]
        floor = ", below its floor" if name in missed else ""
        floor += f", predicted from {trial.evaluated} of {trial.items} items" if trial.state == "pruned" else ""
        lines.append(f"{name}: {fact['metric']} {fact['sign'] * value:.4f} on the {split} split{floor}")
    if state.release is not None and not state.finished:
        lines.append(f"chosen after {state.release.after} trials; the run has gone on since")
    own = sorted({d.method for d in trial.recipe.documents if not runs_in_mergekit(d.method)})
    own += ["Core Space"] if any(d.core for d in trial.recipe.documents) else []
    if own:
        why = f"mergekit has no {' and no '.join(own)}: it cannot run it"
        return "\n".join([*lines, f"evomerge merge FILE OUT (these very bits); {why}"])
    several = len(trial.recipe.documents) > 1
    peer = "mergekit-multi FILE --intermediate-dir TMP --out-path OUT" if several else "mergekit-yaml FILE OUT"
    return "\n".join([*lines, f"evomerge merge FILE OUT (these very bits), or {peer}"])
