from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.safety.names import check_name, name_fault


@pytest.mark.parametrize("name", ["a", "shipping", "mmlu:stem", "gsm8k (5 shot)", "v1.2", "_x", "重み", "[red]x", "~x"])
def test_names(name: str) -> None:
    assert check_name(name, "slice") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../victim",
        "/abs",
        "a/b",
        "a\\b",
        "[/]",
        "-x",
        ".hidden",
        " a",
        "a\n",
        "a\0",
        "x" * 129,
        "重" * 100,
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a slice"):
        check_name(name, "slice")


@given(st.text())
def test_a_name_stays_in_its_folder(name: str) -> None:
    if name_fault(name) is None:
        folder = Path("/folder")
        assert (folder / name).parent == folder
        assert Path(name).name == name
