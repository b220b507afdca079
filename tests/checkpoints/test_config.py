"""Settings that decide how large a model is are held to the tensors that are there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.config import config_json, read_config, read_settings
from evomerge.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("config") / "m", tiny_models.base_tensors())


def opened(folder: Path, **changes: Any) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(tiny_models.config(**changes)))
    return Checkpoint.open(str(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 4}, "no numbered stack of 4 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, not a whole number from 1"),
        ({"num_hidden_layers": 3.0}, "num_hidden_layers is 3.0, not a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
        ({"vocab_size": 21}, "vocab_size is 21, but its token embeddings have 20 rows"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, not a whole number"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1, not a whole number"),
        ({"num_labels": 10**7}, "num_labels is 10000000, more than any of its tensors has"),
        ({"num_local_experts": 10**9}, "num_local_experts is 1000000000, more than"),
        ({"vision_config": {"depth": 10**9}}, "depth is 1000000000, more than"),
        ({"text_config": []}, r"text_config is \[\], not a mapping"),
        ({"id2label": []}, r"id2label is \[\], not a mapping"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], not a text"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', not true or false"),
    ],
)
def test_what_does_not_agree(changes: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        opened(folder, **changes)
    assert "config.json" in str(error.value) or "tensors" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 1000, "id2label": {str(i): "x" for i in range(1000)}},
        {"max_position_embeddings": 10_485_760, "rope_theta": 1e15},
        {"block_size": 131_072, "attention_block_dim": 20_000},
        {"text_config": None, "num_layers": None, "tie_word_embeddings": None},
        {"num_hidden_layers": None, "text_config": {"num_hidden_layers": 3, "vocab_size": 20}, "vocab_size": 99},
    ],
)
def test_what_is_healthy(changes: dict[str, Any], folder: Path) -> None:
    assert opened(folder, **changes).layers == 3


def test_embeddings_may_have_rows_that_the_head_lacks(tmp_path: Path) -> None:
    """As Mllama's have, for its image tokens."""
    tensors = tiny_models.base_tensors()
    name = "model.embed_tokens.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:8]])
    folder = tiny_models.write(tmp_path / "m", tensors)
    assert Checkpoint.open(str(folder)).layers == 3
    tensors["lm_head.weight"] = tensors[name].clone()
    with pytest.raises(InputError, match="vocab_size is 20, but its token embeddings have 28 rows"):
        Checkpoint.open(str(tiny_models.write(tmp_path / "m", tensors)))


def test_a_configuration_of_the_user_s_own_is_their_own(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"text_config": [], "num_labels": 10**9, "vocab_size": "x"}))
    assert Checkpoint.open(str(folder)).layers == 3


def test_settings_are_not_nested_without_end(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a":' * 60 + "1" + "}" * 60)
    read_settings(file)
    file.write_text('{"a":' + "[" * 70 + "]" * 70 + "}")
    with pytest.raises(InputError, match="is nested more than 64 levels deep"):
        read_settings(file)


@pytest.mark.parametrize("word", ["Infinity", "-Infinity", "NaN"])
def test_numbers_that_json_lacks_are_read_and_written_as_transformers_does(word: str, tmp_path: Path) -> None:
    """transformers 5 writes a tag, version 4 the plain word; each is written as it was read."""
    text = f'{{"x": [0.0, {{"__float__": "{word}"}}], "y": {{"z": {word}}}, "w": {{"__float__": "other"}}}}'
    (file := tmp_path / "config.json").write_text(text)
    config = read_config(file)
    assert repr(config["x"][1]) == repr(config["y"]["z"]) == repr(float(word))
    assert config["w"] == {"__float__": "other"}
    assert config_json(copy.deepcopy(config)).split() == json.dumps(json.loads(text), indent=2).split()
