"""Everything that a converter for local use reads is in a merged folder: llama.cpp's, by its own library."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checkpoint import NAMED_TEMPLATES, PROCESSOR_FILES, TOKENIZER_FILES
from evomerge.merging.disk.stream import merge
from evomerge.recipe.mergekit import parse_recipe

gguf = pytest.importorskip("gguf")


def recipe(*models: Path, extra: str = "") -> str:
    listed = "".join(f"- {{model: '{model}', parameters: {{weight: 0.5}}}}\n" for model in models)
    return f"merge_method: linear\nbase_model: '{models[0]}'\n{extra}models:\n{listed}"


def content(name: str) -> bytes:
    if name == "tokenizer.json":
        raise AssertionError("models have one")
    if name.endswith(".json"):
        return json.dumps({"name": name} if "vocab" not in name else {"a": 0}).encode()
    return b"\xff\x00 a model" if name.endswith((".model", ".spm", ".v3")) else f"text of {name}\n".encode()


@pytest.fixture
def pair(models: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        shutil.copytree(models[name], tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize(
    "name", sorted({*TOKENIZER_FILES, *PROCESSOR_FILES} - {"tokenizer.json", "tokenizer_config.json"})
)
def test_every_kind_of_file_is_in_the_folder(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[0] / name).write_bytes(content(name))
    folder = merge(parse_recipe(recipe(*pair)), tmp_path / "out")
    for kept in (name, "tokenizer.json", "tokenizer_config.json"):
        assert (folder / kept).read_bytes() == (pair[0] / kept).read_bytes(), kept


def test_generation_settings_and_named_templates_are_in_the_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[0] / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.7}')
    (pair[0] / NAMED_TEMPLATES).mkdir()
    (pair[0] / NAMED_TEMPLATES / "tools.jinja").write_text("{{ messages }}")
    (pair[0] / "chat_template.jinja").write_text("{{ messages }}")
    folder = merge(parse_recipe(recipe(*pair)), tmp_path / "out")
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 2, "temperature": 0.7}
    assert (folder / NAMED_TEMPLATES / "tools.jinja").read_text() == "{{ messages }}"


def test_no_tokenizer_of_transformers_has_another_file() -> None:
    """The files that its tokenizers name, read from their source."""
    package = Path(transformers.__file__).parent
    named: set[str] = set()
    for file in (*package.glob("models/*/tokenization_*.py"), *package.glob("*tokenization*.py")):
        named |= set(re.findall(r'"[a-z_]*file"\s*:\s*"([\w.-]+\.[a-z]+)"', file.read_text()))
    assert {"vocab.json", "spiece.model", "tokenizer.json"} <= named
    assert named - {*TOKENIZER_FILES} == set()


def test_the_reader_of_llama_cpp_finds_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    """Byte-level BPE with merges, special and added tokens, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    folder = tmp_path / "a"
    shutil.copytree(models["a"], folder)
    vocab = {c: i for i, c in enumerate("abcdefghijklmnop")} | {"ab": 16, "cd": 17}
    tokenizer = Tokenizer(kinds.BPE(vocab, [("a", "b"), ("c", "d")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b/chat_template.jinja").write_text("{{ other }}")
    for number, extra in enumerate(("", "tokenizer_source: union\n", "chat_template: chatml\n")):
        out = merge(parse_recipe(recipe(folder, tmp_path / "b", extra=extra)), tmp_path / f"out{number}")
        found, own = (gguf.SpecialVocab(place, load_merges=True) for place in (out, folder))
        assert found.merges == own.merges == ["a b", "c d"]
        assert found.special_token_ids == own.special_token_ids == {"bos": 18, "eos": 19}
        assert found.add_special_token == own.add_special_token
        assert ("im_start" in found.chat_template) if "chatml" in extra else found.chat_template == own.chat_template
        assert list(gguf.BpeVocab(out).all_tokens()) == list(gguf.BpeVocab(folder).all_tokens())


def test_a_padded_vocabulary_is_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = tiny_models.VOCAB + 12
    for folder in pair:
        state = load_file(folder / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], torch.ones(12, tiny_models.HIDDEN)])
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    out = merge(parse_recipe(recipe(*pair)), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    assert load_file(out / "model.safetensors")["model.embed_tokens.weight"].shape[0] == rows
