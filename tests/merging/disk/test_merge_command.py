"""`evomerge merge`, as people who know mergekit-yaml and mergekit-multi call it; killed, and on a full disk."""

from __future__ import annotations

import json
import os
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
    assert "\n- `base` with `adapter`\n" in (folder / "README.md").read_text()


_ROWS = 7000


def large(folder: Path, seed: int) -> Path:
    """A checkpoint of 16 MB, so that merging it takes a while."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": _ROWS}
    tensors: dict[str, Tensor] = {n: torch.zeros(256, 256) for n in tiny_models.shapes() if ".layers." in n}
    tensors |= {n: torch.full((_ROWS, 256), float(seed)) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    return tiny_models.write(folder, tensors, **sizes)


@pytest.mark.slow
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


POSTED = {
    "a notebook": "--copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle --lora-merge-cache cache",
    "all that are not used here": (
        "-v -vv --quiet --lora-merge-dtype float16 --write-threads 2 --async-write --multi-gpu --clone-tensors"
        " --low-cpu-memory --read-to-gpu --trust-remote-code --safe-serialization --lazy"
    ),
    "opposites": (
        "--no-allow-crimes --no-unsafe-truncate-embeddings --no-trust-remote-code --no-quiet --no-cuda --no-gpu-rich"
        " --no-low-cpu-memory --no-lazy-unpickle --no-read-to-gpu --no-multi-gpu --no-async-write --no-clone-tensors"
        " --no-safe-serialization --no-lazy --write-model-card"
    ),
}


@pytest.mark.parametrize("name", POSTED)
def test_command_lines_that_people_post(run, name):
    plain = checkpoint_digest(run(out="plain")[1])
    code, folder, _ = run(*POSTED[name].split())
    assert code == 0
    assert checkpoint_digest(folder) == plain
    assert (folder / "README.md").is_file()


def test_the_last_of_a_switch_and_its_opposite_counts(run):
    _, folder, _ = run("--no-copy-tokenizer", "--no-write-model-card", "--copy-tokenizer")
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "README.md").exists()


def test_quiet_shows_no_progress(run):
    assert "MB/s" in run(out="loud")[2]
    assert run("--quiet")[2] == ""


@pytest.fixture
def stages(models, tmp_path):
    """A file for mergekit-multi: two documents, of which the second uses the first."""
    file = tmp_path / "stages.yaml"
    body = "merge_method: linear\nmodels: [{{model: {}}}, {{model: {}}}]\nparameters: {{weight: 1}}\n"
    first = "name: first\n" + body.format(models["a"], models["b"])
    file.write_text(first + "---\n" + body.format("first", models["c"]))
    return file


def test_a_command_line_of_mergekit_multi(stages, tmp_path):
    words = [
        "merge",
        str(stages),
        "--intermediate-dir",
        str(tmp_path / "parts"),
        "--out-path",
        str(tmp_path / "out"),
        "--lazy",
    ]
    assert main(words) == 0
    assert Checkpoint.open(str(tmp_path / "out")).layers == Checkpoint.open(str(tmp_path / "parts" / "first")).layers


def test_where_all_documents_have_names_they_stand_side_by_side(stages, tmp_path, capsys):
    stages.write_text(stages.read_text().replace("---\n", "---\nname: second\n"))
    assert main(["merge", str(stages), "-I", str(tmp_path / "parts")]) == 0
    assert {f.name for f in (tmp_path / "parts").iterdir()} == {"first", "second"}
    capsys.readouterr()
    assert main(["merge", str(stages)]) == 2
    assert "needs OUT_DIR" in capsys.readouterr().err


def test_an_output_has_one_folder(stages, tmp_path, capsys):
    assert main(["merge", str(stages), "-I", str(tmp_path / "parts")]) == 2
    assert "needs OUT_DIR" in capsys.readouterr().err
    assert main(["merge", str(stages), str(tmp_path / "out"), "--out-path", str(tmp_path / "other")]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_folder_may_stand_behind_options(recipe, tmp_path):
    assert main(["merge", str(recipe), "-j", "1", str(tmp_path / "out")]) == 0


@pytest.mark.slow
def test_the_cache_of_hub_models(models, tmp_path):
    """In a process of its own: the hub's library reads the setting once."""
    commit, cache = "c" * 40, tmp_path / "cache"
    for name in ("a", "b"):
        repository = cache / f"models--org--{name}"
        shutil.copytree(models[name], repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "merge_method: slerp\nbase_model: org/a\nmodels: [{model: org/a}, {model: org/b}]\nparameters: {t: 0.5}\n"
    )
    words = [sys.executable, "-m", "evomerge.cli", "merge", str(file), str(tmp_path / "out"), "--transformers-cache"]
    done = subprocess.run(
        [*words, str(cache)], env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_models_of_different_types_whose_tensors_are_alike(models, tmp_path, capsys):
    other = tmp_path / "mistral"
    shutil.copytree(models["b"], other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"model_type": "mistral"}))
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"merge_method: linear\nmodels: [{{model: {models['a']}}}, {{model: {other}}}]\nparameters: {{weight: 1}}\n"
    )
    assert main(["merge", str(file), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "is a mistral model, the merge is of llama models" in said
    assert "--allow-crimes" in said
    assert main(["merge", str(file), str(tmp_path / "out"), "--allow-crimes"]) == 0
    a, b, merged = (load_file(folder / "model.safetensors") for folder in (models["a"], other, tmp_path / "out"))
    assert all(torch.allclose(tensor, (a[name] + b[name]) / 2) for name, tensor in merged.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
