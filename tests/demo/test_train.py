"""Training of the quickstart's models, with a few steps of a very small model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.demo import data
from evomerge.demo.train import MODELS, Settings, TrainingSchedule, prepare

SHORT = TrainingSchedule(2, 1e-3)
SETTINGS = Settings(
    hidden=16, intermediate=24, layers=2, heads=2, base=SHORT, shipping=SHORT, refunds=SHORT, catalog=SHORT
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    prepare(folder, settings=SETTINGS)
    return folder


def _times(root: Path) -> dict[str, int]:
    models = root / "models" / "quickstart"
    return {m: (models / m / "model.safetensors").stat().st_mtime_ns for m in MODELS}


def _weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(root / "models" / "quickstart" / name)
    return dict(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_load_and_answer(root: Path, name: str) -> None:
    folder = root / "models" / "quickstart" / name
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = data.items("shipping")[0].prompt
    tokens = tokenizer(question, return_tensors="pt")["input_ids"]
    assert tokens.shape[1] == len(question.split())
    assert tokenizer.unk_token_id not in tokens.tolist()[0]
    assert tokenizer.decode(tokens[0]) == question
    assert model.dtype == torch.float32
    assert model.generate(tokens, max_new_tokens=1).shape[1] == tokens.shape[1] + 1


def test_specialists_differ_from_the_base(root: Path) -> None:
    base = _weights(root, "base")
    for name in data.DOMAINS:
        assert any(not torch.equal(tensor, base[key]) for key, tensor in _weights(root, name).items())


def test_whole_models_are_kept(root: Path) -> None:
    before = _times(root)
    told: list[tuple[str, float]] = []
    prepare(root, lambda message, done: told.append((message, done)), SETTINGS)
    assert _times(root) == before
    assert told[-1][1] == 1.0
    assert not any("training" in message for message, _ in told)


def test_an_interrupted_preparation_trains_only_what_is_missing(tmp_path: Path) -> None:
    prepare(tmp_path, settings=SETTINGS)
    before, models = _times(tmp_path), tmp_path / "models" / "quickstart"
    (models / "manifest.json").unlink()
    (models / "refunds" / "model.safetensors").unlink()
    told: list[tuple[str, float]] = []
    prepare(tmp_path, lambda message, done: told.append((message, done)), SETTINGS)
    after = _times(tmp_path)
    assert {m for m in MODELS if after[m] != before[m]} == {"refunds"}
    assert (models / "manifest.json").is_file()
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert not list(models.glob(".*"))


def test_other_settings_train_again_and_the_same_give_the_same_weights(tmp_path: Path) -> None:
    prepare(tmp_path, settings=SETTINGS)
    first = _weights(tmp_path, "catalog")
    prepare(tmp_path, settings=Settings(**{**vars(SETTINGS), "seed": 1}))
    other = _weights(tmp_path, "catalog")
    prepare(tmp_path, settings=SETTINGS)
    again = _weights(tmp_path, "catalog")
    assert any(not torch.equal(first[k], other[k]) for k in first)
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    prepare(tmp_path, settings=SETTINGS)
    assert torch.equal(before, torch.random.get_rng_state())
