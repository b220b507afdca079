"""A changed file of a checkpoint is noticed, whatever changed it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import changed_file, check_unchanged
from evomerge.errors import StoppedError


def overwrite(file: Path) -> None:
    """With as many bytes."""
    file.write_bytes(file.read_bytes()[::-1])


def replace(file: Path) -> None:
    """By a copy with the same size, content and time."""
    shutil.copy2(file, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def cut(file: Path) -> None:
    os.truncate(file, 100)


def relink(file: Path) -> None:
    """What a link leads to changes, as where the hub's cache is cleaned and filled again."""
    shutil.copy2(file, file.with_suffix(".other"))
    file.unlink()
    file.symlink_to(file.with_suffix(".other"))


@pytest.mark.parametrize("change", [overwrite, replace, cut, relink, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_every_change_of_a_file_in_use_is_noticed(
    tiny_models: Path, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    shutil.copytree(tiny_models / "base", tmp_path / "base")
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    (tmp_path / "base" / "notes").write_text("no file of the checkpoint")
    assert changed_file([checkpoint]) is None
    change(tmp_path / "base" / name)
    if change is Path.unlink and name != "model.safetensors":
        return  # it was read whole before anything was computed
    assert changed_file([checkpoint]) == tmp_path / "base" / name
    with pytest.raises(StoppedError, match=f"base/{name} has changed meanwhile; mend"):
        check_unchanged([checkpoint], "meanwhile", "mend")


def test_a_file_that_changes_while_it_is_opened_is_noticed(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_models / "base", tmp_path / "base")
    opened = os.open

    def disturbed(path: Path, flags: int, *more: int) -> int:
        if Path(path).name == "model.safetensors":
            os.utime(path, (1, 1))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", disturbed)
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    assert changed_file([checkpoint]) == tmp_path / "base" / "model.safetensors"
