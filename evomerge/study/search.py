"""`evomerge.search` and `evomerge.resume`: launch a study or continue it, gate it, name the winner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.checkpoints.pickled import allow_pickles, with_pickles
from evomerge.deprecated import renamed
from evomerge.evaluator.device import number_of_workers, parse_memory
from evomerge.evaluator.shares import check_workers, resumed_device
from evomerge.files.resolved import fitness_data, space_data
from evomerge.interrupts import listening
from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.build import build
from evomerge.safety.durable import write_whole
from evomerge.scoring.slices import SliceInfo
from evomerge.scoring.tasks.benchmarks import benchmark_doubts
from evomerge.study import holdout, loop, polish
from evomerge.study.after.dataframe import trials_dataframe
from evomerge.study.after.transfer import StartingPoint, starting_point
from evomerge.study.documents import keep_documents
from evomerge.study.executors import executor_of
from evomerge.study.gradients.contributions import contributions
from evomerge.study.look import look_ahead
from evomerge.study.observer import Observer
from evomerge.study.page import with_page
from evomerge.study.prepare import (
    Plan,
    aligned_plan,
    check_budget,
    large_deltas_of,
    launch_settings,
    launched_plan,
    new_run,
    resumed_plan,
)
from evomerge.study.repair import restore_items
from evomerge.study.run.copies import ItemsCopy, absolute_place, copying, items_copy
from evomerge.study.run.database import without_password
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.guarding import diagnosed, logged
from evomerge.study.run.holding import held
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.manifest import Environment, Launch, write_launch
from evomerge.study.run.release import (
    Contributions,
    Release,
    record_contributions,
    recorded_contributions,
    released,
)
from evomerge.study.run.store import Store, open_storage
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session
from evomerge.study.trackers.tracker import Tracker, make_trackers, tracker_names
from evomerge.study.trackers.tracking import tracked
from evomerge.versions import versions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """How a search ended.

    Attributes:
        search, holdout: rank the trials by their scores on either split.
        winner: the best merge that passes every floor on the holdout split, or None.
        gained: what gradient steps gained, where some were taken.
        release: how the winner was found.
    """

    folder: RunFolder
    search: Leaderboard
    holdout: Leaderboard
    winner: Trial | None
    slices: Mapping[str, SliceInfo]
    confidence: float | None
    gained: Contributions | None = None
    release: Release | None = None

    def metrics(self, trial: Trial) -> dict[str, float]:
        """A trial's scores in the metrics' own directions, by slice; `Trial.scores` are oriented: higher is better."""
        return {name: self.slices[name].show(value) for name, value in trial.scores.items()}

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What a run's storage tells of each slice."""
        return {name: info.facts for name, info in self.slices.items()}

    def trials_dataframe(self) -> pd.DataFrame:
        """One row a trial, by its search scores (`after.dataframe.trials_dataframe`)."""
        return trials_dataframe(self.search)


@renamed(begin="from_run")
@listening()
@with_page
@with_pickles
def search(
    space: str | Path,
    *,
    run: str | None = None,
    trials: int | None = None,
    time: float | None = None,
    items: int | None = None,
    optimizer: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    fitness: str | Path | None = None,
    storage: str | None = None,
    copy_items: str | None = None,
    settings: Sequence[str] = (),
    workers: int | Literal["auto"] | None = None,
    ray: str | None = None,
    asynchronous: bool = False,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    from_run: str | None = None,
    trackers: Sequence[str | Tracker] = (),
    observer: Observer | None = None,
) -> Result:
    """Search the space that a file describes and name the best merge that keeps every floor.

    Args:
        space: the search-space file.
        run: the run's name (in ``./runs``) or path; default: the file's name without its ending.
        trials, time, items: the budget (trials; seconds of evaluation; items scored) in place of the file's.
        optimizer, seed, fitness: in place of the file's.
        device: "cpu", "cuda", "cuda:1", several GPUs ("cuda:0,cuda:1") to cut the model between, or "auto" (one GPU if
            the model fits there, else all; without any, the CPU).
        memory: the most memory for the base and the sources: on the device ("20GB"; on the CPU, of the host), or
            "device=20GB,host=64GB". What has no room is read from the files. Default: what is free.
        storage: an Optuna storage URL in place of the run's own journal. The run remembers it without its password
            (`study.run.database`).
        copy_items: a URL that fsspec knows, or a path, where the run's items are copied to.
        settings: further ``dotted.key=value`` overrides of the space file (``fitness.`` ones of the fitness file).
        workers: so many processes score candidates, each with a model of its own. They share the devices (see
            `shares.deal`; "auto" means all GPUs then) and `memory`, and `time` is the time that passes. "auto": one for
            each GPU, on a Ray cluster as many as there is room for at any time. Default: 1, on a cluster "auto".
        ray: the address of a Ray cluster on whose nodes the workers are ("auto": of the one that runs here, "local":
            one of this machine alone is started). `memory` is that of each node then.
        asynchronous: ask the optimizer as soon as a worker is free, in place of the file's ``optimizer.asynchronous``.
        trust_tasks: tasks may run code that stands outside of the folders under the fitness file's ``include``, or
            comes from the hub.
        allow_pickle: pickled weights are read, too, where a model has no others; no code of them is run. The run
            remembers it.
        from_run: another run of the same models, whose winner is the first candidate ("RUN", or "RUN:TRIAL" for another
            trial of it), carried over exactly into this space, which may be finer; in a space of paths it is the model
            `winner`.
        trackers: record the trials: "mlflow", "wandb", "tensorboard", "trackio", or a `Tracker` of your own.
        observer: is told what happens.

    Raises:
        InputError: something that was given is wrong; nothing was written.
    """
    observer = observer or Observer()
    count = number_of_workers(workers, device, ray)
    parse_memory(memory)
    tracking = make_trackers(trackers)
    folder, url = new_run(space, run, storage)
    copy = items_copy(copy_items := absolute_place(copy_items), folder, observer.warn)
    launch = Launch(
        space=str(Path(space).absolute()),
        settings=(*settings, *launch_settings(trials, time, seed, asynchronous, items)),
        optimizer=optimizer,
        fitness=str(Path(fitness).absolute()) if fitness else None,
        folder=str(Path.cwd()),
        trust_tasks=trust_tasks,
        allow_pickle=allow_pickle,
    )
    with aligned_plan(launched_plan(launch, from_run), folder, observer) as plan:
        for line in (*large_deltas_of(plan), *benchmark_doubts(plan.fitness)):
            observer.warn(line)
        for topic, line in plan.space.facts().items():
            observer.note(f"{topic}: {line}")
        for line in plan.notes:
            observer.note(f"sources: {line}")
        first = starting_point(from_run, plan.models) if from_run is not None and plan.former is None else None
        with (
            executor_of(plan, device, memory, count, ray, observer) as executor,
            diagnosed(folder),
            folder.claim(plan.spec.to_align),
            logged(folder),
        ):
            facts: dict[str, Any] = {"device": executor.devices, "memory": memory}
            facts |= {"workers": count or executor.num_workers}
            facts |= {"storage": without_password(url)} | ({"copy_items": copy_items} if copy else {})
            facts |= {"ray": {"address": ray, "workers": count}} if ray is not None else {}
            if copy is not None:
                copy.claim()
            facts |= {"begin": asdict(first)} if first else {}
            facts |= {"matched": list(plan.spec.matched.models)} if plan.spec.matched else {}
            facts |= {"trackers": names} if (names := tracker_names(trackers)) else {}
            facts |= {"engines": executor.info.engines} if executor.info.engines else {}
            if plan.former is not None and plan.spec.winner is not None:
                write_whole(folder.winner, plan.spec.winner)
                facts |= {"begin": plan.former.facts()}
            write_launch(folder, launch, plan.spec, plan.fitness, plan.checkpoints, executor.digests, facts)
            opened = open_storage(folder.journal, url, observer.warn)
            with held(opened, folder.name, observer.warn) as hold:
                store = Store.create(opened, folder.name, plan.space.dimensions, hold)
                session = Session(folder, store, plan, executor, observer, first)
                budget = loop.Budget(plan.spec.trials, plan.spec.seconds, plan.spec.most_items)
                return _run(session, budget, tracking, copy)


@listening()
@with_page
@with_pickles
def resume(
    run: str | Path,
    *,
    trials: int | None = None,
    time: float | None = None,
    items: int | None = None,
    device: str | None = None,
    memory: str | None = None,
    workers: int | Literal["auto"] | None = None,
    ray: str | None = None,
    copy_items: str | None = None,
    trackers: Sequence[str | Tracker] | None = None,
    observer: Observer | None = None,
) -> Result:
    """Continue a run exactly where it stopped, however it stopped. `trials`, `time` and `items` are new totals;
    `device` and `memory` are the launch's unless one of them is given, and so are the number of `workers`, the address
    of the cluster (`ray`; "off": the workers are on this machine), the URL of `copy_items` and the names of `trackers`.

    Raises:
        InputError: there is no such run, or its checkpoints, files or items changed since its launch.
        BusyError: another process holds it.
    """
    observer = observer or Observer()
    check_budget(trials, time, items)
    if workers != "auto":
        check_workers(workers)
    folder = RunFolder.existing(run)
    with diagnosed(folder), folder.lock(), logged(folder):
        environment = Environment.read(folder)
        allow_pickles(environment.launch.allow_pickle)
        tracking = make_trackers(environment.trackers if trackers is None else trackers)
        copy = items_copy(absolute_place(copy_items) or environment.copy_items, folder, observer.warn)
        plan = resumed_plan(folder, environment)
        for line in plan.notes:
            observer.warn(line)
        if device is None and memory is None:
            memory = environment.memory
        cluster, launched = environment.workers_of(ray)
        count = number_of_workers(launched if workers is None else workers, device or "auto", cluster)
        before = environment.workers if environment.ray is None and cluster is None else None
        place = device or resumed_device(environment.device, before, count)
        with (
            _reopened(folder, environment, plan, observer) as store,
            executor_of(plan, place, memory, count, cluster, observer) as executor,
        ):
            environment.check_items(folder, executor.digests)
            served = environment.check_engines(folder, executor.info.engines)
            if changed := ", ".join(filter(None, (environment.changed_versions(), served))):
                observer.warn(f"other versions than at the launch, scores may differ slightly: {changed}")
            first = StartingPoint(**environment.begin) if environment.begin and plan.former is None else None
            session = Session(folder, store, plan, executor, observer, first)
            return _run(session, _extended(session, trials, time, items), tracking, copy)


@contextmanager
def _reopened(folder: RunFolder, environment: Environment, plan: Plan, observer: Observer) -> Iterator[Store]:
    """The run's study, held; a run that died before its study was made gets it now."""
    storage = open_storage(folder.journal, environment.storage, observer.warn)
    with held(storage, environment.study, observer.warn) as hold:
        store = Store.open(storage, environment.study, plan.space.dimensions, hold)
        if (store is None or not store.as_ended()) and (lost := environment.study_missing(folder)):
            raise lost
        if store is None:
            store = Store.create(storage, environment.study, plan.space.dimensions, hold)
        store.take()
        yield store


def _run(session: Session, budget: loop.Budget, trackers: Sequence[Tracker], copy: ItemsCopy | None) -> Result:
    session.trials.items_copy = copy
    restore_items(session)
    with copying(copy):
        last = released(session.store)
        if last is not None and _is_last(last, session, budget):
            return _as_released(session, last)
        return _tracked(session, budget, trackers)


def _tracked(session: Session, budget: loop.Budget, trackers: Sequence[Tracker]) -> Result:
    plan = session.plan
    config = {"space": space_data(plan.spec), "fitness": fitness_data(plan.fitness), "versions": versions()}
    with tracked(session.trials, trackers, config) as tracking:
        result = _searched(session, budget)
        tracking.finish("finished", result.search, result.winner)
    return result


def _searched(session: Session, budget: loop.Budget) -> Result:
    spec, slices = session.plan.spec, session.executor.info.slices
    limits = budget.to_data()
    session.store.record("budget", limits)
    facts = {name: info.facts for name, info in slices.items()}
    session.store.record("slices", facts)
    keep_documents(session)
    session.describe()
    spent = session.trials.spent()[1]
    left = None if budget.seconds is None else budget.seconds - spent
    signs = {name: s.sign for name, s in slices.items()}
    session.observer.launched(session.folder.name, budget.trials, left, signs, spent)

    # What is proposed depends on how many workers the run was launched with, however many resume it.
    num_workers = session.store.facts.get("hands", session.executor.num_workers)
    session.store.record("hands", num_workers)

    def make(start: Start) -> Optimizer:
        name, seed = spec.optimizer["name"], spec.optimizer["seed"]
        objectives = max(1, len(session.plan.fitness.traded))
        dimensions = session.plan.space.dimensions
        return build(name, dimensions, seed, spec.options, start, spec.asynchronous, objectives, num_workers)

    if session.executor.num_workers > 1 and make(Start()).generation.askable == 1:
        problem = f"{spec.optimizer['name']} proposes one candidate at a time, which is work for one worker"
        session.observer.warn(f"{problem}; a search launched with --asynchronous uses all of them")
    loop.run(session, make, budget.without(polish.kept(session, budget)), between=look_ahead)
    polish.polish(session, budget)
    gained = None
    if session.gradients is not None:
        gained = contributions(session.trials.as_ended, session.outcome, session.plan.space.dimensions)
    if gained is not None:
        record_contributions(session.store, gained)
    session.observer.phase("scoring the best candidates on the holdout split")
    return _result(session, holdout.release(session, limits), gained)


def _is_last(release: Release, session: Session, budget: loop.Budget) -> bool:
    """Whether no trial has ended after this release, and none is to come: the run is finished. One that a killed
    process left in flight stays so where the budget ended before its turn."""
    trials = session.trials
    same = release.budget == budget.to_data() and not trials.in_flight()
    return release.after == trials.spent()[0] and (same or not budget.left(session, 1))


def _as_released(session: Session, release: Release) -> Result:
    """The result of a finished run, which stays as it is."""
    session.observer.note("the run is finished: nothing to do; --trials N, a larger total, goes on with it")
    session.trials.settle(Floors.from_data(session.store.facts["gates"]))
    if release.winner is not None:
        holdout.publish(session, release.winner)
    return _result(session, release, recorded_contributions(session.store))


def _result(session: Session, release: Release, gained: Contributions | None) -> Result:
    confidence = session.plan.fitness.confidence
    slices = session.executor.info.slices
    return Result(
        session.folder, session.leaderboard, release.leaderboard, release.winner, slices, confidence, gained, release
    )


def _extended(session: Session, trials: int | None, time: float | None, items: int | None) -> loop.Budget:
    """The last budget with the new totals. A new total of one kind alone lifts no other limit."""
    spec = session.plan.spec
    last = session.store.facts.get("budget", loop.Budget(spec.trials, spec.seconds, spec.most_items).to_data())
    done, seconds = session.trials.spent()
    if trials is not None and trials < done:
        session.observer.warn(f"the run has {done} finished trials already; --trials is a total")
        trials = None
    budget = loop.Budget(
        trials if trials is not None else last["trials"],
        time if time is not None else last["seconds"],
        items if items is not None else last.get("items"),
    )
    if budget.seconds is not None and seconds >= budget.seconds:
        session.observer.warn(f"{seconds:.0f} of {budget.seconds:.0f} s are used up; --time gives a new total")
    n_items = session.trials.n_items
    if budget.items is not None and n_items >= budget.items:
        session.observer.warn(f"{n_items:,} of {budget.items:,} items are used up; --items gives a new total")
    return budget
