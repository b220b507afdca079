"""Tokenizers of merged models as values: stripped, joined, extended, loaded."""

from __future__ import annotations

import json

import pytest
import tiny_models
from tokenizers import AddedToken, Tokenizer, models

from evomerge.checkpoints.vocabulary import Added, Vocabulary, extended, union, without_unused
from evomerge.errors import InputError

WORDS = ["<unk>", "a", "b", "ab", "c", "bc"]


def bpe(folder, words=WORDS, added=(), **config):
    folder.mkdir()
    merges = [("a", "b"), ("b", "c")] if "bc" in words else [("a", "b")]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Vocabulary.of(folder)


def test_a_folders_own(tmp_path):
    own = bpe(tmp_path / "a", added=[AddedToken("<x>", special=True)])
    assert dict(own.tokens) == {w: i for i, w in enumerate([*WORDS, "<x>"])}
    assert own.rows == 7
    assert own.marked["<x>"] == Added("<x>", special=True, normalized=False)
    assert own.as_stored
    assert own.readable
    assert not Vocabulary.of(tmp_path).readable


def test_tokens_without_rows_go_and_nothing_else_does(tmp_path):
    whole = bpe(tmp_path / "a", added=["<pad>"], pad_token="<pad>")
    assert without_unused(whole, 7) is whole
    less = without_unused(whole, 5)
    assert list(less.tokens) == WORDS[:5]
    tokenizer = less.load()
    assert tokenizer("abc").input_ids == [3, 4]
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(tmp_path / "out")
    assert dict(Vocabulary.of(tmp_path / "out").tokens) == dict(less.tokens)


def test_only_bpe_can_lose_tokens_of_its_model(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    tiny_models.write_tokenizer(folder)
    with pytest.raises(InputError, match="this one is WordLevel"):
        dict(without_unused(Vocabulary.of(folder), 10).tokens)


def test_union_keeps_ids_and_settings(tmp_path):
    base = bpe(tmp_path / "base")
    marked = AddedToken("<x>", special=True, lstrip=True)
    one = bpe(tmp_path / "one", ["<unk>", "b", "a", "ab", "new"], [marked])
    two = bpe(tmp_path / "two", [*WORDS, "late"], ["<x>", "<y>"])
    joined = union(base, ((one, 6), (two, 9)))
    assert list(joined.tokens) == [*WORDS, "new", "late", "<x>", "<y>"]
    assert joined.marked["<x>"] == Added("<x>", special=True, normalized=False, lstrip=True)
    assert list(union(base, ((one, 5), (two, 7))).tokens) == [*WORDS, "new", "late"]  # <x> and <y> have no rows
    assert joined.load()("ab<x>new").input_ids == [3, 8, 6]


def test_extended(tmp_path):
    base = bpe(tmp_path / "base")
    assert extended(base, []) is base
    assert extended(base, [Added("<x>")]).tokens["<x>"] == 6


def test_a_changed_folder_is_another_vocabulary(tmp_path):
    before = bpe(tmp_path / "base")
    assert Vocabulary.of(before.folder) == before
    file = before.folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"c": 4', '"change": 4').replace('"c":4', '"change":4'))
    assert Vocabulary.of(before.folder) != before
