"""`evomerge merge`, as people who know mergekit-yaml and mergekit-multi call it; killed, and on a full disk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.recipe.mergekit import parse_recipe


@pytest.fixture
def recipe(models, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"merge_method: dare_linear\nbase_model: {models['base']}\nrandom_seed: 5\n"
        f"models:\n- {{model: {models['a']}, parameters: {{weight: 0.5, density: 0.4}}}}\n"
    )
    return file


@pytest.fixture
def run(recipe, tmp_path, capsys):
    """Runs `evomerge merge` on the recipe; returns (exit code, folder, what was said on stderr)."""

    def command(*options, out="out", file=recipe):
        code = main(["merge", str(file), str(tmp_path / out), *map(str, options)])
        return code, tmp_path / out, capsys.readouterr().err

    return command


def test_a_command_line_of_mergekit_yaml(run):
    """The options that its users' scripts have."""
    code, folder, _ = run("--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle",
                          "--low-cpu-memory", "--trust-remote-code", "--random-seed", "5")  # fmt: skip
    assert code == 0
    names = {f.name for f in folder.iterdir()}
    assert {"config.json", "model.safetensors", "mergekit_config.yml", "README.md", "tokenizer.json"} <= names


def test_the_seed_replaces_the_recipe_s(run):
    digests = {n: checkpoint_digest(run("--random-seed", n, out=f"out{n}")[1]) for n in (5, 6)}
    assert checkpoint_digest(run(out="plain")[1]) == digests[5] != digests[6]
    written = (run("--random-seed", "6", out="again")[1] / "mergekit_config.yml").read_text()
    assert "random_seed: 6" in written


def test_shards_and_what_is_left_out(run):
    _, folder, _ = run("--out-shard-size", "3KB", "--no-copy-tokenizer", "--no-write-model-card")
    names = {f.name for f in folder.iterdir()}
    assert len([n for n in names if n.endswith(".safetensors")]) > 3
    assert not names & {"README.md", "tokenizer.json", "tokenizer_config.json"}
    assert "model.safetensors.index.json" in names


def test_an_existing_folder_is_replaced_only_if_asked(run):
    run()
    code, _, said = run()
    assert code == 2
    assert "exists and is not empty" in said
    assert run("--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out-shard-size", "huge"], "--out-shard-size: 'huge' is not a size"),
        (["--num-threads", "0"], "--num-threads: 0 threads cannot compute"),
        (["--num-threads", "99999999999999999999"], "--num-threads: 99999999999999999999 threads cannot compute"),
        (["--device", "meta"], "--device: no device 'meta' here"),
        (["--device", "tpu9"], "--device: no device 'tpu9' here"),
    ],
)
def test_options_that_cannot_be(run, options, said):
    code, folder, message = run(*options)
    assert code == 2
    assert said in message
    assert "Traceback" not in message
    assert not folder.exists()


def test_threads_do_not_change_the_result(run):
    before = torch.get_num_threads()
    try:
        one, three = (checkpoint_digest(run("-j", n, out=f"out{n}")[1]) for n in (1, 3))
    finally:
        torch.set_num_threads(before)
    assert one == three


def test_intermediate_documents_are_written_if_asked(run, models, tmp_path):
    file = tmp_path / "stages.yaml"
    file.write_text(
        f"name: mean\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        f"models: [{{model: {models['a']}}}, {{model: {models['b']}}}]\n"
        f"---\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: mean}}, {{model: {models['c']}}}]\n"
    )
    _, folder, _ = run("-I", tmp_path / "stages", file=file)
    assert sorted(f.name for f in (tmp_path / "stages").iterdir()) == ["mean"]
    folders = (models["a"], models["b"], models["c"], tmp_path / "stages" / "mean", folder)
    a, b, c, mean, out = (load_file(f / "model.safetensors")["lm_head.weight"] for f in folders)
    assert torch.allclose(mean, (a + b) / 2, atol=1e-6)
    assert torch.allclose(out, (mean + c) / 2, atol=1e-6)
    shutil.rmtree(tmp_path / "stages")
    run(file=file, out="last")
    assert not (tmp_path / "stages").exists()


def test_an_adapter_is_a_model_of_a_recipe(run, models, tmp_path):
    name = "model.layers.0.mlp.up_proj"
    a, b = torch.randn(2, tiny_models.HIDDEN), torch.randn(tiny_models.INNER, 2)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tiny_models.save_file(
        {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    file = tmp_path / "lora.yaml"
    file.write_text(
        f"merge_method: task_arithmetic\nbase_model: {models['base']}\n"
        f"models:\n- {{model: {models['base']}+adapter, parameters: {{weight: 0.5}}}}\n"
    )
    code, folder, _ = run(file=file)
    assert code == 0
    base, merged = (load_file(f / "model.safetensors")[f"{name}.weight"] for f in (models["base"], folder))
    assert torch.allclose(merged, base + 0.5 * 3.0 * b @ a, atol=1e-5)
    assert f"`{models['base']}+adapter`" in (folder / "README.md").read_text()


_ROWS = 7000


def large(folder: Path, seed: int) -> Path:
    """A checkpoint of 16 MB, so that merging it takes a while."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": _ROWS}
    tensors: dict[str, Tensor] = {n: torch.zeros(256, 256) for n in tiny_models.shapes() if ".layers." in n}
    tensors |= {n: torch.full((_ROWS, 256), float(seed)) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    return tiny_models.write(folder, tensors, **sizes)


def test_a_killed_process_leaves_nothing_like_a_checkpoint(tmp_path):
    base, source = large(tmp_path / "base", 0), large(tmp_path / "source", 1)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(
        f"merge_method: ties\nbase_model: {base}\n"
        f"models: [{{model: {source}, parameters: {{weight: 1, density: 0.5}}}}]"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "merge", str(file), str(out)], stderr=subprocess.DEVNULL
    )
    ends = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.glob(".out.partial-*/*.part")) and time.monotonic() < ends:
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    left = [p for p in tmp_path.glob(".out.partial-*") if p.is_dir()]
    assert len(left) == 1
    assert {f.suffix for f in left[0].iterdir()} == {".part"}
    with pytest.raises(InputError):
        Checkpoint.open(str(left[0]))
    assert main(["merge", str(file), str(out)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out", "recipe.yaml", "source"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_leaves_nothing(disk, tmp_path):
    """8 MB are to be written, and another program takes 8 of the 12 once this one has begun."""
    recipe = parse_recipe(
        f"merge_method: passthrough\nmodels: [{{model: {large(tmp_path / 'm', 1)}}}]\ndtype: bfloat16"
    )
    other = disk / "another program's"

    def fill(text, share):
        if not other.exists():
            other.write_bytes(b"\0" * 8_000_000)

    with pytest.raises(InputError, match="the disk is full") as caught:
        merge(recipe, disk / "out", progress=fill)
    assert "\n" not in str(caught.value)
    assert [p.name for p in disk.iterdir()] == [other.name]
