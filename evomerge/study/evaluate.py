"""`evomerge.evaluate`: scores and gates of one checkpoint or recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec
from evomerge.merge.bank import SourceBank
from evomerge.merge.materialize import Resident, as_it_is
from evomerge.merge.plan import plan
from evomerge.merge.tokenizers import output_tokenizer
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.recipe import Recipe, alone
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import Gate, Verdict, judge, scales, settle
from evomerge.scoring.preflight import check_fitness
from evomerge.scoring.suite import Slice, Suite
from evomerge.study.device import place_models
from evomerge.study.observer import Observer
from evomerge.types import SliceScore, SplitName


@dataclass(frozen=True)
class Evaluated:
    """One model's scores on a split, each slice's gate and verdict, and the scores of the references needed."""

    model: str
    split: SplitName
    digest: str
    objective: float
    slices: Mapping[str, Slice]
    scores: Mapping[str, SliceScore]
    gates: Mapping[str, Gate]
    verdicts: list[Verdict]
    references: Mapping[str, Mapping[str, SliceScore]]

    @property
    def feasible(self) -> bool:
        return all(v.passed for v in self.verdicts)


def evaluate(
    model: str | Path,
    fitness: str | Path,
    *,
    split: SplitName = "holdout",
    references: Mapping[str, str] | None = None,
    device: str = "auto",
    memory: str | None = None,
    observer: Observer | None = None,
) -> Evaluated:
    """Score a checkpoint (folder or hub id) or a recipe (a YAML file, merged in memory) and hold it to its floors.

    Relative floors need their references measured: a recipe brings its base and sources (a source is called as its
    folder is); for a checkpoint, or under other names, `references` maps a name ("base", a source's) to a model.
    `device` and `memory` are as in `search`.

    Raises:
        InputError: something that was given is wrong.
        TrialError: the model could not be scored.
    """
    observer = observer or Observer()
    file = Path(fitness)
    spec = read_fitness(file)
    recipe = _recipe(model)
    given = {**(_parents(recipe) if recipe else {}), **(references or {})}
    check_fitness(spec, [name for name in given if name != "base"])
    needed = _needed(spec, given)
    opened = SourceBank()
    shape = opened.add(Checkpoint.open(_shape(recipe, model)))
    dtype = _dtype(recipe, shape)
    planned = plan(recipe or as_it_is(shape.reference, dtype), opened.open)
    placement = place_models(planned, dtype, {c.reference: c for c in planned.checkpoints}, device, memory)
    for about, line in placement.facts().items():
        observer.note(f"{about}: {line}")
    observer.phase("loading the model")
    bank = SourceBank(placement=placement)
    for checkpoint in planned.checkpoints:
        bank.add(checkpoint)
    tokenizer = output_tokenizer(recipe.output, planned).load() if recipe else None
    resident = Resident(shape, bank, dtype, placement.room, planned=planned, tokenizer=tokenizer)
    observer.phase("building the tasks")
    suite = Suite.build(spec, resident.model, resident.tokenizer, split)
    measured = {}
    for name, reference in needed.items():
        observer.phase(f"scoring {name}")
        _load(resident, reference, recipe, planned.vocabulary)
        measured[name] = suite.score(split)
    observer.phase("scoring the model")
    digest = resident.materialize(recipe or as_it_is(shape.reference, dtype))
    scores = suite.score(split, observer.slice_started)
    gates = settle(suite.slices, measured)
    verdicts = judge(scores, gates, scales(measured, gates), spec.confidence)
    objective = load(OBJECTIVES[spec.objective])({name: s.value for name, s in scores.items()}, suite.weights)
    return Evaluated(str(model), split, digest, objective, suite.slices, scores, gates, verdicts, measured)


def _load(resident: Resident, reference: str, recipe: Recipe | None, vocabulary: Vocabulary) -> None:
    """Make the model a reference, brought to the merge's vocabulary if the merge has one of its own."""
    if recipe is None:
        resident.load(reference)
        return
    merge = next((d for d in recipe.documents if d.tokenizer and reference in Recipe((d,)).models()), None)
    if merge is not None:
        resident.materialize(alone(merge, reference, resident.dtype))
        return
    own = Vocabulary.of(resident.bank.open(reference).tokenizer_path)
    if own != vocabulary and own.tokens != vocabulary.tokens:
        problem = f"{reference} and the merged model have different vocabularies"
        raise InputError(problem, "give the slices floors that are not relative to it")
    resident.load(reference)


def _recipe(model: str | Path) -> Recipe | None:
    path = Path(model)
    return read_recipe(path) if path.suffix in (".yaml", ".yml") else None


def _parents(recipe: Recipe) -> dict[str, str]:
    """The recipe's checkpoints by name: its base, and its sources by the name of their folder."""
    bases = [d.base for d in recipe.documents if d.base]
    named = {Path(m.partition("@")[0]).name: m for m in recipe.models() if m not in bases}
    return {**({"base": bases[0]} if bases else {}), **named}


def _needed(spec: FitnessSpec, given: Mapping[str, str]) -> dict[str, str]:
    """The references that some floor is relative to. InputError where one is not given."""
    wanted: dict[str, str] = {}
    for piece in spec.slices.values():
        if piece.floor is None or piece.floor.of is None:
            continue
        of = piece.floor.of
        names = [n for n in given if n != "base"] if of == "best_source" else [of]
        if not names or any(n not in given for n in names):
            name = "NAME" if of == "best_source" else of
            problem = f"the floor of {piece.name!r} is relative to {of!r}, which is not given"
            raise InputError(problem, f"add --reference {name}=MODEL", piece.floor.where)
        wanted.update({n: given[n] for n in names})
    return wanted


def _shape(recipe: Recipe | None, model: str | Path) -> str:
    """The checkpoint that the resident model is built from."""
    if recipe is None:
        return str(model)
    return next((d.base for d in reversed(recipe.documents) if d.base), recipe.models()[0])


def _dtype(recipe: Recipe | None, shape: Checkpoint) -> str:
    if recipe is None:
        return shape.dtype
    return recipe.output.out_dtype or recipe.output.dtype or shape.dtype
