from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_models
import torch

from evomerge.checkpoints import write
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.write import CheckpointWriter, TensorLayout, check_space, check_target
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
    assert all(torch.equal(opened.read(n), t) for n, t in tensors.items())
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


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["notes.txt"], "holds no checkpoint"),
        (["config.json", "checkpoint-500/model.safetensors"], "holds the folder checkpoint-500"),
        (["model.safetensors", ".git/HEAD"], "holds the folder .git"),
    ],
)
def test_overwriting_replaces_checkpoints_only(tmp_path, tensors, made, said):
    target = tmp_path / "out"
    for name in made:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("precious")
    with pytest.raises(InputError, match=said):
        put(target, tensors, overwrite=True)
    with pytest.raises(InputError, match="exists and is not empty; name another folder, or remove it first"):
        put(target, tensors)
    assert all((target / name).read_text() == "precious" for name in made)
    assert remains(tmp_path) == ["out"]


def test_the_way_to_replace_a_checkpoint_is_named(tmp_path, tensors):
    put(tmp_path / "out", tensors)
    with pytest.raises(InputError, match="replace it with --overwrite"):
        check_target(tmp_path / "out")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, tensors):
    put(tmp_path / "disk" / "real", tensors)
    (tmp_path / "out").symlink_to("disk/real")
    (tmp_path / "new").symlink_to("disk/other")
    changed = {n: t + 1 for n, t in tensors.items()}
    put(tmp_path / "out", changed, overwrite=True)
    put(tmp_path / "new", tensors)
    assert (tmp_path / "out").is_symlink()
    assert torch.equal(tiny_models.read(tmp_path / "disk" / "real")["lm_head.weight"], changed["lm_head.weight"])
    assert remains(tmp_path / "disk") == ["other", "real"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop"):
        put(tmp_path / "loop", tensors)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("target", "said"),
    [("/", "mount point"), ("~", "your home folder"), (".", "the current folder"), ("..", "the current folder")],
)
def test_folders_that_are_never_replaced(tmp_path, monkeypatch, target, said, overwrite):
    inner = tmp_path / "home" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(inner.parent))
    monkeypatch.chdir(tmp_path if target == "~" else inner)
    with pytest.raises(InputError, match=said):
        check_target(Path(target).expanduser(), overwrite)


def test_a_mounted_folder_is_never_replaced(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(InputError, match=r"mount point.*name a folder in it"):
            check_target(place)
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def test_what_is_read_is_not_written_over(tmp_path, tensors):
    put(tmp_path / "model", tensors)
    (tmp_path / "link").symlink_to("model")
    for read in ("model", "model/model.safetensors", "link", "link/config.json"):
        with pytest.raises(InputError, match="is read"):
            check_target(tmp_path / "link", True, inputs=[tmp_path / read])
    check_target(tmp_path / "model", True, inputs=[tmp_path / "other"])
    check_target(tmp_path / "model" / "merged", inputs=[tmp_path / "model"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told_before_anything_is_computed(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match="may not write"):
        check_target(tmp_path / "closed" / "out")


def test_a_file_in_the_way_is_told(tmp_path, tensors):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file"):
        put(tmp_path / "file" / "out", tensors)


def test_the_space_for_several_checkpoints_is_added_up(tmp_path, tensors, monkeypatch):
    sizes = sum(entry.bytes for entry in layout(tensors).values())
    usage = type("Usage", (), {"free": sizes + 1})
    monkeypatch.setattr(write.shutil, "disk_usage", lambda place: usage)
    with (
        pytest.raises(InputError, match=r"needs .* GB"),
        CheckpointWriter(tmp_path / "a", layout(tensors)) as a,
        CheckpointWriter(tmp_path / "b", layout(tensors)) as b,
    ):
        check_space([a, b])
    assert remains(tmp_path) == []


def test_a_folder_of_chat_templates_belongs_to_a_checkpoint(tmp_path, tensors):
    for _ in range(2):
        with CheckpointWriter(tmp_path / "out", layout(tensors), overwrite=True) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            writer.file("additional_chat_templates/tool_use.jinja", b"{{ messages }}")
            writer.config({"model_type": "llama"})
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ messages }}"
    (tmp_path / "out" / "additional_chat_templates" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds the folder additional_chat_templates"):
        check_target(tmp_path / "out", overwrite=True)


def test_settings_lose_the_folders_of_a_machine_alone(tmp_path, tensors):
    settings = {"_name_or_path": "/home/me/secret", "text_config": {"_name_or_path": "C:\\me\\secret"}, "eps": 1e-05}
    tokens = {"name_or_path": "/home/me/secret", "tokenizer_file": "~/secret/tokenizer.json", "bos_token": "/s"}
    hub = b'{"_name_or_path":  "org/model"}'
    with CheckpointWriter(tmp_path / "out", layout(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.config(settings)
        writer.text("tokenizer_config.json", json.dumps(tokens))
        writer.file("generation_config.json", hub)
        writer.file("tokenizer.json", b'{"vocab_file": "/x"}')
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text()) == {"text_config": {}, "eps": 1e-05}
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"bos_token": "/s"}
    assert (out / "generation_config.json").read_bytes() == hub
    assert (out / "tokenizer.json").read_bytes() == b'{"vocab_file": "/x"}'
