"""YAML trees: every value knows its line and key; readers say what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.files.settings import override
from evomerge.files.trees import load, parse_documents


def node(text: str):
    return parse_documents(text, Path("f.yaml"))[0]


def test_values_know_their_line_and_key() -> None:
    tree = node("a: 1\nb:\n  c: [x, {d: 2}]\n")
    where = tree.value["b"].value["c"].value[1].value["d"].where
    assert (str(where.file), where.line, where.key) == ("f.yaml", 3, "b.c.1.d")


def test_plain_data_comes_back() -> None:
    assert node("a: 1\nb: [1.5, null, yes, text]\n").data == {"a": 1, "b": [1.5, None, True, "text"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f.yaml:2: a: stands twice; keep one of them"),
        ("no: 1\n", "f.yaml:1: the key 'no' reads as False; put it in quotes"),
        ("a: [1\n", "f.yaml:1: a: is not valid YAML: the [ that is opened in this line is not closed by line 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        ("a: *nothing\n", "is not valid YAML"),
    ],
)
def test_what_yaml_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        node(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("a: x\n", lambda n: n.number(), "is 'x', not a number"),
        ("a: .nan\n", lambda n: n.number(), "not a number"),
        ("a: true\n", lambda n: n.number(), "is True, not a number"),
        ("a: 3\n", lambda n: n.number(0, 1), "3 is outside [0, 1]"),
        ("a: 1.5\n", lambda n: n.integer(), "not a whole number"),
        ("a: 1\n", lambda n: n.boolean(), "is 1, not true or false"),
        ("a: 1\n", lambda n: n.text(), "is 1, not a text"),
        ("a: ''\n", lambda n: n.text(), "not a text"),
        ("a: 1\n", lambda n: n.mapping(), "is 1, not a mapping"),
        ("a: 1\n", lambda n: n.sequence(), "is 1, not a list"),
        ("a: tie\n", lambda n: n.one_of(["ties", "slerp"], "method"), "unknown method 'tie'; did you mean 'ties'?"),
    ],
)
def test_readers_refuse(text, read, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(node(text).value["a"])
    assert str(caught.value).startswith("f.yaml:1: a: ")
    assert message in str(caught.value)


def test_a_number_in_the_notation_that_yaml_reads_as_text() -> None:
    assert node("a: 1e-3\n").value["a"].number() == 0.001


def test_overrides() -> None:
    tree = node("a: {b: 1}\noptimizer: tpe\n")
    override(tree, "a.b=[1, 2]")
    override(tree, "c.d = text")
    override(tree, "optimizer.seed=4")
    assert tree.data == {"a": {"b": [1, 2]}, "c": {"d": "text"}, "optimizer": {"name": "tpe", "seed": 4}}
    with pytest.raises(InputError, match="not a mapping"):
        override(tree, "a.b.c=1")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(InputError, match="holds 0 YAML documents"):
        load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "x.yaml")
