"""Broken checkpoints in the place of a base, a source and an adapter: a dry run and a merge either do their job or say
in one line what is wrong, within seconds of computing, and then nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mutations
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.errors import EvomergeError, InputError
from evomerge.examine.evaluate import evaluate
from evomerge.merging.disk.stream import merge
from evomerge.safety import templates
from evomerge.study.dry_run import dry_run
from tests.conftest import save_tiny, write_task

ROOT = Path(__file__).parents[2]
MODELS = {**mutations.models(), **mutations.folders()}
CASES = [
    *(("base", name) for name in MODELS),
    *(("source", name) for name in MODELS),
    *(("adapter", name) for name in {**mutations.adapters(), **mutations.folders()}),
]
DRY_RUN, MERGE = ["search", "space.yaml", "--dry-run"], ["merge", "recipe.yaml", "out"]
SHOWN = 29
"""By default one case in so many is tried, with `--long` every one."""
MOST_SECONDS = 5.0
ONLY_WEIGHTS_TELL = "ties its head to its embeddings, but stores"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a source, an adapter, a space and a recipe of the three."""
    root = tmp_path_factory.mktemp("whole")
    save_tiny(root / "base", 1)
    save_tiny(root / "source", 2, near=root / "base")
    (root / "base" / "generation_config.json").write_text('{"eos_token_id": 1}')
    (root / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (root / "adapter").mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    weight = load_file(root / "base" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    tensors = {f"{module}.lora_A.weight": torch.ones(4, weight.shape[1]) / 9,
               f"{module}.lora_B.weight": torch.ones(weight.shape[0], 4) / 9}  # fmt: skip
    save_file(tensors, root / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    write_task(root, "tiny", 1)
    sources = {"source": "source", "adapter": "base+adapter"}
    space: dict[str, Any] = {
        "base": "base",
        "sources": sources,
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0}},
        "fitness": "fitness.yaml",
    }
    fitness = {"include": ["."], "slices": {"a": {"task": "tiny", "metric": "acc"}}}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": m, "parameters": {"weight": 0.5}} for m in sources.values()],
    }
    (root / "space.yaml").write_text(yaml.safe_dump(space))
    (root / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (root / "union.yaml").write_text(yaml.safe_dump({**recipe, "tokenizer_source": "union", "chat_template": "auto"}))
    alone = {**recipe, "models": [{"model": "adapter", "parameters": {"weight": 0.5}}]}
    (root / "alone.yaml").write_text(yaml.safe_dump(alone))
    return root


def broken(whole: Path, folder: Path, position: str, name: str) -> Path:
    """A copy of everything with one mutation."""
    shutil.copytree(whole, folder)
    all_mutations = {**MODELS, **(mutations.adapters() if position == "adapter" else {})}
    all_mutations[name](folder / position)
    return folder


def attempt(what: str, folder: Path) -> str | None:
    """Runs the dry run or a merge there. Returns the message, or None where it did its job."""
    merged: list[str] = []
    message = None
    try:
        if what == "dry run":
            dry_run(folder / "space.yaml", device="cpu")
        else:
            merge(folder / what, folder / "out" / "merged", progress=lambda text, share: merged.append(text))
    except EvomergeError as error:
        message = str(error)
    written = (folder / "out").exists() and any((folder / "out").iterdir())
    shutil.rmtree(folder / "out", ignore_errors=True)
    if message is not None:
        assert not written
        assert not merged or ONLY_WEIGHTS_TELL in message, "it is said before the first tensor"
    return message


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        most = metafunc.config.getoption("--long", default=None) or 0
        cases = CASES if most > len(CASES) else CASES[::SHOWN]
        metafunc.parametrize("case", cases, ids=[f"{position}-{name}" for position, name in cases])


def test_one_line_or_done(case: tuple[str, str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    position, name = case
    folder = broken(whole, tmp_path / "x", position, name)
    monkeypatch.chdir(folder)
    for what in ("dry run", "recipe.yaml", "union.yaml", *(["alone.yaml"] if position == "adapter" else [])):
        started = time.process_time()
        message = attempt(what, folder)
        assert time.process_time() - started < MOST_SECONDS, what
        assert message is None or (message.isprintable() and len(message) < 2000), what


def test_there_are_many() -> None:
    assert len(CASES) > 300


def test_the_whole_one_is_done(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    assert [attempt(what, Path()) for what in ("dry run", "recipe.yaml", "alone.yaml")] == [None] * 3


@pytest.mark.parametrize(
    ("position", "name", "arguments", "said"),
    [
        ("adapter", "adapter rank_pattern unclosed", DRY_RUN, "is no regular expression"),
        ("source", "name: escape", DRY_RUN, "is no name of a tensor"),
        ("base", "generation_config.json: unclosed", MERGE, "generation_config.json is not valid JSON"),
    ],
)
def test_the_commands(position: str, name: str, arguments: list[str], said: str, whole: Path, tmp_path: Path) -> None:
    folder = broken(whole, tmp_path / "x", position, name)
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    assert said in lines[0]
    assert sorted(folder.rglob("*")) == before


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("kind", ["llama", "own"])
def test_no_code_of_a_checkpoint_runs(kind: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Python files that auto_map names nor pickles beside the weights are touched by anything."""
    folder, marker = tmp_path / "x", tmp_path / "ran"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    for model in ("base", "source", "adapter"):
        for file in ("own.py", "modeling_own.py", "tokenization_own.py", "configuration_own.py"):
            (folder / model / file).write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
        for file in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt", "model.ckpt"):
            (folder / model / file).write_bytes(pickle.dumps(Marker(marker)))
    code = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "own.Own")
    code["AutoTokenizer"] = ["own.Own", "own.Own"]  # type: ignore[assignment]
    for model in ("base", "source"):
        mutations.edit("config.json", "model_type", kind)(folder / model)
        mutations.edit("config.json", "auto_map", code)(folder / model)
        mutations.edit("tokenizer_config.json", "auto_map", code)(folder / model)
    attempt("recipe.yaml", folder)
    attempt("union.yaml", folder)
    said = attempt("dry run", folder)
    assert kind == "llama" or "needs its own Python code to run" in (said or "")
    refused: AbstractContextManager[Any] = nullcontext() if kind == "llama" else pytest.raises(EvomergeError)
    with refused:
        evaluate("base", "fitness.yaml", device="cpu", split="all")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("chat_template.jinja", "{{ raise_exception('\x1b[31mno') }}", r"cannot be rendered \(\\x1b\[31mno\)"),
        ("chat_template.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
         r"takes more than 0.2 s"),
        ("tokenizer.json", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
         "fails on a text .*retry-limit-in-match"),
    ],
)  # fmt: skip
def test_what_fails_on_the_prompts(
    file: str, content: Any, said: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template and a tokenizer that are well formed, and fail or never end where they are used."""
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(templates, "SECONDS", 0.2 if "0.2" in said else 60.0)
    if file == "tokenizer.json":
        mutations.edit(file, "pre_tokenizer", content)(folder / "base")
        (folder / "base" / "chat_template.jinja").write_text("{{ 'a' * 40 }}b")
    else:
        (folder / "base" / file).write_text(content)
    mutations.edit("fitness.json", "slices", {"a": {"task": "tiny", "metric": "acc", "apply_chat_template": True}})(
        folder
    )
    mutations.edit("fitness.json", "include", ["."])(folder)
    with pytest.raises(InputError, match=said) as error:
        evaluate("base", "fitness.json", device="cpu", split="all")
    assert "x/base" in str(error.value)
