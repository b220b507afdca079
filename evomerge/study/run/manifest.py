"""What a run was launched with, so that it can be resumed as the same study or not at all: a resumed run must find the
same checkpoints, files and items, or it would mix two studies."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import check_unchanged
from evomerge.errors import InputError
from evomerge.escape import quoted
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.files.pair import read_files
from evomerge.files.resolved import current_keys, fitness_data, space_data, to_yaml
from evomerge.safety.durable import write_whole
from evomerge.safety.read import read_object
from evomerge.study.run.folder import RunFolder
from evomerge.versions import SCORING, versions

_NAME, _NAME_OR_NONE = (str,), (str, type(None))
_TYPES: Mapping[str, tuple[type, ...]] = {
    "space": _NAME, "settings": (list,), "optimizer": _NAME_OR_NONE, "fitness": _NAME_OR_NONE, "folder": _NAME,
    "trust_tasks": (bool,), "allow_pickle": (bool,), "study": _NAME, "identity": (dict,), "versions": (dict,),
    "device": _NAME, "storage": _NAME_OR_NONE, "memory": _NAME_OR_NONE, "workers": (int,), "begin": (dict, type(None)),
    "trackers": (list,), "engines": (dict,), "matched": (list,), "copy_items": _NAME_OR_NONE,
    "ray": (dict, type(None)),
}  # fmt: skip
"""What the fields of `environment.json` hold: those of `Launch`, and the others of `Environment`."""


@dataclass(frozen=True)
class Launch:
    """The user's files and the overrides from the command line; `folder` is where relative paths in these start.
    `trust_tasks`: tasks may run code from anywhere; `allow_pickle`: pickled weights may be read."""

    space: str
    settings: tuple[str, ...] = ()
    optimizer: str | None = None
    fitness: str | None = None
    folder: str = "."
    trust_tasks: bool = False
    allow_pickle: bool = False

    def read(self, known: Collection[str] | None = None) -> tuple[SpaceSpec, FitnessSpec]:
        """Both files as the user has them now. `known`: the only paths that patterns of sources may match; None: all.
        Raises InputError."""
        file = Path(self.fitness) if self.fitness else None
        spec, fitness = read_files(Path(self.space), self.settings, self.optimizer, file, Path(self.folder), known)
        return spec, replace(fitness, trust_tasks=self.trust_tasks)


def write_launch(
    folder: RunFolder,
    launch: Launch,
    spec: SpaceSpec,
    fitness: FitnessSpec,
    checkpoints: Mapping[str, Checkpoint],
    items: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Writes the run down: the files as launched, and, last, `environment.json`, which makes the folder a run.

    Args:
        folder: of the run.
        launch: what the user gave.
        spec, fitness: both files, resolved.
        checkpoints: base and sources, by name.
        items: slice -> digest of its items.
        facts: further fields of `Environment`.
    """
    identity = {**_of_files(spec, fitness), **_of_checkpoints(checkpoints), "items": dict(items)}
    header = f"as launched by `evomerge search`, every default filled in (run {folder.name})"
    write_whole(folder.space, to_yaml(space_data(replace(spec, fitness=folder.fitness)), header))
    write_whole(folder.fitness, to_yaml(fitness_data(fitness), header))
    environment = {"launch": asdict(launch), "study": folder.name, "identity": identity, "versions": versions()}
    text = json.dumps({**environment, **facts}, indent=2, sort_keys=True)
    write_whole(folder.environment, f"{text}\n")


@dataclass(frozen=True)
class Environment:
    """`environment.json`. `matched`: all models that patterns of sources matched at the launch."""

    launch: Launch
    study: str
    identity: dict[str, Any]
    versions: dict[str, str]
    device: str
    storage: str | None
    memory: str | None = None
    workers: int = 1
    begin: dict[str, Any] | None = None
    trackers: tuple[str, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    copy_items: str | None = None
    ray: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> Environment:
        """InputError where the file is not as it was written."""
        try:
            data = read_object(folder.environment)
            # Earlier versions ran the code of tasks wherever it stood.
            launch = {"trust_tasks": True, **data.pop("launch")}
            for key, value in (*data.items(), *launch.items()):
                if not isinstance(value, _TYPES[key]):
                    raise TypeError(f"{key} is {quoted(value, 40)}")
            if data.get("workers", 1) < 1:
                raise ValueError(f"workers is {data['workers']}")
            data["identity"] = current_keys(data["identity"])
            for key in ("trackers", "matched"):
                data[key] = tuple(map(str, data.get(key, ())))
            return cls(launch=Launch(**{**launch, "settings": tuple(map(str, launch["settings"]))}), **data)
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = error.problem if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            problem = f"{folder.environment} is damaged ({what})"
            raise InputError(problem, "restore it from a copy, or launch another run") from None

    def study_missing(self, folder: RunFolder) -> InputError | None:
        """The error where the storage holds no study: None for a run that died before it was made, else it was lost."""
        if not any(folder.items.glob("trial-*")):
            return None
        problem = f"the run {folder.name!r} has scores, and its storage holds no study {self.study!r}"
        return InputError(problem, f"restore {self.storage or folder.journal}")

    def workers_of(self, ray: str | None) -> tuple[str | None, int | Literal["auto"]]:
        """The address of the cluster and the number of workers of a resumed run. `ray`: the address that is given now;
        "off" for this machine."""
        address = ray or (self.ray or {}).get("address")
        if address is None or address == "off":
            return None, self.workers
        return address, (self.ray or {}).get("workers") or "auto"

    def check_files(self, folder: RunFolder, spec: SpaceSpec, fitness: FitnessSpec) -> None:
        """InputError where the files are not what was launched."""
        if self.identity["fitness file"].get("pruning") == list(fitness.pruning):
            # Earlier versions pruned by default, and such a run goes on with what it was launched with.
            fitness = replace(fitness, auto_pruning=False)
        self._check(folder, _of_files(spec, fitness))

    def check_checkpoints(self, folder: RunFolder, checkpoints: Mapping[str, Checkpoint]) -> None:
        """InputError where base and sources are not what was launched."""
        self._check(folder, _of_checkpoints(checkpoints))

    def check_items(self, folder: RunFolder, items: Mapping[str, str]) -> None:
        """InputError where the items of a slice, or how they were split, are not what was launched."""
        self._check(folder, {"items": dict(items)})

    def check_engines(self, folder: RunFolder, engines: Mapping[str, str]) -> str:
        """InputError where other slices than at the launch are answered by an engine: answers may differ. Returns what
        has another version, in words; empty where nothing has."""
        other = sorted({*self.engines} ^ {*engines})
        if other:
            now, then = (found.get(other[0], "the resident model") for found in (engines, self.engines))
            problem = (
                f"the run {folder.name!r} cannot be resumed: slice {other[0]} was answered by {then}, now by {now}"
            )
            raise InputError(problem, "resume it where both are the same, or launch a new run")
        changed = [f"{self.engines[name]} -> {now}" for name, now in engines.items() if self.engines[name] != now]
        return ", ".join(dict.fromkeys(changed))

    def changed_versions(self) -> str:
        """The packages that are of another version than at the launch, in words; empty where none is."""
        now, then = versions(), self.versions
        changed = [key for key in ("python", *SCORING) if then.get(key) != now[key]]
        return ", ".join(f"{key} {then.get(key)} -> {now[key]}" for key in changed)

    def _check(self, folder: RunFolder, current: Mapping[str, Any]) -> None:
        """InputError naming what differs between the launched study and what is there now."""
        changes = _differences({key: self.identity[key] for key in current}, current)
        if changes:
            listed = ", ".join(changes[:6]) + (f" and {len(changes) - 6} more" if len(changes) > 6 else "")
            problem = f"the run {folder.name!r} cannot be resumed, changed since its launch: {listed}"
            raise InputError(problem, "restore what changed, or launch a new run")


def _of_files(spec: SpaceSpec, fitness: FitnessSpec) -> dict[str, Any]:
    """The content of both files, without what may change between sessions: the budget, the slices' time limits, the
    workers' parts of a cluster, and where the fitness file lies."""
    space = {k: v for k, v in space_data(spec).items() if k not in ("budget", "fitness", "ray")}
    untimed = replace(fitness, slices={name: replace(s, timeout=None) for name, s in fitness.slices.items()})
    identity: dict[str, Any] = json.loads(json.dumps({"space file": space, "fitness file": fitness_data(untimed)}))
    return identity


def _of_checkpoints(checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """The content of all checkpoints, which is that of the files as they were opened."""
    fingerprints = {name: c.fingerprint() for name, c in checkpoints.items()}
    check_unchanged(checkpoints.values(), "since it was opened", "run the same command again")
    return {"checkpoints": fingerprints}


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        inner = [(key, f"{path}.{key}" if path else str(key)) for key in keys]
        return [change for key, at in inner for change in _differences(old.get(key), new.get(key), at)]
    return [] if old == new else [path]
