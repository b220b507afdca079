"""Tiny real checkpoints and a tiny real study that every room's tests can use."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch: threads that spin slow each other on a busy machine, and so do more threads than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "as many cases as this (100000) in tests that try many: mutants, broken checkpoints, failing writes"
    parser.addoption("--long", nargs="?", type=int, const=100_000, help=text)
    parser.addoption("--gpu-device", default="cuda", help="of the tests marked gpu; cpu rehearses them")


SHARED = Path(__file__).parents[1].parent / "shared"
LETTERS = "abcdefghij "


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """What started the tests (nohup, a shell in the background) may ignore signals, and programs then leave them
    ignored."""
    handlers = {"SIGHUP": signal.SIG_DFL, "SIGQUIT": signal.SIG_DFL, "SIGINT": signal.default_int_handler}
    for name, handler in handlers.items():
        if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for later searches is kept for these tests only, also in the processes that they start."""
    os.environ["EVOMERGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def pages() -> None:
    """Searches end with their page, as they do outside of tests."""


@pytest.fixture(autouse=True)
def _no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches in this process write no page, which has five megabytes, unless the test asks for `pages`."""
    page = sys.modules.get("evomerge.study.page")
    if page is not None and "pages" not in request.fixturenames:
        monkeypatch.setattr(page, "write_page", lambda result, observer: None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints that stands beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which only developers have")
    return SHARED


def save_tiny(folder: Path, seed: int, *, near: Path | None = None, scale: float = 0.02, **config: Any) -> Path:
    """A two-layer Llama over letters; with `near`, that model plus noise of size `scale`."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    settings = {
        "vocab_size": len(LETTERS) + 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if near is None:
            model = LlamaForCausalLM(LlamaConfig(**settings))
        else:
            model = AutoModelForCausalLM.from_pretrained(near)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (scale if near else 0.3))
    model.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `one` and `two`: a base and two fine-tunes of it (noise, in place of training)."""
    root = tmp_path_factory.mktemp("models")
    save_tiny(root / "base", 1)
    save_tiny(root / "one", 2, near=root / "base", scale=0.2)
    save_tiny(root / "two", 3, near=root / "base", scale=0.2)
    return root


def write_task(folder: Path, name: str, seed: int, count: int = 40) -> None:
    """A 3-way multiple choice task of `count` random items, as lm-eval YAML with its data beside it."""
    draw = random.Random(seed)

    def word(n: int) -> str:
        return "".join(draw.choice(LETTERS[:-1]) for _ in range(n))

    items = [{"question": word(6), "choices": [" " + word(3) for _ in range(3)], "label": i % 3} for i in range(count)]
    write_choices(folder, name, items)


def write_choices(folder: Path, name: str, items: list[dict[str, Any]]) -> None:
    """A multiple choice task of these items (`question`, `choices`, `label`), as lm-eval YAML with its data beside."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import signal, sys; from evomerge.cli import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())",
]
"""evomerge in a process that hears Ctrl-C, though the tests themselves may run in the background of a shell, whose
jobs do not."""

Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A factory: writes `space.yaml`, `fitness.yaml` and two tasks into a fresh folder, makes it the current folder,
    and returns the space file. A `change(space, fitness)` may edit both before they are written."""
    shutil.copytree(tiny_models, tmp_path / "models")
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "tiny_a", 1)
    write_task(tmp_path / "tasks", "tiny_b", 2)
    monkeypatch.chdir(tmp_path)

    def make(change: Change | None = None) -> Path:
        space: dict[str, Any] = {
            "base": "models/base",
            "sources": {"one": "models/one", "two": "models/two"},
            "layers": 2,
            "genes": {
                "method": "task_arithmetic",
                "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]},
            },
            "optimizer": {"name": "cma-es", "seed": 3, "population": 8, "warm_start": False},
            "budget": {"trials": 12},
            "fitness": "fitness.yaml",
        }
        fitness: dict[str, Any] = {
            "include": ["tasks"],
            "batch_size": 64,
            "slices": {
                "a": {"task": "tiny_a", "metric": "acc", "floor": 0.0},
                "b": {"task": "tiny_b", "metric": "acc", "floor": {"of": "base", "margin": 0.5}},
            },
        }
        if change is not None:
            change(space, fitness)
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
        return tmp_path / "space.yaml"

    return make
