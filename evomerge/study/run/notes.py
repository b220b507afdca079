"""The notes of a study and of its trials, as optuna-dashboard keeps them: Markdown in attributes of the study.

A study's note says what the run is, and how it ended; a finalist's, how it did on the holdout items: nothing can be
added to a trial itself once it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optuna.storages import BaseStorage

from evomerge.escape import code, markdown
from evomerge.files.objects import FitnessSpec, FloorSpec, SpaceSpec
from evomerge.scoring.slices import SliceInfo
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial

_LONGEST = 2045
"""Characters of one attribute (optuna-dashboard splits notes so)."""


def write_note(
    storage: BaseStorage, study: int, trial: int | None, text: str, written: Mapping[str, int]
) -> dict[str, int]:
    """Writes a note unless it stands there, or somebody has edited it since.

    Args:
        storage, study, trial: whose note; a trial's internal number, or None for the study.
        text: Markdown.
        written: the versions of the notes as they were written last.

    Returns:
        the version of this note as it was written now, by its key.
    """
    prefix = "dashboard:" if trial is None else f"dashboard:{trial}:"
    version, part = f"{prefix}note_ver", f"{prefix}note_str:"
    attributes = storage.get_study_system_attrs(study)
    parts = [text[at : at + _LONGEST] for at in range(0, len(text), _LONGEST)]
    before = [key for key in attributes if key.startswith(part)]
    known = attributes.get(version, 0)
    if known != written.get(version, 0) or "".join(str(attributes[f"{part}{i}"]) for i in range(len(before))) == text:
        return {}
    parts += [""] * (len(before) - len(parts))
    for at, piece in enumerate(parts):
        storage.set_study_system_attr(study, f"{part}{at}", piece)
    storage.set_study_system_attr(study, version, known + 1)
    return {version: known + 1}


def metric_name(fitness: FitnessSpec) -> str:
    """What the number is that trials are ordered by."""
    return "weighted mean" if fitness.traded else fitness.objective.replace("_", " ")


def study_note(name: str, spec: SpaceSpec, fitness: FitnessSpec, slices: Mapping[str, SliceInfo], genes: int) -> str:
    """What a run is."""
    return "\n".join(_study_lines(name, spec, fitness, slices, genes))


def _study_lines(
    name: str, spec: SpaceSpec, fitness: FitnessSpec, slices: Mapping[str, SliceInfo], genes: int
) -> Iterator[str]:
    sources = ", ".join(f"{markdown(source)} ({code(model)})" for source, model in spec.source_names.items())
    yield f"# evomerge run {markdown(name)}\n"
    yield f"A search for the best merge of {sources} on the base {code(spec.base)}.\n"
    yield f"- optimizer {code(spec.optimizer['name'])}, seed {spec.optimizer['seed']}, {genes} searched values"
    yield f"- objective: the {metric_name(fitness)} of the slices' scores; trials are ranked behind their floors\n"
    yield "| slice | metric | better | weight | floor |"
    yield "|---|---|---|---|---|"
    for slice_name, info in slices.items():
        floor = "" if info.floor is None else markdown(_words(info.floor))
        better = "higher" if info.sign > 0 else "lower"
        yield f"| {markdown(slice_name)} | {markdown(info.metric)} | {better} | {info.weight:g} | {floor} |"
    yield "\n`score.SLICE` is the score on the search items in the metric's own direction, predicted where the trial"
    yield "was pruned. `margin.SLICE` is its distance above the floor: negative where it misses it; the constraints are"
    yield "the same numbers with the other sign."


def _words(floor: FloorSpec) -> str:
    if floor.of is None:
        return f"{floor.value:g}"
    if floor.margin is not None:
        return f"{floor.of}, at most {floor.margin:g} worse"
    return f"{1 if floor.keep is None else floor.keep:g} of {floor.of}"


def released_note(holdout: Leaderboard, winner: Trial | None) -> str:
    """How a search ended."""
    if winner is None:
        return "**No winner**: no merge passes every floor on the holdout items."
    return f"**The winner is {markdown(winner.name)}.** {holdout_note(holdout, winner)}"


def holdout_note(holdout: Leaderboard, trial: Trial) -> str:
    """How a trial did on the holdout items."""
    if not trial.scores:
        return f"It could not be scored on the holdout items ({markdown(trial.reason)})."
    rows = [
        f"| {markdown(v.slice)} | {holdout.gates[v.slice].sign * v.score:.4f} |"
        f" {'' if v.floor is None else f'{holdout.gates[v.slice].sign * v.floor:.4f}'} |"
        f" {'' if v.floor is None else 'passed' if v.passed else 'missed'} |"
        for v in holdout.verdicts(trial)
    ]
    return "\n".join(["On the holdout items:\n", "| slice | score | floor | |", "|---|---|---|---|", *rows])
