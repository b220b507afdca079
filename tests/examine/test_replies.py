"""What models write after a prompt of the user's, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import evomerge
from evomerge.cli import main

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tiny_study: Study, tmp_path: Path) -> str:
    tiny_study()
    (tmp_path / "merge.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: models/base\nmodels:\n"
        + "".join(f"- {{model: models/{name}, parameters: {{weight: 0.5}}}}\n" for name in ("one", "two"))
    )
    return "merge.yaml"


def expected(folder: str, prompt: str) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, do_sample=False, max_new_tokens=64, eos_token_id=1, pad_token_id=1)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_evaluate_shows_base_sources_and_model(recipe: str, tmp_path: Path, capsys: Said) -> None:
    command = ["evaluate", recipe, "--fitness", "fitness.yaml", "--prompt", "abc", "--prompt", "jig"]
    assert main([*command, "--json"]) == 0
    replies = json.loads(capsys.readouterr().out)["replies"]
    assert [reply["prompt"] for reply in replies] == ["abc", "jig"]
    assert list(replies[0]["models"]) == ["base", "one", "two", "the model"]
    evomerge.merge(recipe, "out")
    for reply in replies:
        for name, folder in (("base", "models/base"), ("two", "models/two"), ("the model", "out")):
            assert reply["models"][name] == expected(folder, reply["prompt"]), name
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "After 'abc'" in said
    assert "the model" in said


@pytest.mark.slow
def test_doctor_shows_them_too(recipe: str, capsys: Said) -> None:
    evomerge.merge(recipe, "out")
    command = ["doctor", "out", "--device", "cpu", "--prompt", "abc"]
    assert main([*command, "--json"]) in (0, 1)
    (reply,) = json.loads(capsys.readouterr().out)["replies"]
    assert list(reply["models"]) == ["base", "one", "two", "the merge"]
    assert reply["models"]["the merge"] == expected("out", "abc")
    assert main([*command, "--quick"]) == 2
    assert "a quick look runs no model" in capsys.readouterr().err


def test_texts_are_shown_printable(recipe: str, capsys: Said) -> None:
    command = ["evaluate", "models/one", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
    assert main([*command, "--prompt", "a\x1b[2Jb"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"After 'a\x1b[2Jb'" in said
