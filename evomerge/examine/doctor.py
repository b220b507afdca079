"""`evomerge.doctor`: why a merged model is worse than it should be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.pickled import with_pickles
from evomerge.errors import InputError, Where
from evomerge.examine.findings.finding import Finding
from evomerge.examine.references import check_places, parents_of
from evomerge.examine.replies import Reply, side_by_side
from evomerge.files.fitness_file import read_fitness
from evomerge.recipe.mergekit import recipe_of
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import anchored
from evomerge.study.observer import Observer
from evomerge.types import SliceScore, SplitName

if TYPE_CHECKING:
    from evomerge.examine.findings.behaviour import Behaviour
    from evomerge.examine.findings.symptoms import Symptom
    from evomerge.scoring.slices import SliceInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what was looked at.

    Attributes:
        model: as it was given.
        parents: name -> reference.
        findings: the worst first.
        symptoms: what running the models showed to be worse than in every parent.
        behaviour: of the model and its parents, by name; the model's is "the merge". Empty where no model ran.
        slices: of the fitness file, where one was given.
        scores: by model, then by slice, of the merge and its parents.
        replies: what each model writes after the prompts that were given.
        notes: what could not be looked at, and why.
    """

    model: str
    parents: Mapping[str, str]
    findings: tuple[Finding, ...]
    symptoms: tuple[Symptom, ...] = ()
    behaviour: Mapping[str, Behaviour] = field(default_factory=dict)
    slices: Mapping[str, SliceInfo] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, SliceScore]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    replies: tuple[Reply, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.findings


@with_pickles
def doctor(
    model: str | Path,
    *,
    fitness: str | Path | None = None,
    base: str | None = None,
    sources: Sequence[str] = (),
    split: SplitName = "holdout",
    quick: bool = False,
    prompts: Sequence[str] = (),
    device: str = "auto",
    memory: str | None = None,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> Diagnosis:
    """Examines a merged checkpoint or a recipe (merged in memory), and says what is wrong with it.

    First without a forward pass: settings, tokenizer and every tensor against those of the parents. Then, unless
    `quick`, by running the model and its parents, one after the other, on a few prompts.

    Args:
        fitness: also score the model and every parent on these slices; prompts are taken from there, too.
        base, sources: the parents, where no recipe beside the model names them, or in place of those.
        split: whose items are scored.
        prompts: texts; what every model writes after them is kept, too.
        device, memory, trust_tasks, allow_pickle: as in `evaluate`.

    Raises:
        InputError: an argument or a file is wrong.
    """
    observer = observer or Observer()
    if quick and prompts:
        raise InputError(
            "a quick look runs no model, and --prompt asks for one", "leave out --quick", Where("--prompt")
        )
    spec = None if fitness is None else replace(read_fitness(Path(fitness)), trust_tasks=trust_tasks)
    recipe = recipe_of(model)
    given = _given(base, sources)
    check_places(recipe, [*([] if recipe else [model]), *given.values()])
    recipe = anchored(recipe) if recipe else None
    # These import torch: what is wrong above is reported before.
    from evomerge.examine.findings.checks import examined
    from evomerge.examine.findings.opening import RECIPE, open_patient, recipe_beside, unreadable
    from evomerge.examine.findings.patient import measured

    notes: list[str] = []
    beside = None if recipe else recipe_beside(str(model), notes)
    of_recipe = recipe or beside
    parents = given or (parents_of(of_recipe) if of_recipe else {})
    try:
        patient = open_patient(str(model), recipe, beside, parents)
    except InputError as error:
        finding = None if recipe else unreadable(str(model))
        if finding is not None:
            return Diagnosis(str(model), parents, (finding,), notes=(*notes, "nothing else could be looked at"))
        if given or beside is None:
            raise
        patient, parents = open_patient(str(model), None, beside, {}), {}
        notes.append(f"the parents that {RECIPE} names cannot be opened ({error.problem})")
    if not parents:
        notes.append("no parents are known: give --base and --source to compare with them")
    patient = measured(patient, observer)
    findings = examined(patient)
    if quick:
        return Diagnosis(str(model), parents, findings, notes=tuple(notes))
    from evomerge.examine.findings.live import run_live
    from evomerge.examine.findings.symptoms import cannot_run, overflowing, symptoms, tokenized_otherwise, unexplained

    live = run_live(patient, str(model), parents, spec, split, device, memory, observer, prompts)
    if live.failed is not None:
        findings = findings or (cannot_run(live.failed),)
        return Diagnosis(str(model), parents, findings, notes=(*notes, f"the model was not run: {live.failed}"))
    felt, seen = symptoms(patient, live), (overflowing(patient, live), tokenized_otherwise(patient, live))
    findings = (*(finding for finding in seen if finding is not None), *findings)
    unseen = None if findings else unexplained(felt, patient.model.factors)
    return Diagnosis(
        model=str(model),
        parents=parents,
        findings=(*findings, *([unseen] if unseen else [])),
        symptoms=felt,
        behaviour=live.behaviour,
        slices=live.slices,
        scores=live.scores,
        notes=(*notes, *live.notes),
        replies=side_by_side(prompts, live.replies),
    )


GLANCE = 20.0
"""Seconds that a search looks at its winner."""


def glance(recipe: Recipe, *, allow_pickle: bool = False, observer: Observer | None = None) -> tuple[Finding, ...]:
    """What a look at a recipe's merge finds in `GLANCE` seconds, without running it: what `doctor` with `quick` finds,
    of large models in a part of their tensors. It comes at the end of a search, and takes nothing from it: an error,
    or an interruption, is a line in the log."""
    try:
        return _glance(recipe, allow_pickle=allow_pickle, observer=observer or Observer())
    except (Exception, KeyboardInterrupt) as error:
        log.info("the winner could not be looked at: %s", str(error) or type(error).__name__)
        return ()


@with_pickles
def _glance(recipe: Recipe, *, allow_pickle: bool, observer: Observer) -> tuple[Finding, ...]:
    from evomerge.examine.findings.checks import CHECKS, examined
    from evomerge.examine.findings.layers import out_of_order
    from evomerge.examine.findings.opening import open_patient
    from evomerge.examine.findings.patient import measured

    recipe = anchored(recipe)
    patient = open_patient("the winner", recipe, None, parents_of(recipe))
    # The order of a path's layers is what was searched.
    searched = recipe.output.method == "passthrough"
    checks = [check for check in CHECKS if not (searched and check is out_of_order)]
    return examined(measured(patient, observer, GLANCE), checks)


def _given(base: str | None, sources: Sequence[str]) -> dict[str, str]:
    """The parents that were given, by name: a source goes by the name of its folder."""
    parents = {"base": base} if base else {}
    for source in sources:
        if source == base:
            raise InputError(f"{source} is the base and a source", "name it once", Where("--source"))
        name = "+".join(Path(part.partition("@")[0]).name for part in source.split("+"))
        parents[source if name in parents else name] = source
    return parents
