"""Items in one file or in parts: what was written last counts, and nothing is written twice."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.study.run.items import (
    append_items,
    item_files,
    items_file,
    load_items,
    read_items,
    save_items,
    write_items,
)
from evomerge.types import ItemScore

NAMES = st.sampled_from(["a", "b", "c", "d"])
SCORES = st.none() | st.floats(-2, 2) | st.just(math.inf)


@st.composite
def parts(draw: st.DrawFn) -> dict[str, list[ItemScore]]:
    slices = draw(
        st.dictionaries(st.sampled_from(["one", "two"]), st.lists(NAMES, unique=True, min_size=1), min_size=1)
    )
    cluster = st.none() | st.just("c")
    return {
        name: [
            ItemScore(i, draw(SCORES), draw(st.floats(0, 3)), draw(st.none() | st.floats(0, 1)), draw(cluster))
            for i in items
        ]
        for name, items in slices.items()
    }


@given(st.lists(parts(), min_size=1, max_size=4))
def test_parts_are_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, list[ItemScore]]]
) -> None:
    folder = tmp_path_factory.mktemp("items")
    write_items(folder, 3, "search", written[0])
    for part in written[1:]:
        append_items(folder, 3, "search", part)
    assert len(item_files(folder, 3, "search")) == len(written)
    expected: dict[str, dict[str, ItemScore]] = {}
    for part in written:
        for name, items in part.items():
            expected.setdefault(name, {}).update({item.item: item for item in items})
    assert load_items(folder, 3, "search") == expected
    table = read_items(folder, 3, "search")
    assert len(table) == sum(map(len, expected.values()))
    assert not table.duplicated(["slice", "item"]).any()


def test_writing_replaces_all_parts(tmp_path: Path) -> None:
    items = {"one": [ItemScore("x", 1.0)]}
    write_items(tmp_path, 0, "search", items)
    append_items(tmp_path, 0, "search", {"one": [ItemScore("y", 0.0)]})
    write_items(tmp_path, 0, "holdout", {"one": [ItemScore("z", 0.0)]})
    write_items(tmp_path, 0, "search", items)
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["trial-00000.holdout.parquet", "trial-00000.search.parquet"]
    assert set(load_items(tmp_path, 0, "search")["one"]) == {"x"}


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    """They were written by pandas, at first without clusters."""
    rows = [("one", "x", 1.0, 1.0, "1.0"), ("one", "y", None, 2.0, "[1, 2]")]
    table = pd.DataFrame(rows, columns=["slice", "item", "score", "weight", "raw"])
    table.to_parquet(items_file(tmp_path, 0, "search"), index=False)
    loaded = load_items(tmp_path, 0, "search")
    assert loaded == {"one": {"x": ItemScore("x", 1.0, 1.0, 1.0), "y": ItemScore("y", None, 2.0, [1, 2])}}


def test_lines_of_json(tmp_path: Path) -> None:
    save_items(tmp_path / "items.jsonl", {"one": [ItemScore("é/x", 0.1 + 0.2), ItemScore("y", None, raw=[1, "a"])]})
    table = pd.read_json(tmp_path / "items.jsonl", lines=True)
    assert table.score[0] == 0.1 + 0.2
    assert table.item.tolist() == ["é/x", "y"]
    assert table.raw.tolist() == ["null", '[1, "a"]']


def test_where_nothing_was_kept(tmp_path: Path) -> None:
    assert load_items(tmp_path, 0, "search") == {}
    with pytest.raises(FileNotFoundError):
        read_items(tmp_path, 0, "search")
