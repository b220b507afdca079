"""Faults of a merge beyond the fifteen that doctor was built for, each with its own cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from evomerge.cli import main
from evomerge.examine.doctor import Diagnosis, doctor
from tests.examine.patients import Models, edit, edit_json, write_models

Change = Callable[[Path], object]
LAYER = "model.layers.{}.{}.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    found = write_models("llama", tmp_path_factory.mktemp("llama"))
    found.merge(found.root / "merge", found.arithmetic())
    return found


def _after(models: Models, change: Change, out: Path, quick: bool = True) -> Diagnosis:
    """What is found in a healthy merge after a change. It stands where its recipe's paths lead to the parents."""
    folder = models.root / out.name
    shutil.copytree(models.root / "merge", folder)
    change(folder)
    return doctor(folder, quick=quick, device="cpu")


def _weights(change: Callable[[dict[str, Tensor]], object]) -> Change:
    return lambda folder: edit(folder, change)


def _swapped(part: str, one: int, other: int) -> Change:
    a, b = LAYER.format(one, part), LAYER.format(other, part)
    return _weights(lambda t: t.update({a: t[b], b: t[a]}))


def _times(name: str, factor: float) -> Change:
    return _weights(lambda t: t.update({name: t[name] * factor}))


def _configured(**changes: Any) -> Change:
    return lambda folder: edit_json(folder, "config.json", **changes)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (_swapped("mlp.down_proj", 0, 2), "tensors-of-other-layers", "is that of"),
        (_swapped("input_layernorm", 1, 3), "tensors-of-other-layers", "is that of"),
        (_configured(num_hidden_layers=3), "layers-cut-off", "layers in config"),
        (_times("lm_head.weight", -1), "like-no-parent", "cosine with the parents"),
        (_times("lm_head.weight", 0.1), "like-no-parent", "distance of lm_head.weight from base"),
        (_times(LAYER.format(1, "mlp.down_proj"), 0.1), "like-no-parent", "distance of"),
        (_times("model.norm.weight", 3), "norm-growth", "norm of"),
        (
            lambda folder: edit_json(folder, "config.json", num_key_value_heads=1),
            "configuration-of-another-model",
            "num",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_cause_is_named(models: Models, change: Change, name: str, said: str, tmp_path: Path) -> None:
    found = _after(models, change, tmp_path).findings
    assert [f.name for f in found] == [name], [f.says for f in found]
    assert said in found[0].evidence[0].what


@pytest.mark.slow
def test_a_beginning_of_text_that_is_added_twice(models: Models, tmp_path: Path) -> None:
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}

    def change(folder: Path) -> None:
        processor: dict[str, Any] = {
            "type": "TemplateProcessing",
            "single": [start, start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
        edit_json(folder, "tokenizer.json", post_processor=processor)

    [found] = _after(models, change, tmp_path, quick=False).findings
    assert found.name == "tokenizer-reads-otherwise"
    assert str(found.evidence[0].value).startswith("<s> <s>")


@pytest.mark.slow
def test_an_end_of_text_that_is_no_number(models: Models, tmp_path: Path) -> None:
    """transformers fails with a TypeError over it."""
    found = _after(models, lambda f: edit_json(f, "generation_config.json", eos_token_id="</s>"), tmp_path, quick=False)
    assert [f.name for f in found.findings] == ["end-of-text"]


def test_a_recipe_that_cannot_be_read_is_told(models: Models, tmp_path: Path) -> None:
    found = _after(models, lambda folder: (folder / "mergekit_config.yml").write_text("models: ["), tmp_path)
    assert found.notes[0].startswith("mergekit_config.yml cannot be read (is not valid YAML")


@pytest.mark.slow
def test_json_leaves_out_the_texts_tokens(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(models.root / "merge"), "--json", "--device", "cpu"]) == 0
    assert "tokens" not in json.loads(capsys.readouterr().out)["behaviour"]["the merge"]
