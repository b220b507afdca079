"""What a run was launched with, so that it can be resumed as the same study or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.files.resolved import current_keys, fitness_data, space_data, to_yaml
from evomerge.study.prepare import Plan, check_files, open_checkpoints, read_files
from evomerge.study.run.folder import RunFolder, write_atomic, write_json
from evomerge.study.run.identity import check_unchanged, versions


@dataclass(frozen=True)
class Launch:
    """The user's files and the overrides from the command line; `folder` is where relative paths in these start."""

    space: str
    settings: tuple[str, ...] = ()
    optimizer: str | None = None
    fitness: str | None = None
    folder: str = "."

    def read(self) -> tuple[SpaceSpec, FitnessSpec] | None:
        """Both files as the user has them now, or None where one of them is gone. Raises InputError."""
        if not Path(self.space).is_file():
            return None
        fitness = Path(self.fitness) if self.fitness else None
        return read_files(Path(self.space), self.settings, self.optimizer, fitness, Path(self.folder))

    def plan(self) -> Plan:
        """Read, check, open."""
        files = self.read()
        if files is None:
            files = read_files(Path(self.space))  # says that there is no such file
        check_files(*files)
        return open_checkpoints(*files)


def launch_settings(trials: int | None, time: float | None, seed: int | None, asynchronous: bool = False) -> list[str]:
    """Options of the command line as settings of the space file. InputError where they are no budget."""
    check_budget(trials, time)
    if seed is not None and not 0 <= seed < 2**31:
        raise InputError(f"{seed} is no seed", "give a whole number from 0 to 2147483647", Where("--seed"))
    given = {"budget.trials": trials, "budget.time": time, "optimizer.seed": seed,
             "optimizer.asynchronous": "true" if asynchronous else None}  # fmt: skip
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def check_budget(trials: int | None, time: float | None) -> None:
    if trials is not None and trials < 1:
        raise InputError(f"{trials} trials are no budget", "give at least 1", Where("--trials"))
    if time is not None and time <= 0:
        raise InputError(f"{time:g} seconds are no budget", "give a span such as 20m", Where("--time"))


def write_launch(
    folder: RunFolder, launch: Launch, plan: Plan, items: Mapping[str, str], facts: dict[str, Any]
) -> None:
    """Write the run down: the files as launched, and, last, `environment.json`, which makes the folder a run."""
    header = f"as launched by `evomerge search`, every default filled in (run {folder.name})"
    write_atomic(folder.space, to_yaml(space_data(replace(plan.spec, fitness=folder.fitness)), header))
    write_atomic(folder.fitness, to_yaml(fitness_data(plan.fitness), header))
    identity = {**_of_files(plan.spec, plan.fitness), **_of_checkpoints(plan), "items": dict(items)}
    about = {"launch": asdict(launch), "study": folder.name, "identity": identity, "versions": versions()}
    write_json(folder.environment, {**about, **facts})


@dataclass(frozen=True)
class Environment:
    """`environment.json`."""

    launch: Launch
    study: str
    identity: dict[str, Any]
    versions: dict[str, str]
    device: str
    storage: str | None
    memory: str | None = None
    workers: int = 1
    begin: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> Environment:
        """InputError where the file is not as it was written."""
        try:
            data = json.loads(folder.environment.read_text())
            launch = Launch(**{**data.pop("launch")})
            data["identity"] = current_keys(data["identity"])
            return cls(launch=replace(launch, settings=tuple(launch.settings)), **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{folder.environment} is damaged ({type(error).__name__}: {error})"
            raise InputError(problem, "restore it from a copy, or launch another run") from None

    def study_missing(self, folder: RunFolder) -> InputError | None:
        """What to say where the storage holds no study: nothing of a run that died before it was made, else that it was
        lost."""
        if not folder.items.is_dir() or not any(folder.items.iterdir()):
            return None
        problem = f"the run {folder.name!r} has scores, and its storage holds no study {self.study!r}"
        return InputError(problem, f"restore {self.storage or folder.journal}")


def unchanged_plan(folder: RunFolder, environment: Environment) -> Plan:
    """The plan of the run's own copies of its files. InputError, naming what changed, where they, the originals (if
    both are still there) or the checkpoints are not what was launched."""
    copies = read_files(folder.space, fitness=folder.fitness)
    _check(folder, environment, _of_files(*copies))
    plan = open_checkpoints(*copies)
    originals = environment.launch.read()
    if originals is not None:
        _check(folder, environment, _of_files(*originals))
    check_files(*copies)
    _check(folder, environment, _of_checkpoints(plan))
    return plan


def check_items(folder: RunFolder, environment: Environment, items: Mapping[str, str]) -> None:
    """InputError where the items of a slice, or how they were dealt, are not what was launched."""
    _check(folder, environment, {"items": dict(items)})


def _of_files(spec: SpaceSpec, fitness: FitnessSpec) -> dict[str, Any]:
    """What both files say, without what may change between sessions: the budget, and where the fitness file lies."""
    space = {k: v for k, v in space_data(spec).items() if k not in ("budget", "fitness")}
    identity: dict[str, Any] = json.loads(json.dumps({"space file": space, "fitness file": fitness_data(fitness)}))
    return identity


def _of_checkpoints(plan: Plan) -> dict[str, Any]:
    return {"checkpoints": {name: c.fingerprint() for name, c in plan.checkpoints.items()}}


def _check(folder: RunFolder, environment: Environment, current: dict[str, Any]) -> None:
    check_unchanged(folder.name, {key: environment.identity[key] for key in current}, current)
