"""safetensors itself is the measure: what it refuses is refused here."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from evomerge.checkpoints.headers import read_header
from evomerge.errors import InputError

NUMBERS = st.one_of(st.integers(-1, 12), st.sampled_from([2**31, 2**63, 2**64, 1.0, 4.5, True, "4", None]))
DTYPES = st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "F4", "f32", 5, None])
ENTRIES = st.fixed_dictionaries(
    {"dtype": DTYPES, "shape": st.lists(NUMBERS, max_size=3), "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3)}
)
METADATA = st.one_of(st.none(), st.dictionaries(st.text(max_size=2), st.one_of(st.text(max_size=2), st.integers())))


@st.composite
def whole_entries(draw: st.DrawFn) -> dict[str, Any]:
    """Entries that follow each other, in any order, so that many headers are valid."""
    entries, end = {}, 0
    for name in draw(st.permutations("abc")):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = 4
        for n in shape:
            size *= n
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return entries


@st.composite
def files(draw: st.DrawFn) -> bytes:
    entries = draw(whole_entries())
    for name in draw(st.lists(st.sampled_from("abc"), max_size=1)):
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        entries[name][key] = draw(ENTRIES)[key]
    if draw(st.booleans()):
        entries["__metadata__"] = draw(METADATA)
    size = max((e["data_offsets"][-1] for n, e in entries.items() if n != "__metadata__"), key=str, default=0)
    size = size if type(size) is int and 0 <= size < 1000 else 16
    text = json.dumps(entries).encode() + b" " * draw(st.integers(0, 8))
    return struct.pack("<Q", len(text)) + text + b"\0" * (size + draw(st.sampled_from([0, 0, 0, 4])))


@settings(max_examples=300, deadline=None)
@given(content=files())
def test_what_safetensors_refuses_is_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    file.write_bytes(content)
    try:
        with safe_open(file, framework="pt") as opened:
            theirs: dict[str, list[int]] | None = {n: opened.get_slice(n).get_shape() for n in opened.keys()}  # noqa: SIM118
    except Exception:
        theirs = None
    try:
        ours = {name: list(info.shape) for name, info in read_header(file).items()}
    except InputError:
        return  # it may be stricter
    assert ours == theirs


def write(folder: Path, entries: str | dict[str, Any], size: int) -> Path:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    file = folder / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * size)
    return file


def info(shape: list[Any], *offsets: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("entries", "size", "said"),
    [
        ({"a": info([4], 0, 16), "b": info([4], 0, 16)}, 16, "b overlaps another tensor at byte 0"),
        ({"a": info([4], 0, 16), "b": info([4], 80, 96)}, 96, "b comes after a hole at byte 80"),
        ({"a": info(["4"], 0, 16)}, 16, r"a has the shape \['4'\]"),
        ({"a": info([4.0], 0, 16)}, 16, r"a has the shape \[4.0\]"),
        ({"a": info([True] * 4, 0, 4)}, 4, r"a has the shape \[True"),
        ({"a": info([1] * 65, 0, 4)}, 4, "a has the shape"),
        ({"a": info([4], 0.0, 16)}, 16, r"a has the data_offsets \[0.0, 16\]"),
        ({"a": info([4], 0, 12)}, 12, r"a has 12 bytes for the shape \[4\] of F32"),
        ({"a": info([4], 0, 16, dtype="F4")}, 16, "a has the unknown dtype F4"),
        ({"": info([4], 0, 16)}, 16, "'' is no name of a tensor"),
        ({"a\x1b[31m": info([4], 0, 16)}, 16, "is no name of a tensor"),
        ({"a": info([4], 0, 16), "__metadata__": {"x": 1}}, 16, "__metadata__ is no mapping of texts"),
        ({"a": info([4], 0, 16)}, 20, "it should have .* bytes but has"),
        ('{"a": {}, "a": {}}', 0, "'a' is listed twice"),
        ('{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 0]}}', 0, "Infinity is no number of JSON"),
        ("[" * 100_000, 0, "nested too deep"),
        ("[]", 0, "no JSON object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(entries: str | dict[str, Any], size: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        read_header(write(tmp_path, entries, size))
    assert str(error.value).isprintable()


def test_utf16_is_not_guessed(tmp_path: Path) -> None:
    text = json.dumps({"a": info([4], 0, 16)}).encode("utf-16")
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(InputError, match="no JSON in UTF-8"):
        read_header(file)
