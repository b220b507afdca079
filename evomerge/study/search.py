"""`evomerge.search` and `evomerge.resume`: launch a study or continue it, gate it, name the winner."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.files.resolved import fitness_data, space_data, to_yaml
from evomerge.files.space_file import read_space
from evomerge.optimize.base import build
from evomerge.study import holdout, loop
from evomerge.study.device import choose_device
from evomerge.study.folder import RunFolder, is_disk_full, write_atomic, write_json
from evomerge.study.identity import check_unchanged, versions
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan, open_checkpoints, read_files
from evomerge.study.session import Session
from evomerge.study.standing import Standing
from evomerge.study.store import Store, open_storage
from evomerge.study.trial import Trial

if TYPE_CHECKING:
    from evomerge.study.bench import Workbench


@dataclass(frozen=True)
class Result:
    """How a search ended. `winner` is the best merge that passes every floor on the holdout split, or None;
    `search` and `holdout` rank the trials by their scores on either split."""

    folder: RunFolder
    search: Standing
    holdout: Standing
    winner: Trial | None
    slices: dict[str, Any]


@dataclass(frozen=True)
class Launch:
    """What the user asked for, kept in environment.json so that `resume` reads the same files the same way."""

    space: str
    settings: tuple[str, ...] = ()
    optimizer: str | None = None
    fitness: str | None = None

    def read(self) -> tuple[SpaceSpec, FitnessSpec]:
        fitness = Path(self.fitness) if self.fitness else None
        return read_files(Path(self.space), self.settings, self.optimizer, fitness)


def search(
    space: str | Path,
    *,
    run: str | None = None,
    trials: int | None = None,
    time: float | None = None,
    optimizer: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    fitness: str | Path | None = None,
    storage: str | None = None,
    settings: Sequence[str] = (),
    observer: Observer | None = None,
) -> Result:
    """Search the space that a file describes and name the best merge that keeps every floor.

    Args:
        space: the search-space file.
        run: the run's name (in ``./runs``) or path; default: the file's name without its ending.
        trials, time: the budget (trials; seconds of evaluation) in place of the file's.
        optimizer, seed, fitness: in place of the file's.
        device: "cpu", "cuda", "cuda:1", ... or "auto".
        storage: an Optuna storage URL in place of the run's own journal.
        settings: further ``dotted.key=value`` overrides of the space file (``fitness.`` ones of the fitness file).
        observer: is told what happens.

    Raises:
        InputError: something that was given is wrong; nothing was written.
    """
    observer = observer or Observer()
    launch = Launch(
        space=str(Path(space).absolute()),
        settings=(*settings, *_budget_settings(trials, time, seed)),
        optimizer=optimizer,
        fitness=str(Path(fitness).absolute()) if fitness else None,
    )
    plan = open_checkpoints(*launch.read())
    folder = RunFolder.named(run or Path(space).stem)
    folder.check_free()
    chosen = choose_device(device)
    bench = _load(plan, chosen, observer)
    folder.create()
    with folder.lock(), _diagnosed(folder):
        store = Store.create(open_storage(folder.journal, storage, writing=True), folder.name, plan.space.dimensions)
        _write_launch(folder, launch, plan, bench, {"device": chosen, "storage": storage})
        return _run(Session(folder, store, plan, bench, observer))


def resume(
    run: str | Path,
    *,
    trials: int | None = None,
    time: float | None = None,
    device: str | None = None,
    observer: Observer | None = None,
) -> Result:
    """Continue a run exactly where it stopped, however it stopped. `trials` and `time` are new totals.

    Raises:
        InputError: there is no such run, or its checkpoints, files or items changed since its launch.
        BusyError: another process holds it.
    """
    observer = observer or Observer()
    folder = RunFolder.existing(run)
    with folder.lock(), _diagnosed(folder):
        environment = json.loads(folder.environment.read_text())
        launch = Launch(**{**environment["launch"], "settings": tuple(environment["launch"]["settings"])})
        plan = _unchanged_plan(folder, launch, environment["identity"])
        bench = _load(plan, choose_device(device or environment["device"]), observer)
        _check(folder, environment["identity"], {"items": bench.suite.items_digest()})
        if environment["versions"] != versions():
            observer.warn("package versions changed since the launch (environment.json): scores may differ slightly")
        storage = open_storage(folder.journal, environment["storage"], writing=True)
        store = Store.open(storage, environment["study"], plan.space.dimensions)
        session = Session(folder, store, plan, bench, observer)
        return _run(session, loop.Budget(*_extended(store, trials, time)))


def _load(plan: Plan, device: str, observer: Observer) -> Workbench:
    # torch, transformers and lm-eval take seconds to import: only once the input is known to be right.
    from evomerge.study.bench import Workbench

    return Workbench.load(plan, device, observer)


def _run(session: Session, budget: loop.Budget | None = None) -> Result:
    spec = session.plan.spec
    if budget is None:
        budget = loop.Budget(spec.trials, spec.seconds)
    session.store.record("budget", {"trials": budget.trials, "seconds": budget.seconds})
    signs = {name: piece.sign for name, piece in session.bench.suite.slices.items()}
    session.observer.launched(session.folder.name, budget.trials, budget.seconds, signs)
    options = {k: v for k, v in spec.optimizer.items() if k not in ("name", "seed")}
    optimizer = build(spec.optimizer["name"], session.plan.space.dimensions, spec.optimizer["seed"], options)
    loop.run(session, optimizer, budget)
    session.observer.phase("scoring the best candidates on the holdout split")
    released = holdout.release(session)
    return Result(session.folder, session.standing(), released, released.best(), session.bench.suite.slices)


def _extended(store: Store, trials: int | None, time: float | None) -> tuple[int, float | None]:
    """The last budget with the new totals. A new total of one kind alone lifts neither the other's limit."""
    last = store.facts.get("budget", {"trials": 0, "seconds": None})
    return (trials if trials is not None else last["trials"], time if time is not None else last["seconds"])


def _budget_settings(trials: int | None, time: float | None, seed: int | None) -> list[str]:
    given = {"budget.trials": trials, "budget.time": time, "optimizer.seed": seed}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


# What a run is made of.


def _write_launch(folder: RunFolder, launch: Launch, plan: Plan, bench: Workbench, facts: dict[str, Any]) -> None:
    header = f"as launched by `evomerge search`, every default filled in (run {folder.name})"
    inside = replace(plan.spec, fitness=folder.fitness)
    write_atomic(folder.space, to_yaml(space_data(inside), header))
    write_atomic(folder.fitness, to_yaml(fitness_data(plan.fitness), header))
    identity = {**_file_identity(plan.spec, plan.fitness), **_checkpoint_identity(plan)}
    write_json(
        folder.environment,
        {
            "launch": {**launch.__dict__, "settings": list(launch.settings)},
            "study": folder.name,
            "identity": {**identity, "items": bench.suite.items_digest()},
            "versions": versions(),
            **facts,
        },
    )


def _file_identity(spec: SpaceSpec, fitness: FitnessSpec) -> dict[str, Any]:
    """What both files say, without what may change between sessions: the budget, and where the fitness file lies."""
    space = {k: v for k, v in space_data(spec).items() if k not in ("budget", "fitness")}
    identity: dict[str, Any] = json.loads(json.dumps({"space file": space, "fitness file": fitness_data(fitness)}))
    return identity


def _checkpoint_identity(plan: Plan) -> dict[str, Any]:
    return {"checkpoints": {name: c.fingerprint() for name, c in plan.checkpoints.items()}}


def _unchanged_plan(folder: RunFolder, launch: Launch, identity: dict[str, Any]) -> Plan:
    """The plan of the run's own copies of its files, after checking that neither they nor the originals, where these
    still exist, nor the checkpoints changed."""
    copies = _file_identity(read_space(folder.space), read_fitness(folder.fitness))
    _check(folder, identity, copies)
    original = Path(launch.space).is_file()
    spec, fitness = launch.read() if original else read_files(folder.space)
    _check(folder, identity, _file_identity(spec, fitness))
    plan = open_checkpoints(spec, fitness)
    _check(folder, identity, _checkpoint_identity(plan))
    return plan


def _check(folder: RunFolder, identity: dict[str, Any], current: dict[str, Any]) -> None:
    check_unchanged(folder.name, {key: identity[key] for key in current}, current)


@contextmanager
def _diagnosed(folder: RunFolder) -> Iterator[None]:
    """Keep the run's log, and say plainly that a full disk stopped it: what finished is in the journal."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("evomerge")
    logger.addHandler(handler)
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        problem = f"the disk that holds {folder.path} is full; every finished trial is kept"
        raise InputError(problem, f"free some space, then `evomerge resume {folder.handle}`") from None
    finally:
        logger.removeHandler(handler)
        handler.close()
