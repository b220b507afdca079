"""From files to a checked study, reading only headers: what can be wrong is found before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.references import check_reference
from evomerge.errors import InputError, RemovedError, Where
from evomerge.evaluator.models import OpenModels, open_models
from evomerge.files.common import LONGEST_SPAN
from evomerge.files.objects import INCLUDE, PRUNERS, WINDOW, FitnessSpec, GeneSpec, SpaceSpec
from evomerge.files.pair import read_files
from evomerge.optimize.declarations import (
    UNWEIGHTED,
    OptionError,
    check_options,
    check_reference_genomes,
    declaration,
    trading,
    uses_gradient,
)
from evomerge.registry import CHOICES, METHODS, OPTIMIZERS, PARETO
from evomerge.scoring.preflight import check_fitness, check_images_taken
from evomerge.space.base import SearchSpace
from evomerge.study.aligned import alignable, aligned_copies, with_copies
from evomerge.study.matched import as_launched, check_matched, without_copies
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.former import FormerWinner, with_recorded
from evomerge.study.run.manifest import Environment, Launch


@dataclass(frozen=True)
class Plan:
    """A study that passed its checks: both files, and the models that they name, opened by their headers. `former`: the
    trial of another run that is one of them. `notes`: what patterns of sources matched beside them, in lines."""

    spec: SpaceSpec
    fitness: FitnessSpec
    models: OpenModels
    former: FormerWinner | None = None
    notes: tuple[str, ...] = ()

    @property
    def space(self) -> SearchSpace:
        return self.models.space

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return self.models.checkpoints


def new_run(space: str | Path, run: str | Path | None, storage: str | None) -> tuple[RunFolder, str | None]:
    """The folder of a run to launch, and the URL of its storage, absolute. Writes nothing.

    Raises:
        InputError: there is such a run already, in the folder or in the storage, or one of them cannot be made.
    """
    folder = RunFolder.launched(run, space)
    if storage is None:
        return folder, None
    # optuna takes a second to import.
    from evomerge.study.run.database import absolute_url, check_storage
    from evomerge.study.run.store import Store, open_storage

    url = absolute_url(storage)
    if check_storage(url) and Store.open(open_storage(folder.journal, url), folder.name) is not None:
        raise InputError(f"the storage has a study {folder.name!r} already", "choose another --run NAME")
    return folder, url


def check_places(spec: SpaceSpec) -> None:
    """InputError where a model is neither a folder nor a possible hub id. Nothing is opened or fetched."""
    for ref in spec.models:
        check_reference(str(ref), ref.where)


def launched_plan(launch: Launch, begin: str | None = None) -> Plan:
    """The plan of a new run. `begin`: the run whose winner is a model of a path. Raises InputError."""
    # optuna takes a second to import.
    from evomerge.study.after.winner import check_winner, with_winner

    spec, fitness = launch.read()
    check_places(spec)
    spec, former = with_winner(spec, begin)
    check_files(spec, fitness)
    plan = make_plan(spec, fitness, former)
    if former is not None and begin is not None:
        check_winner(begin, plan.models)
    distinct, copies = without_copies(spec, plan.checkpoints)
    if copies:
        check_files(distinct, fitness)
        plan = make_plan(distinct, fitness, former)
    return replace(plan, notes=(*(spec.matched.notes if spec.matched else ()), *copies))


@contextmanager
def aligned_plan(plan: Plan, folder: RunFolder, observer: Observer) -> Iterator[Plan]:
    """The plan of a new run over the aligned copies that its space asks for, which are written first. They are deleted
    if the run is not launched in the context. Raises InputError."""
    with aligned_copies(plan.spec, plan.models.base, plan.models.sources, folder, observer) as spec:
        yield plan if spec is plan.spec else replace(make_plan(spec, plan.fitness, plan.former), notes=plan.notes)


def resumed_plan(folder: RunFolder, environment: Environment) -> Plan:
    """The plan of a run's own copies of its files. InputError, naming the changes, where they, the originals (if both
    are still there) or the checkpoints are not what was launched."""
    try:
        spec, fitness = read_files(folder.space, fitness=folder.fitness)
        fitness = replace(fitness, trust_tasks=environment.launch.trust_tasks)
    except RemovedError as error:
        problem = f"the run {folder.name!r} cannot be resumed: {error.problem}"
        mend = "launch a new run; status, rank, compare and export still read this one"
        raise InputError(problem, mend, error.where) from None
    spec = with_recorded(spec, folder, environment)
    environment.check_files(folder, spec, fitness)
    notes: tuple[str, ...] = ()
    launched = Path(environment.launch.space)
    if launched.is_file() and environment.matched:
        notes = check_matched(folder, environment, spec, environment.launch.read()[0])
    plan = make_plan(with_copies(spec, folder), fitness, FormerWinner.recorded(environment))
    if launched.is_file():
        mine, scores = environment.launch.read(environment.matched or None)
        mine = as_launched(mine, spec) if environment.matched else mine
        environment.check_files(folder, with_recorded(mine, folder, environment), scores)
    check_files(spec, fitness)
    environment.check_checkpoints(folder, plan.checkpoints)
    return replace(plan, notes=notes)


def make_plan(spec: SpaceSpec, fitness: FitnessSpec, former: FormerWinner | None = None) -> Plan:
    """Opens the models of checked files. Raises InputError."""
    models = open_models(spec, fitness)
    if not models.space.dimensions:
        mend = "freeze less" if spec.dataflow is None else "name deeper models, or more of them"
        raise InputError("leaves nothing to search", mend, spec.at("freeze" if spec.dataflow is None else "path"))
    check_start(spec, models.space)
    check_images_taken(fitness, models.base)
    for name, ref in spec.to_align.items():
        if ref.copy is None:
            alignable(models.base, models.sources[name], ref)
    return Plan(spec, fitness, models, former)


def large_deltas_of(plan: Plan) -> list[str]:
    """The line that says that DARE is searched over deltas too large for it; nothing where it is not."""
    # numpy takes a moment to import, and few spaces use DARE.
    from evomerge.checkpoints.samples.training import dare_doubts

    return dare_doubts(plan.models.base, plan.models.sources, plan.spec.methods)


def check_files(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """All that both files can be checked for without a checkpoint: options, tasks, metrics, data. Raises InputError."""
    _check_options(spec)
    _check_paths(spec, fitness)
    _check_choices(spec)
    _check_front(spec, fitness)
    check_slopes(spec, fitness)
    _check_budget(spec)
    _check_pruning(spec, fitness)
    check_fitness(fitness, list(spec.sources))


def _check_options(spec: SpaceSpec) -> None:
    if not spec.genes and not spec.stacks:
        problem = "holds no gene: there is nothing to search"
        raise InputError(problem, "give at least one gene a range", spec.at("genes"))
    with _options_placed(spec):
        check_options(spec.optimizer["name"], spec.options)


def _check_paths(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """InputError where layers are stacked, and the optimizer or the kind of model is for other spaces."""
    name = spec.optimizer["name"]
    if spec.dataflow is None:
        return
    if uses_gradient(name, spec.options):
        given = name if declaration(name).needs_gradient else "warm_start: gradient"
        key = "optimizer.warm_start" if "warm_start" in spec.options else "optimizer"
        problem = f"{given} follows slopes, and the layers of a path have none"
        raise InputError(problem, "use another optimizer, or `warm_start: true`", spec.at(key))
    if spec.stacks and not declaration(name).takes_start:
        problem = f"{name} goes by merges of known models, and a path merges none"
        raise InputError(problem, "use another optimizer", spec.at("optimizer"))
    if fitness.model is not None:
        problem = "stacks layers of language models, and `model` of the fitness file builds another one"
        raise InputError(problem, "write `space: weights`, or remove `model`", spec.at("space"))


def check_start(spec: SpaceSpec, space: SearchSpace) -> None:
    """InputError where the optimizer goes by models that the space does not hold."""
    with _options_placed(spec):
        check_reference_genomes(spec.optimizer["name"], spec.options, list(spec.sources), space.reference_genomes)


@contextmanager
def _options_placed(spec: SpaceSpec) -> Iterator[None]:
    """Says where in the file a wrong option of the optimizer stands."""
    try:
        yield
    except OptionError as error:
        key = f"optimizer.{error.key}"
        raise InputError(error.problem, error.mend, spec.at(key if key in spec.where else "optimizer")) from None


def _check_choices(spec: SpaceSpec) -> None:
    """InputError where a gene is a choice and the optimizer takes numbers only."""
    name = spec.optimizer["name"]
    gene = next((gene for gene in spec.genes if gene.choices), None)
    if gene is not None and not declaration(name).choices:
        able = [other for other in OPTIMIZERS if declaration(other).choices]
        problem = f"{gene.name} is a choice, and {name} takes numbers only"
        raise InputError(problem, f"use the optimizer {_either(able)}, or one of the choices", gene.where)


def _check_front(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """InputError where a front is asked for of an optimizer that keeps none, or of more or fewer slices than it can."""
    if fitness.objective != PARETO:
        return
    name, count, where = spec.optimizer["name"], len(fitness.traded), fitness.at("objective")
    most = declaration(name).objectives
    able = f"use the optimizer {_either(trading(count))}" if trading(count) else "leave slices out"
    if count < 2:
        problem = f"pareto trades slices off against each other, and {count or 'none'} has a weight above 0"
        raise InputError(problem, "use weighted_mean, or give another slice a weight", where)
    if most == 1:
        problem = f"pareto keeps a front of trade-offs, and the optimizer {name} follows one number"
        raise InputError(problem, f"{able}, or weighted_mean", where)
    if count > most:
        problem = f"{count} slices are more than the {most} that {name} can trade off"
        raise InputError(problem, f"{able}, or give slices weight 0: they only keep their floors", where)


def _either(names: Sequence[str]) -> str:
    return " or ".join(names[:3])


def _check_budget(spec: SpaceSpec) -> None:
    references = len(spec.sources) + (1 if spec.stacks else 2) + (spec.winner is not None)
    least = references if spec.optimizer["name"] == "uniform-soup" else references + 1  # the average is its trial
    if spec.trials is not None and spec.trials < least:
        models = "base and sources" if spec.stacks else "base, sources and average"
        problem = f"{spec.trials} trials leave none to search: {models} are {references}"
        raise InputError(problem, f"give at least {least}", spec.at("budget.trials"))


def _check_pruning(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """Racing that was asked for by name; by default it just does not take place (`study.racing.racer`)."""
    if spec.asynchronous and "racing" in fitness.pruning and fitness.pruning != PRUNERS:
        problem = "racing compares the candidates of a generation, and an asynchronous search has none"
        raise InputError(problem, "leave it out (pruning: [early_stop]), or asynchronous", fitness.at("pruning"))


def check_slopes(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """InputError where slopes are asked for of a method, a gene or a slice that has none."""
    name = spec.optimizer["name"]
    if not uses_gradient(name, spec.options):
        return
    alone = declaration(name).needs_gradient
    _check_source_genes(spec, name)
    _check_methods(spec, "use another optimizer" if alone else "use `warm_start: true`")
    differentiable = [gene for gene in spec.genes if not gene.choices and _has_slope(spec, gene)]
    other = next((gene for gene in spec.genes if gene not in differentiable), None)
    if other is not None and (alone or not differentiable):
        problem = f"{other.name} only chooses elements, and has no slope for {name} to follow"
        if other.choices:
            problem = f"{other.name} is a choice, and has no slope for {name} to follow"
        held = f"fix it (`fixed: {{{other.name}: {other.init:g}}}`)" if isinstance(other.init, float) else "fix it"
        mend = f"{held}, or use `warm_start: gradient` of another optimizer, which searches it without"
        raise InputError(problem, mend if alone else "search a weight, or use `warm_start: true`", other.where)
    _check_slices(fitness, name, alone)


def _check_source_genes(spec: SpaceSpec, optimizer: str) -> None:
    """Which models are merged, and how many, changes in steps."""
    gene = next((gene for gene in spec.genes if gene.name in (INCLUDE, WINDOW)), None)
    if gene is not None:
        problem = f"{gene.name} says which models are merged, and has no slope for {optimizer} to follow"
        mend = "write `include: false`" if gene.name == INCLUDE else "use another optimizer, or `warm_start: true`"
        raise InputError(problem, mend, gene.where)


def _check_methods(spec: SpaceSpec, mend: str) -> None:
    for method in spec.methods:
        if not METHODS[CHOICES[method].method].differentiable:
            methods = [name for name, choice in CHOICES.items() if METHODS[choice.method].differentiable]
            able = [name for name in methods if name != "uniform_soup"]
            problem = f"{method} gives no slopes for its parameters"
            raise InputError(problem, f"{mend}, or one of {', '.join(able)}", spec.at("genes.method"))


def _has_slope(spec: SpaceSpec, gene: GeneSpec) -> bool:
    """In each of the methods that take it."""
    takers = [CHOICES[m] for m in spec.methods if any(p.name == gene.name for p in CHOICES[m].parameters)]
    return all(gene.name in METHODS[choice.method].differentiable for choice in takers)


def _check_slices(fitness: FitnessSpec, optimizer: str, alone: bool) -> None:
    """Checks the slices that count. The request type of a task of lm-eval's own is only known when it is built (see
    `TrialGradients`)."""
    counting = [spec for spec in fitness.slices.values() if spec.weight > 0]
    reasons = {}
    for spec in counting:
        if spec.measure is not None:
            reasons[spec.name] = f"its {spec.measure}"
        elif spec.python is not None:
            reasons[spec.name] = "a Python function"
        elif spec.command is not None:
            reasons[spec.name] = "a command"
        elif spec.of is not None:
            reasons[spec.name] = "the length of answers"
    lost = next((spec for spec in counting if spec.name in reasons), None)
    if lost is not None and (alone or len(reasons) == len(counting)):
        problem = f"slice {lost.name} is scored by {reasons[lost.name]}, which has no slope for {optimizer} to follow"
        mend = UNWEIGHTED if alone else "add a slice of texts or choices, or use `warm_start: true`"
        raise InputError(problem, mend, lost.where)


def launch_settings(
    trials: int | None,
    time: float | None,
    seed: int | None,
    asynchronous: bool = False,
    items: int | None = None,
) -> list[str]:
    """Options of the command line as settings of the space file. InputError where they are no budget."""
    check_budget(trials, time, items)
    if seed is not None and not 0 <= seed < 2**31:
        raise InputError(f"{seed} is no seed", "give a whole number from 0 to 2147483647", Where("--seed"))
    settings = {"budget.trials": trials, "budget.time": time, "budget.items": items, "optimizer.seed": seed,
             "optimizer.asynchronous": "true" if asynchronous else None}  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items() if value is not None]


def check_budget(trials: int | None, time: float | None, items: int | None = None) -> None:
    if trials is not None and trials < 1:
        raise InputError(f"{trials} trials are no budget", "give at least 1", Where("--trials"))
    if time is not None and not 0 < time <= LONGEST_SPAN:
        raise InputError(f"{time:g} seconds are no budget", "give a span such as 20m", Where("--time"))
    if items is not None and items < 1:
        raise InputError(f"{items} items are no budget", "give at least 1", Where("--items"))
