"""Decompositions that are kept in a folder: equal bits, made once, and nothing is lost with the folder."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.merging.kernels import bands
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.resident import factor_cache
from evomerge.merging.resident.factor_cache import FactorCache, default_folder

MADE = {"u": torch.arange(6.0).reshape(3, 2), "s": torch.tensor([2.0, 1.0]), "v": torch.ones(2, 5)}


def made() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in MADE.items()}


def nothing() -> dict[str, Tensor]:
    raise AssertionError("it was computed")


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns) if folder.exists() else []


def is_made(found) -> bool:
    return found.keys() == MADE.keys() and all(torch.equal(found[name], MADE[name]) for name in MADE)


def test_what_was_made_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert is_made(FactorCache(folder)("text", made))
    assert is_made(FactorCache(folder)("text", nothing))
    [file] = files(folder)
    assert file.suffix == ".safetensors"
    assert is_made({name: tensor for name, tensor in load_file(file).items() if name != "digest"})
    with pytest.raises(AssertionError):
        FactorCache(folder)("another text", nothing)


def test_another_machine_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FactorCache(tmp_path)("text", made)
    monkeypatch.setattr(factor_cache, "_machine", lambda: "another kind of processor")
    with pytest.raises(AssertionError):
        FactorCache(tmp_path)("text", nothing)


def test_factors_of_a_file_give_equal_bits(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    base, source, gradient = (torch.randn(50, 70, generator=draw) for _ in range(3))
    for top in (None, 8):
        numbers = bands.Bands(tuple(i / 10 for i in range(9)), top=top)
        plain = Inputs([source], base)
        first, second = (Inputs([source], base, kept=FactorCache(tmp_path)) for _ in range(2))
        for inputs in (first, second):
            assert torch.equal(bands.merged(inputs, [numbers]), bands.merged(plain, [numbers]))
            assert torch.equal(bands.pull(inputs, [numbers], gradient)[0], bands.pull(plain, [numbers], gradient)[0])
    assert len(files(tmp_path)) == 2


_SCRIPT = """
import sys, torch
from evomerge.merging.kernels.factors import Wanted, factors
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.resident.factor_cache import FactorCache
torch.set_num_threads(int(sys.argv[1]))
base, source = (torch.randn(50, 70, generator=torch.Generator().manual_seed(i)) for i in range(2))
factors(Inputs([source], base, kept=FactorCache()), 0, Wanted(8))
"""


def test_processes_agree(tmp_path: Path) -> None:
    """Two that compute write the same bytes; they can do so at once."""
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "two"]
    running = [
        subprocess.Popen([sys.executable, "-c", _SCRIPT, str(threads)], env={**os.environ, "EVOMERGE_CACHE": str(f)})
        for threads, f in enumerate(folders, start=1)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    [one], [two] = (files(folder / "factors") for folder in folders[:2])
    assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())


def test_threads_share_a_cache(tmp_path: Path) -> None:
    kept, found = FactorCache(tmp_path), []
    threads = [threading.Thread(target=lambda: found.append(is_made(kept("text", made)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    assert len(files(tmp_path)) == 1


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def other_values(file: Path) -> None:
    save_file({**load_file(file), "s": torch.tensor([2.0, 1.5])}, file)


def other_dtypes(file: Path) -> None:
    save_file({"digest": torch.zeros(32), "u": torch.zeros(2, dtype=torch.bfloat16), "s": torch.tensor(True)}, file)


def no_digest(file: Path) -> None:
    save_file(MADE, file)


def of_another_text(file: Path) -> None:
    FactorCache(file.parent)("another text", lambda: {**made(), "s": torch.tensor([9.0, 8.0])})
    [other] = [found for found in files(file.parent) if found != file]
    shutil.move(other, file)


def pickled(file: Path) -> None:
    torch.save(MADE, file)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    "damage",
    [flipped, cut, other_values, other_dtypes, no_digest, of_another_text, pickled, empty, unreadable],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage) -> None:
    FactorCache(tmp_path)("text", made)
    [file] = files(tmp_path)
    damage(file)
    assert is_made(FactorCache(tmp_path)("text", made))
    if damage is not unreadable:
        assert is_made(FactorCache(tmp_path)("text", nothing))
        assert [found.name for found in files(tmp_path)] == [file.name]


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = FactorCache(tmp_path / "file" / "folder")
    with caplog.at_level(logging.INFO):
        assert is_made(kept("text", made))
        assert is_made(kept("another text", made))
    [line] = caplog.messages
    assert "keeps no decompositions (Not a directory)" in line


def test_a_full_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert is_made(FactorCache(tmp_path)("text", made))
    assert files(tmp_path) == []
    assert "No space left on device" in caplog.text


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    FactorCache(tmp_path)("0", made)
    [file] = files(tmp_path)
    size = file.stat().st_size
    kept = FactorCache(tmp_path, limit=3 * size)
    (tmp_path / "notes.txt").write_text("not ours" * size)
    names = {"0": file.name}
    for text in ("1", "2"):
        kept(text, made)
        [names[text]] = {f.name for f in files(tmp_path)} - {*names.values(), "notes.txt"}
    for age, text in enumerate(("2", "1", "0")):
        os.utime(tmp_path / names[text], (age, age))
    left_over = tmp_path / f".{hashlib.sha256().hexdigest()}.safetensors.123"  # of a writer that was killed
    left_over.write_bytes(b"x" * 10)
    os.utime(left_over, (0, 0))
    kept("2", nothing)  # now the latest
    kept("3", made)
    left = {f.name for f in files(tmp_path)}
    assert {names["0"], names["2"], "notes.txt"} < left
    assert names["1"] not in left
    assert left_over.name not in left
    assert len(left) == 4


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FactorCache(tmp_path)("text", made)
    before = files(tmp_path)
    assert is_made(FactorCache(tmp_path, limit=10)("another text", made))
    assert files(tmp_path) == before
    assert caplog.messages == []


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / "factors"
    monkeypatch.setenv("EVOMERGE_CACHE", "")
    assert default_folder() == tmp_path / "xdg" / "evomerge" / "factors"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / "home" / ".cache" / "evomerge" / "factors"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / "home" / ".cache" / "evomerge" / "factors"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody's home is known
    monkeypatch.chdir(tmp_path)
    assert is_made(FactorCache()("text", made))
    assert list(tmp_path.iterdir()) == []
