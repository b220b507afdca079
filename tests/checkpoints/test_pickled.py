"""Pickled weights: read where that is allowed, never run, and the same bytes as torch reads."""

from __future__ import annotations

import collections
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints import hub, pickled
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.pickled import are_allowed, pickles_allowed, read_pickled, with_pickles
from evomerge.checkpoints.read import read_tensor
from evomerge.errors import InputError


@pytest.fixture
def allowed() -> Iterator[None]:
    with pickles_allowed(True):
        yield


def write(folder: Path, tensors: dict[str, Tensor], name: str = "pytorch_model.bin") -> Path:
    """A checkpoint that has pickled weights only."""
    tiny_models.write(folder, tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / name)
    return folder


def test_a_folder_is_refused_by_default(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tiny_models.base_tensors())
    with pytest.raises(InputError, match=r"/m holds pickled weights only.*save_pretrained.*or read it with --allow-p"):
        Checkpoint.open(str(folder))


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_those_that_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = tiny_models.base_tensors(dtype=dtype)
    opened = Checkpoint.open(str(write(tmp_path / "m", tensors)))
    assert {name: (info.shape, info.dtype) for name, info in opened.stored.items()} == {
        name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()
    }
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())
    assert tmp_path / "m" / "pytorch_model.bin" in opened.files()


@pytest.mark.usefixtures("allowed")
def test_every_kind_of_tensor_and_how_they_may_lie(tmp_path: Path) -> None:
    """Parameters, views of one storage, shared and empty ones, several of one size, another kind of mapping."""
    whole, draw = torch.arange(24.0).reshape(6, 4), torch.Generator().manual_seed(0)
    tensors = collections.OrderedDict(
        whole=whole, part=whole[2:4], same=whole, nothing=torch.empty(0, 3), one=torch.tensor(2.5),
        parameter=torch.nn.Parameter(torch.randn(3, 5, generator=draw)), counts=torch.arange(7),
        **{f"x{i}": torch.randn(8, 8, generator=draw) for i in range(20)},
        **{f"y{i}": torch.randn(5, generator=draw).to(torch.bfloat16) for i in range(3)},
    )  # fmt: skip
    torch.save(tensors, file := tmp_path / "w.bin")
    found = read_pickled(file)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(found[name]), tensor), name


@pytest.mark.usefixtures("allowed")
def test_shards(tmp_path: Path) -> None:
    tensors = tiny_models.base_tensors()
    folder, names = write(tmp_path / "m", tensors), list(tensors)
    (folder / "pytorch_model.bin").unlink()
    weight_map = {}
    for i, half in enumerate((names[:9], names[9:]), start=1):
        torch.save({name: tensors[name] for name in half}, folder / f"pytorch_model-0000{i}-of-00002.bin")
        weight_map |= dict.fromkeys(half, f"pytorch_model-0000{i}-of-00002.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    opened = Checkpoint.open(str(folder))
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match="lacks 1 of its 2 shards"):
        Checkpoint.open(str(folder))
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.bin"}}))
    with pytest.raises(InputError, match="shard of"):
        Checkpoint.open(str(folder))


@pytest.mark.usefixtures("allowed")
def test_safetensors_come_first(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors())
    (folder / "pytorch_model.bin").write_text("nothing that is read")
    assert {info.file.name for info in Checkpoint.open(str(folder)).stored.values()} == {"model.safetensors"}


class Program:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_never_run(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save(
        {"w": torch.ones(2), "x": Program(f"touch {proof}")}, file := tmp_path / "w.bin", pickle_protocol=protocol
    )
    with pytest.raises(
        InputError, match=r"w\.bin (holds more than tensors, and no code of it was run|is damaged)"
    ) as said:
        read_pickled(file)
    assert "\n" not in str(said.value)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Program(f"touch {proof}"), protocol))
    with pytest.raises(InputError, match="is no archive"):
        read_pickled(tmp_path / "plain.bin")
    assert not proof.exists()


def rewritten(file: Path, change: Callable[[str, bytes], bytes | None], **settings: Any) -> None:
    """Writes an archive again, with other contents of its entries."""
    with zipfile.ZipFile(file) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w", **settings) as archive:
        for name, content in entries:
            changed = change(name, content)
            if changed is not None:
                archive.writestr(name, changed)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"w": [1, 2]}, "w is no tensor, but list"),
        ({"state_dict": {"w": torch.ones(2)}}, "state_dict is no tensor, but dict"),
        ([torch.ones(2)], "is no mapping of names to tensors"),
        ({}, "is no mapping of names to tensors"),
        ({3: torch.ones(2)}, "3 is no name of a tensor"),
        ({"a\nb": torch.ones(2)}, "is no name of a tensor"),
        ({"w": torch.arange(6.0).reshape(2, 3).T}, "w is a part of another tensor, and does not lie in one row"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "w is a tensor of complex64"),
        ({"w": torch.eye(2).to_sparse()}, "w is a tensor of float32, torch.sparse_coo"),
        ({"w": torch.empty(2, device="meta")}, "w is a tensor of float32, torch.strided, on meta"),
    ],
)
def test_what_is_no_tensor(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(InputError, match=said):
        read_pickled(tmp_path / "w.bin")


@pytest.mark.usefixtures("allowed")
def test_old_and_damaged_files(tmp_path: Path) -> None:
    state = {"w": torch.arange(100.0), "v": torch.ones(3)}
    torch.save(state, file := tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"is no archive, as torch writes them since 1\.6; save it again: torch\.save"):
        read_pickled(file)
    torch.save(state, file)
    whole = file.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="is damaged"):
            read_pickled(file)
    for change, settings in (
        (lambda name, content: content, {"compression": zipfile.ZIP_DEFLATED}),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, {}),
        (lambda name, content: content[:-8] if name.endswith("data/0") else content, {}),
        (lambda name, content: None if name.endswith("data/0") else content, {}),
        (lambda name, content: b"\x80\x02" if name.endswith("data.pkl") else content, {}),
    ):
        file.write_bytes(whole)
        rewritten(file, change, **settings)
        with pytest.raises(InputError, match=r"is damaged|cannot be found in it"):
            read_pickled(file)


@pytest.mark.usefixtures("allowed")
def test_any_changed_byte_is_one_line_or_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0), "v": torch.ones(3)}, file := tmp_path / "w.bin")
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(InputError):
            for info in read_pickled(file).values():
                read_tensor(info)


@pytest.mark.usefixtures("allowed")
def test_a_program_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, file := tmp_path / "w.bin")
    program = b"\x80\x02" + b"N" * 6_000_000 + b"}."
    rewritten(file, lambda name, content: program if name.endswith("data.pkl") else content)
    monkeypatch.setattr(pickled, "_SECONDS", 0.05)
    with pytest.raises(InputError, match="takes more than"):
        read_pickled(file)
    monkeypatch.setattr(pickled, "_LONGEST_PROGRAM", 1_000_000)
    with pytest.raises(InputError, match="its program has 6000004 bytes"):
        read_pickled(file)


def test_an_adapter(tmp_path: Path) -> None:
    base = tiny_models.base_tensors()
    tiny_models.write(tmp_path / "base", base)
    module = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(24, 2)}
    (folder := tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter .* holds pickled weights only.*peft's save.*--allow-p"):
        Checkpoint.open(f"{tmp_path / 'base'}+{folder}")
    with pickles_allowed(True):
        opened = Checkpoint.open(f"{tmp_path / 'base'}+{folder}")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(opened.read(name), base[name] + 2)
    assert folder / "adapter_model.bin" in opened.files()
    save_file(tensors, folder / "adapter_model.safetensors")
    assert folder / "adapter_model.bin" not in Checkpoint.open(f"{tmp_path / 'base'}+{folder}").files()


def test_the_permission_ends_with_the_call() -> None:
    @with_pickles
    def call(*, allow_pickle: bool = False) -> bool:
        return are_allowed()

    assert call(allow_pickle=True)
    assert not call()
    assert not are_allowed()
    with pickles_allowed(True):
        assert not call()


class FakeHub:
    """A repository of the hub, of which files are fetched by pattern."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder, self.files = folder / "abc123", files
        self.fetched: set[str] = set()

    def snapshot_download(
        self, name: str, revision: str | None, allow_patterns: Any, ignore_patterns: Any = None
    ) -> str:
        from huggingface_hub.utils import filter_repo_objects

        wanted = filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        self.folder.mkdir(exist_ok=True)
        for file in wanted:
            (self.folder / file).write_bytes(self.files[file])
            self.fetched.add(file)
        return str(self.folder)

    def list_repo_files(self, name: str, revision: str) -> list[str]:
        return list(self.files)


@pytest.mark.parametrize("safe", [True, False])
def test_the_hub_is_asked_for_pickles_only_where_it_must(
    safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    shard, others = "pytorch_model-00001-of-00002.bin", ("optimizer.bin", "training_args.bin", "sub/pytorch_model.bin")
    names = ["config.json", "pytorch_model.bin", shard, *others, *(["model.safetensors"] if safe else [])]
    files = dict.fromkeys(names, b"")
    repository = FakeHub(tmp_path, files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", repository.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", repository.list_repo_files)
    if safe:
        hub.fetch("org/m", None)
    else:
        with pytest.raises(InputError, match=r"org/m holds pickled weights only.*--allow-pickle"):
            hub.fetch("org/m", None)
    assert not any(file.endswith(".bin") for file in repository.fetched)
    with pickles_allowed(True):
        assert hub.fetch("org/m", None)[1] == "abc123"
    bins = {file for file in repository.fetched if file.endswith(".bin")}
    assert bins == (set() if safe else {"pytorch_model.bin", shard})
