"""Reading into memory of our own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import read_header
from evomerge.checkpoints.read import read_tensor, same_bytes
from evomerge.errors import InputError


@pytest.fixture
def file(tmp_path):
    def noise(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))

    tensors = {
        "half": noise(7, 5).bfloat16(), "wide": noise(3).double(), "one": torch.tensor(2.5), "none": torch.empty(0, 4),
        "ids": torch.arange(9), "marks": noise(4) > 0, "large": noise(300, 200),
    }  # fmt: skip
    save_file(tensors, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors", tensors


def test_every_dtype_and_shape(file):
    path, tensors = file
    header = read_header(path)
    for name, tensor in tensors.items():
        found = read_tensor(header[name])
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)


def test_what_is_read_is_ours(file):
    path, tensors = file
    info = read_header(path)["large"]
    read_tensor(info).zero_()
    assert torch.equal(read_tensor(info), tensors["large"])


def test_threads_read_at_the_same_time(file):
    path, tensors = file
    header = read_header(path)
    names = [*tensors] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: read_tensor(header[name]), names))
    assert all(torch.equal(found[i], tensors[name]) for i, name in enumerate(names))


def test_shards_are_read_as_safetensors_reads_them(tmp_path):
    folder = tiny_models.write_sharded(tmp_path / "m", tiny_models.base_tensors())
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    opened = Checkpoint.open(str(folder))
    assert opened.stored.keys() == stored.keys()
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in stored.items())


def test_a_file_that_has_changed_is_one_line(tmp_path):
    opened = Checkpoint.open(str(tiny_models.write(tmp_path / "m", tiny_models.base_tensors())))
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is damaged: it has become shorter"):
        opened.read(list(opened.tensors)[-1])
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        opened.read("lm_head.weight")


def test_same_bytes(file, tmp_path):
    path, tensors = file
    changed = {**tensors, "large": tensors["large"].clone()}
    changed["large"][-1, -1] += 1
    save_file(changed, tmp_path / "other.safetensors")
    one, other = read_header(path), read_header(tmp_path / "other.safetensors")
    assert [name for name in tensors if not same_bytes(one[name], other[name])] == ["large"]
    assert not same_bytes(one["half"], one["large"])
