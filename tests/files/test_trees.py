"""YAML text -> trees: what a scalar is, what is refused, and that no text takes long or much memory."""

from __future__ import annotations

import datetime
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InputError
from evomerge.files.nodes import Node
from evomerge.files.scalars import Schema
from evomerge.files.trees import LONGEST_KEY, LONGEST_TEXT, MOST_DOCUMENTS, MOST_VALUES, load, parse_documents

REFUSED = object()
OPEN = "is not valid YAML: the {} that is opened in this line is not closed"


def tree(text: str, schema: Schema = Schema.OWN) -> Node:
    return parse_documents(text, Path("f.yaml"), schema)[0]


def complaint(text: str, schema: Schema = Schema.OWN) -> str:
    with pytest.raises(InputError) as caught:
        tree(text, schema)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1_000
    return message


@pytest.mark.parametrize(
    ("written", "own", "recipe", "task"),
    [
        ("10", 10, 10, 10),
        ("010", 10, REFUSED, 8),
        ("007", 7, 7, 7),
        ("08", 8, 8, "08"),
        ("0o10", 8, 8, "0o10"),
        ("0x1F", 31, 31, 31),
        ("0b11", 3, 3, 3),
        ("1_000", 1000, 1000, 1000),
        ("1e3", 1000.0, 1000.0, "1e3"),
        ("1.5e-3", 0.0015, 0.0015, 0.0015),
        (".5", 0.5, 0.5, 0.5),
        (".inf", math.inf, math.inf, math.inf),
        ("1:30", "1:30", REFUSED, 90),
        ("1:30.5", "1:30.5", REFUSED, 90.5),
        ("2024-01-31", "2024-01-31", "2024-01-31", datetime.date(2024, 1, 31)),
        ("yes", True, True, True),
        ("off", False, False, False),
        ("True", True, True, True),
        ("y", "y", "y", "y"),
        ("~", None, None, None),
        ("", None, None, None),
        ("'010'", "010", "010", "010"),
        ("! 010", "010", "010", "010"),
        ("!!str 010", "010", "010", "010"),
        ("!!float 1", 1.0, 1.0, 1.0),
        ("=", "=", "=", REFUSED),
        ("!function utils.score", REFUSED, REFUSED, "!function utils.score"),
    ],
)
def test_what_a_scalar_is(written: str, own: Any, recipe: Any, task: Any) -> None:
    for schema, value in zip(Schema, (own, recipe, task), strict=True):
        if value is REFUSED:
            assert complaint(f"x: 0\na: {written}\n", schema).startswith("f.yaml:2: a: ")
        else:
            read = tree(f"a: {written}\n", schema).data["a"]
            assert (type(read), read) == (type(value), value)


def test_a_recipe_says_what_mergekit_would_read() -> None:
    line = "f.yaml:1: a: 010 is 8 to mergekit (YAML 1.1) and 10 in YAML 1.2; write 8, or put a text in quotes"
    assert complaint("a: 010\n", Schema.RECIPE) == line


@pytest.mark.parametrize("schema", Schema)
@pytest.mark.parametrize(
    "written",
    ["!!bool maybe", "!!int ''", "!!int x", "!!float x", "!!timestamp x", "!!binary aa", "!!set {x}",
     "!!python/name:os.system", "!other x", "0x" + "1" * 6000, "1" * 5000, "!!timestamp 2024-13-45", "!!map x",
     "!!seq x"],
)  # fmt: skip
def test_what_a_scalar_cannot_be(written: str, schema: Schema) -> None:
    assert complaint(f"x: 0\na: {written}\n", schema).startswith("f.yaml:2: a: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x" + "1" * 6000 + ": 1\n", "f.yaml:1: 0x11111111"),
        ("10: 1\n", "f.yaml:1: the key '10' reads as 10; put it in quotes"),
        ("? [a]\n: 1\n", "f.yaml:1: a key is a list; write a text"),
        ("a: &x 1\nb: {*x : 1}\n", "f.yaml:2: b: the key 1 reads as 1"),
        (f"? {'k' * (LONGEST_KEY + 1)}\n: 1\n", "a key has 1,001 characters"),
        ("a: &x 1\nb: {<<: *x}\n", "f.yaml:2: b: `<<` merges mappings, and this is 1"),
        ("a: &x {}\nb: {<<: [*x, 1]}\n", "`<<` merges mappings, and this is 1"),
        ("a: &x {}\nb: {<<: *x, <<: *x}\n", "f.yaml:2: b: `<<` stands twice; write `<<: [*one, *two]`"),
        ("a: *none\n", "f.yaml:1: a: is not valid YAML (there is no anchor &none)"),
        ("a: &x [*x]\n", "f.yaml:1: a.0: is not valid YAML (it refers to itself)"),
        ("a: 1\nb: \x07\n", "f.yaml:2: is not valid YAML (it holds the character U+0007); remove it"),
        ("a: '\ud800'\n", "it holds the character U+D800"),
        ("a: 1\nb: [1,\n\n  2\nc: 3\n", f"f.yaml:2: b: {OPEN.format('[')} by line 5"),
        ("a:\n  b: {c: 1\n  d: 2\n", f"f.yaml:2: a.b: {OPEN.format('{')} by line 3"),
        ("a: 1\nb: 'x\nc: 1\n", "f.yaml:2: is not valid YAML: a quote that is opened in this line is not closed"),
        ("a: 1\nb: c: d\n", "f.yaml:2: is not valid YAML"),
        ("a: {b: 1\n" + "c: 2\n" * 50, "f.yaml:1: a: is not valid YAML: the {"),
    ],
)  # fmt: skip
def test_what_is_no_yaml(text: str, message: str) -> None:
    assert message in complaint(text)


def of_the_last(form: str) -> str:
    """Eight lines, each with ten references to the one before."""
    return "".join(f"x{i}: &x{i} {form.format(*[f'*x{i - 1}'] * 10)}\n" for i in range(1, 9))


BOMBS = {
    "aliases of aliases": "x0: &x0 [lol]\n" + of_the_last(f"[{', '.join(['{}'] * 10)}]"),
    "merges of merges": "x0: &x0 {a: 1}\n" + of_the_last("{{<<: {}, k1: {}, k2: {}, k3: {}, k4: {}}}"),
    "values": "a: [" + "1," * 4_000 + "]",
    "long keys": "".join(f"{' ' * i}{'k' * 900}{i}:\n" for i in range(60)) + " " * 60 + "[" + "1," * 50 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_number_of_values_is_bounded(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.files.trees.MOST_VALUES", 3_000)
    assert "holds more than 3,000 values" in complaint(BOMBS[bomb])


def test_the_bound_is_reached_in_seconds() -> None:
    assert f"holds more than {MOST_VALUES:,} values" in complaint(BOMBS["aliases of aliases"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: " * 400 + "1" + "}" * 400, "is nested more than 64 deep; write fewer levels"),
        ("[" * 100_000, "is nested more than 64 deep"),
        ("- " * 5_000, "is nested more than 64 deep"),
        ("x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 70)), "is nested more than 64 deep"),
        (f"a: {'x' * (LONGEST_TEXT + 1)}\n", "f.yaml:1: a: is a text of 1,000,001 characters, more than 1,000,000"),
        ("--- 1\n" * (MOST_DOCUMENTS + 1), "f.yaml:1001: holds more than 1,000 YAML documents"),
        ("%TAG !a! x\n" * 100_000 + "--- 1\n", "f.yaml: has more than 10 lines that begin with %"),
    ],
)
def test_other_bounds(text: str, message: str) -> None:
    assert message in complaint(text)


def test_aliases_and_merges_are_read_as_pyyaml_reads_them() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {z: 0, <<: [{x: 9}, *a]}\nd: [*a, *a]\n"
    assert tree(text).data == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 9, "y": 2, "z": 0},
        "d": [{"x": 1, "y": 2}, {"x": 1, "y": 2}],
    }
    merged = tree(text).value["b"].value
    assert [(name, node.where.line, node.where.key) for name, node in merged.items()] == [
        ("x", 1, "b.x"),
        ("y", 2, "b.y"),
    ]


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a folder, not a YAML file"):
        load(tmp_path)
    (tmp_path / "large.yaml").write_bytes(b"#" * (9 << 20))
    with pytest.raises(InputError, match="has 9 MB, more than 8 MB"):
        load(tmp_path / "large.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(InputError, match=r"bad.yaml:2: cannot be read: it is not UTF-8 text"):
        load(tmp_path / "bad.yaml")
    # In a process of its own, as a reader without bounds would never come back.
    code = "import sys; from evomerge.files.trees import load; from pathlib import Path; load(Path(sys.argv[1]))"
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, timeout=60)
        assert f"{file} is a device or a pipe, not a file" in run.stderr
