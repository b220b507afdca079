"""A run's folder: its files, its lock."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from evomerge.errors import BusyError, InputError, Where, suggestion
from evomerge.safety.durable import sync_folder, write_whole
from evomerge.safety.names import name_fault
from evomerge.safety.paths import absolute, seen_from_here, status
from evomerge.safety.read import read_object

_FLAG, _UNUSUAL = Where("--run"), re.compile(r"[^\w.-]")
_OWN = ("items", "aligned", "run.lock", "search.log", "study.journal", "space.yaml", "fitness.yaml", "winner.yaml",
        "environment.json")  # fmt: skip
"""What a launch makes; hidden ones are being written. A whole `environment.json` makes the folder a run."""
STARTERS = ("starter-space.yaml", "starter-fitness.yaml")
"""The files that a search of models without a space file was given, in the run that they launch."""


class RunFolder:
    """``runs/<name>/``. Creating the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.name = self.path.name
        self.journal = self.path / "study.journal"
        self.space = self.path / "space.yaml"
        self.fitness = self.path / "fitness.yaml"
        self.winner = self.path / "winner.yaml"
        self.environment = self.path / "environment.json"
        self.items = self.path / "items"
        self.aligned = self.path / "aligned"
        self.best = self.path / "best.yaml"
        self.log = self.path / "search.log"
        self.summary = self.path / "summary.txt"
        self.report = self.path / "report.html"

    @property
    def handle(self) -> str:
        """What to call the run by on the command line: its name, or its path where it is not in ``./runs``."""
        return self.name if self.path.parent == Path("runs").resolve() else shlex.quote(seen_from_here(self.path))

    @classmethod
    def named(cls, run: str | Path, root: Path = Path("runs"), where: Where | None = None) -> RunFolder:
        """A run by name (in `root`), or by path where the text is more than a name. InputError if it can be neither."""
        return cls(absolute(root / run if is_name(run) else run, where=where))

    @classmethod
    def launched(cls, run: str | Path | None, space: str | Path) -> RunFolder:
        """The folder of a run to launch: by name or path, or named like its space file. InputError if it has no legal
        name, is there already, or cannot be made."""
        mend = "use letters, digits, ., - and _"
        if run is None:
            run, mend = Path(os.path.abspath(space)).stem, "give it a name by --run NAME: by default it has the file's"
            if status(Path(space)) is None:
                return cls.named(run)  # that there is no such file is told by its reader
        if is_name(run):
            check_run_name(str(run), mend)
        folder = cls.named(run, where=_FLAG)
        check_run_name(folder.name, mend)
        folder.check_free()
        return folder

    @classmethod
    def existing(cls, run: str | Path, where: Where | None = None) -> RunFolder:
        """The run. InputError, at `where`, with the nearest name or what was given instead."""
        folder = cls.named(run, where=where)
        if not folder.environment.is_file():
            problem, mend = folder._missing(str(run))
            raise InputError(problem, mend, where)
        return folder

    def _missing(self, given: str) -> tuple[str, str]:
        """What is wrong where there is no such run, and how to mend it."""
        runs, whole = list_runs(self.path.parent), RunFolder(self.path.parent)
        if whole.environment.is_file():
            return f"{given} is a part of a run, not a run", f"give its folder: {whole.handle}"
        file = next((path for path in (Path(given), Path(self.name), self.path) if path.is_file()), None)
        if file is not None and file.suffix in (".yaml", ".yml"):
            close = next((run for run in runs if run.name == file.stem), None)
            mend = f"did you mean the run {close.name!r}?" if close else f"`evomerge search {file}` launches one"
            return f"{file} is a file, not a run", mend
        if several := list_runs(self.path) or list_runs(Path(given)):
            return f"{given} is a folder of runs, not a run", suggestion("", [run.handle for run in several])
        if file is not None or self.path.is_dir():
            return f"{file or given} is no run", "`evomerge status` lists the runs"
        mend = suggestion(self.name, [run.name for run in runs]) if runs else "launch one with `evomerge search`"
        return f"no run {self.name!r} in {self.path.parent}", mend

    def check_free(self) -> None:
        """InputError if a run of that name is there, or it cannot be written."""
        if self.environment.exists():
            problem = f"the run {self.name!r} is there already ({self.path})"
            raise InputError(problem, f"`evomerge resume {self.handle}`, delete it, or choose another --run NAME")
        if self.path.is_dir() and not all(
            p.name.lstrip(".").startswith((*_OWN, *STARTERS)) for p in self.path.iterdir()
        ):
            raise InputError(f"{self.path} holds files that are no run's", "choose another --run NAME")
        standing = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not standing.is_dir() or not os.access(standing, os.W_OK):
            raise InputError(f"{standing} is no folder that can be written", "name a place by --run")

    @contextmanager
    def claim(self, copies: Collection[str] = ()) -> Iterator[None]:
        """Make the folder and hold its lock for a launch. What a launch that died before it was written down left
        there (no environment.json) is cleared, but for the aligned `copies`, which are written before."""
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path} ({error.strerror})", "choose another --run") from None
        with self.lock():
            self.check_free()
            copied = [copy for copy in self.aligned.glob("*") if copy.name not in copies] if copies else []
            for leftover in (*copied, *self.path.iterdir()):
                if leftover == self.aligned and copies:
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif not leftover.name.startswith(("run.lock", *STARTERS)):
                    leftover.unlink()
            self.items.mkdir()
            sync_folder(self.path)
            sync_folder(self.path.parent)
            yield

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one process drives it. BusyError names the holder. The system lets go of the lock when its
        process dies, however it dies."""
        # A moment of patience: `driver` may look at the lock just now.
        lock = FileLock(str(self.path / "run.lock"), timeout=0.5)
        holder = self.path / "run.lock.json"
        try:
            lock.acquire()
        except Timeout:
            raise BusyError(
                f"the run {self.name!r} is held by {_describe(holder)}", "wait for it, or stop it"
            ) from None
        try:
            owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_whole(holder, json.dumps(owner))
            yield
        finally:
            with suppress(OSError):  # on a disk that fails the lock is let go all the same
                holder.unlink(missing_ok=True)
            lock.release()


def _describe(holder: Path) -> str:
    try:
        owner = read_object(holder)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (InputError, KeyError):
        return "another process"


def check_run_name(name: str, mend: str, where: Where = _FLAG) -> None:
    """InputError if a new run cannot have this name. The rule is stricter than that of other names: a run's name is
    also a word of commands, a study in a storage, a title."""
    fault = name_fault(name) or (_UNUSUAL.search(name) and "has other characters than letters, digits, ., - and _")
    if fault:
        raise InputError(f"{name[:60]!r} {fault}, so it cannot name a run", mend, where)


def is_name(run: str | Path) -> bool:
    """Whether it is a run's name, not a path."""
    return not any(c in str(run) for c in "/\\") and str(run) not in (".", "..")


def list_runs(root: Path) -> list[RunFolder]:
    """The runs in a folder, oldest first."""
    if not root.is_dir():
        return []
    runs = [RunFolder(p) for p in root.iterdir() if (p / "environment.json").is_file()]
    return sorted(runs, key=lambda f: (f.environment.stat().st_mtime, f.name))
