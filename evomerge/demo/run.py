"""`evomerge.quickstart`: train small specialists here, search them as any others, export and write the winner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evomerge.demo.train import prepare
from evomerge.errors import Where, system_error
from evomerge.evaluator.device import choose_devices
from evomerge.files.pair import read_files
from evomerge.study.after.export import export
from evomerge.study.after.status import status
from evomerge.study.observer import Observer
from evomerge.study.prepare import check_budget, check_files, launch_settings
from evomerge.study.search import Result, resume, search

SPACE = Path("search_spaces/quickstart.yaml")
FILES = (SPACE, Path("fitness/quickstart.yaml"), Path("fitness/quickstart"))


@dataclass(frozen=True)
class Quickstart:
    """The result; `recipe` and `checkpoint` are None where no merge passed every floor."""

    search: Result
    recipe: Path | None
    checkpoint: Path | None


def quickstart(
    folder: str | Path = ".",
    *,
    trials: int | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Quickstart:
    """Runs a first search in `folder`, without a download: trains a base and three specialists of a support desk (kept
    in ``models/quickstart`` for the next time), searches `SPACE`, writes recipe and checkpoint.

    Raises:
        InputError: the folder cannot be written, or holds files of these names that are not legal.
    """
    observer = observer or Observer()
    root = Path(folder)
    check_budget(trials, None)
    run, started = next_run(root)
    try:
        copy_starter_files(root)
        choose_devices(device)
        if not started:
            check_files(*read_files(root / SPACE, launch_settings(trials, None, None)))
        with _few_threads():
            prepare(root, observer.progress)
    except OSError as error:
        raise system_error(error, Where("--dir")) from None
    if started:
        result = resume(run, trials=trials, observer=observer)
    else:
        result = search(root / SPACE, run=run, trials=trials, device=device, observer=observer)
    if result.winner is None:
        return Quickstart(result, None, None)
    recipe, checkpoint = result.folder.path / "winner.yaml", result.folder.path / "merged"
    export(result.folder.path, recipe, checkpoint=checkpoint, overwrite=True, progress=observer.progress)
    return Quickstart(result, recipe, checkpoint)


@contextmanager
def _few_threads() -> Iterator[None]:
    """Uses at most two threads: the models are so small that more wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_starter_files(root: Path) -> None:
    """Copies the starter files into `root`, unless it has them: users may have changed them."""
    for file in FILES:
        source, target = _starter() / file, root / file
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = target.with_name(f".{target.name}.partial")
        if source.is_dir():
            shutil.copytree(source, whole, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, whole)
        whole.rename(target)


def _starter() -> Path:
    """Returns the folder of the starter files: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_starter"
    return installed if installed.is_dir() else package.parent


def next_run(root: Path) -> tuple[str, bool]:
    """Returns the next run, and whether it was started already: an interrupted quickstart goes on, after a finished one
    comes quickstart-2, and so on."""
    number, path = 1, root / "runs/quickstart"
    while path.exists():
        if (path / "environment.json").is_file() and not status(path).finished:
            return str(path), True
        number += 1
        path = root / f"runs/quickstart-{number}"
    return str(path), False
