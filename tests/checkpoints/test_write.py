from __future__ import annotations

import errno

import pytest
import tiny_models
import torch

from evomerge.checkpoints import write
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.write import CheckpointWriter, TensorLayout
from evomerge.errors import InputError


@pytest.fixture
def tensors():
    found = tiny_models.base_tensors()
    found["model.norm.weight"] = found["model.norm.weight"].to(torch.bfloat16)
    return found


def layout(tensors):
    return {n: TensorLayout(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}


def put(target, tensors, **options):
    with CheckpointWriter(target, layout(tensors), **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.text("README.md", "hello")
        writer.config(tiny_models.config())


def remains(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("shard_bytes", [10**9, 4000, 1])
def test_what_is_written_reads_back(tmp_path, tensors, shard_bytes):
    put(tmp_path / "out", tensors, shard_bytes=shard_bytes)
    opened = Checkpoint.open(str(tmp_path / "out"))
    assert set(opened.stored) == set(tensors)
    assert all(torch.equal(opened.tensor(n), t) for n, t in tensors.items())
    assert all(torch.equal(t, tensors[n]) for n, t in tiny_models.read(tmp_path / "out").items())
    assert remains(tmp_path) == ["out"]


def test_an_error_leaves_nothing(tmp_path, tensors):
    def stop():
        with CheckpointWriter(tmp_path / "out", layout(tensors)) as writer:
            name = next(iter(tensors))
            writer.add(name, tensors[name])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop()
    assert remains(tmp_path) == []


@pytest.mark.parametrize("moment", ["weights", "config"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, tensors, monkeypatch, moment):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, {"weights": "_bytes", "config": "_sync"}[moment], full)
    with pytest.raises(InputError) as caught:
        put(tmp_path / "out", tensors)
    assert "the disk is full" in str(caught.value)
    assert remains(tmp_path) == []


def test_too_little_space_is_known_before_writing(tmp_path):
    with (
        pytest.raises(InputError, match=r"needs .* GB, and .* GB are free"),
        CheckpointWriter(tmp_path / "out", {"x": TensorLayout((2**55,), "float32")}),
    ):
        pass
    assert remains(tmp_path) == []


def test_a_target_that_exists(tmp_path, tensors):
    target = tmp_path / "out"
    target.mkdir()
    put(target, tensors)  # an empty folder is no obstacle
    with pytest.raises(InputError, match="exists and is not empty"):
        put(target, tensors)
    changed = {n: t + 1 for n, t in tensors.items()}
    put(target, changed, overwrite=True)
    assert torch.equal(tiny_models.read(target)["lm_head.weight"], changed["lm_head.weight"])
    assert remains(tmp_path) == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        put(tmp_path / "file", tensors)


def test_leftovers_of_a_killed_writer_are_swept_and_those_of_a_living_one_are_not(tmp_path, tensors):
    dead = tmp_path / ".out.partial-dead"
    dead.mkdir()
    (dead / "weights-00000.part").write_bytes(b"x")
    living = CheckpointWriter(tmp_path / "out", layout(tensors)).__enter__()
    assert not dead.exists()
    put(tmp_path / "out", tensors)
    assert living.folder.exists()
    living.__exit__(RuntimeError, RuntimeError(), None)
    assert remains(tmp_path) == ["out"]


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path, tensors):
    slow = CheckpointWriter(tmp_path / "out", layout(tensors)).__enter__()
    for name, tensor in tensors.items():
        slow.add(name, tensor + 1)
    put(tmp_path / "out", tensors)
    with pytest.raises(InputError, match="exists and is not empty"):
        slow.__exit__(None, None, None)
    assert torch.equal(tiny_models.read(tmp_path / "out")["lm_head.weight"], tensors["lm_head.weight"])
    assert remains(tmp_path) == ["out"]
