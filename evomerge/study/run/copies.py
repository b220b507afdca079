"""A copy of a run's items at any URL that fsspec knows: another disk, an object store.

The run's own folder is what counts. The copy is written by a thread beside the search, and what goes wrong with it is a
warning: whatever is not there yet is copied later, at the latest by the next session. Where items are lost here, they
are read from there before they are scored again.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.escape import masked, shortened
from evomerge.safety.durable import write_whole
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import item_files
from evomerge.types import SplitName

logger = logging.getLogger(__name__)

_FLAG = Where("--copy-items")
_USER = re.compile(r"://[^/]*:[^/]*@")

PATIENCE, _MOMENT, _PAUSE = 60.0, 5.0, 30.0
"""Seconds that the end of a session waits for the copy, also where it ends early, and that pass after a failure until
it is tried again."""

_MARK = "run.txt"
"""What a launch writes to see that it can."""


class ItemsCopy:
    """Keeps the files of a run's items at ``URL/<run>/``."""

    def __init__(self, url: str, run: str, items: Path, warn: Callable[[str], None]) -> None:
        """Opens the URL, and writes nothing. InputError where fsspec cannot."""
        import fsspec

        self.url, self._run, self._items, self._warn = url, run, items, warn
        if _USER.search(url):
            mend = "give it where fsspec looks for it (~/.config/fsspec, or variables such as FSSPEC_FTP_PASSWORD)"
            raise InputError("the URL holds a password, which a run would have to remember", mend, _FLAG)
        try:
            self._system, root = fsspec.core.url_to_fs(url)
        except Exception as error:  # each file system has errors of its own
            mend = "give a URL that fsspec knows, and install its package"
            raise InputError(f"cannot open {url!r} ({_said(error)})", mend, _FLAG) from None
        self._root = f"{root.rstrip('/')}/{run}"
        self._there: dict[str, Any] = {}  # name -> what was copied of it
        self._changed: set[str] = set()  # trials and splits whose files may have changed; "": all files
        self._wake, self._ending = threading.Condition(), False
        self._cause = ""
        self._thread = threading.Thread(target=self._work, name="items-copy", daemon=True)

    def claim(self) -> None:
        """Makes the place of a new run. InputError where it cannot be written, or holds items already."""
        try:
            there = self._listed()
            if not there.keys() - {_MARK}:
                self._system.makedirs(self._root, exist_ok=True)
                self._system.pipe_file(f"{self._root}/{_MARK}", f"items of the run {self._run}\n".encode())
        except Exception as error:
            raise InputError(f"{self.url!r} cannot be written ({_said(error)})", "make it possible", _FLAG) from None
        if there.keys() - {_MARK}:
            problem = f"{self.url!r} holds items of a run {self._run!r} already"
            raise InputError(problem, "choose another --run NAME, or another URL", _FLAG)

    def fetch(self, trial: int, split: SplitName) -> None:
        """Brings a trial's files here. What cannot be had is left out, with a warning where that has a cause."""
        try:
            names = [name for name in sorted(self._listed()) if name.startswith(f"trial-{trial:05d}.{split}.")]
            for name in names:
                write_whole(self._items / name, self._system.cat_file(f"{self._root}/{name}"))
        except Exception as error:
            self._warn(f"the items of trial {trial} cannot be read from {self.url} ({_said(error)})")

    def start(self) -> None:
        """Copies from now on, first what is not there yet."""
        self._thread.start()
        self._note("")

    def changed(self, trial: int, split: SplitName) -> None:
        """The files of a trial are other ones now."""
        self._note(f"{trial:05d}.{split}")

    def close(self, patience: float = PATIENCE) -> None:
        """Waits until all is copied, or the patience is over. What is left is told."""
        if not self._thread.is_alive():
            return
        with self._wake:
            self._changed.add("")
            self._ending = True
            self._wake.notify_all()
        self._thread.join(patience)
        if self._thread.is_alive() or self._changed:
            cause = f" ({self._cause})" if self._cause else ""
            self._warn(f"not all items are in {self.url}{cause}; the run has them, and its next session copies them")

    def _note(self, what: str) -> None:
        with self._wake:
            self._changed.add(what)
            self._wake.notify_all()

    def _work(self) -> None:
        failed = ending = False
        while not ending:
            with self._wake:
                if failed:
                    self._wake.wait_for(lambda: self._ending, _PAUSE)
                else:
                    self._wake.wait_for(lambda: self._ending or self._changed)
                taken, ending = sorted(self._changed), self._ending
                self._changed.clear()
            failed = False
            while taken and not failed:
                try:
                    self._copy(taken[0])
                    taken.pop(0)
                except Exception as error:
                    if not self._cause:
                        self._warn(f"items cannot be copied to {self.url} ({_said(error)}); the run has them")
                    logger.warning("items cannot be copied: %s", _said(error))
                    self._cause, failed = _said(error), True
            with self._wake:
                self._changed.update(taken)

    def _copy(self, what: str) -> None:
        """Copies the files of a trial and split that changed; of all, where `what` is empty."""
        if what:
            number, _, split = what.partition(".")
            files = item_files(self._items, int(number), split)  # type: ignore[arg-type]
            gone = {name for name in self._there if name.startswith(f"trial-{what}.")} - {f.name for f in files}
        else:
            files, gone = [f for f in self._items.iterdir() if f.is_file() and not f.name.startswith(".")], set()
            self._system.makedirs(self._root, exist_ok=True)
            self._there |= {name: size for name, size in self._listed().items() if name not in self._there}
        for file in files:
            status = file.stat()
            state = status.st_size, status.st_mtime_ns
            if self._there.get(file.name) not in (state, status.st_size):
                self._system.pipe_file(f"{self._root}/{file.name}", file.read_bytes())
            self._there[file.name] = state
        for name in gone:
            self._system.rm_file(f"{self._root}/{name}")
            del self._there[name]

    def _listed(self) -> dict[str, int]:
        """The names of the files that are there -> bytes."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {Path(entry["name"]).name: entry["size"] for entry in found if entry["type"] == "file"}


def items_copy(url: str | None, folder: RunFolder, warn: Callable[[str], None]) -> ItemsCopy | None:
    """The copy of a run's items; None without a URL. InputError where fsspec cannot open it."""
    return None if url is None else ItemsCopy(url, folder.name, folder.items, warn)


@contextmanager
def copying(copy: ItemsCopy | None) -> Iterator[None]:
    """Copies during a session. One that ends by an error or by Ctrl-C waits moments for what is left."""
    if copy is None:
        yield
        return
    copy.start()
    try:
        yield
    except BaseException:
        copy.close(_MOMENT)
        raise
    copy.close()


def absolute_place(url: str | None) -> str | None:
    """The URL as it means the same everywhere: a path is one of this machine."""
    return url if url is None or "://" in url else Path(url).absolute().as_uri()


def _said(error: Exception) -> str:
    return masked(shortened(f"{error}" or type(error).__name__))
