"""What a storage holds is checked before anything goes by it, also where lines have no digest."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import InputError
from evomerge.study.run.store import Store, open_storage
from evomerge.types import Dimension
from tests.study.run.test_journal import RESULT
from tests.study.run.test_store import GENOME, RECIPE

DIMENSIONS = [Dimension("weight", 0.0, 1.0), Dimension("method", choices=("ties", "linear"), init="ties")]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    store = Store.create(open_storage(tmp_path / "none", url), "s", DIMENSIONS)
    store.record("gates", {"a": {"floor": 0.1, "text": "", "sign": 1, "scale": 1.0}})
    store.record("holdout.0", {**RESULT.to_data(), "objective": 0.1})
    store.end(store.start("search", "", GENOME, RECIPE, 7, n_told=0), RESULT, order=0)
    store.start("search", "", GENOME, RECIPE, 7, n_told=1)
    return url


def _second(storage: Any) -> int:
    trial_id: int = storage.get_all_trials(storage.get_study_id_from_name("s"))[1]._trial_id
    return trial_id


def check(url: str, message: str, dimensions: list[Dimension]) -> None:
    with pytest.raises(InputError, match=f"the study 's' is damaged: .*{message}; restore") as caught:
        Store.open(open_storage(Path("none"), url), "s", dimensions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "serach", "trial 1: its kind is 'serach'"),
        ("label", 3, "its label is 3"),
        ("genome", {"weight": 0.5, "method": "ties"}, "its genome is not that of its parameters"),
        ("genome", [0.25], r"its genome is \[0.25\]"),
        ("recipe", 1.5, "its recipe is 1.5"),
        ("recipe_id", "xyz", "its recipe_id is 'xyz'"),
        ("seed", "7", "its seed is '7'"),
        ("scores", {"a": None}, "its scores is {'a': None}"),
        ("stderr", [], r"its stderr is \[\]"),
        ("digest", {"x": 1}, "its digest is {'x': 1}"),
        ("seconds", 3, "its seconds is 3"),
        ("evaluated", -1, "its evaluated is -1"),
        ("items", True, "its items is True"),
        ("told", 9, "its told is 9"),
        ("place", "one", "its place is 'one'"),
        ("duplicate_of", 1, "it is a duplicate of trial 1"),
        ("by", "chance", "its by is 'chance'"),
        ("slopes", {"a": {"loss": 1}}, "its slopes is {'a': {'loss': 1}}"),
    ],
)
def test_attributes(url: str, key: str, value: Any, message: str) -> None:
    storage = open_storage(Path("none"), url)
    storage.set_trial_user_attr(_second(storage), key, value)
    check(url, message, [])


def test_content(url: str) -> None:
    storage = open_storage(Path("none"), url)
    trial = storage.get_all_trials(storage.get_study_id_from_name("s"))[1]
    check(url, "trial 0: its genome has other genes than the space", DIMENSIONS[:1])
    check(url, "trial 0: its weight is 0.25, outside of the space", [Dimension("weight", 0.5, 1.0), DIMENSIONS[1]])
    storage.set_trial_user_attr(trial._trial_id, "recipe", json.dumps([{"merge_method": "linear"}]))
    check(url, "trial 1: its recipe cannot be read .*|trial 1: its recipe is not that of its recipe_id", DIMENSIONS)
    changed = trial.user_attrs["recipe"].replace("0.25", "0.26")
    storage.set_trial_user_attr(trial._trial_id, "recipe", changed)
    check(url, "trial 1: its recipe is not that of its recipe_id", DIMENSIONS)


RELEASE = {"gates": {}, "trials": [0], "winner": None, "after": 1}
ADVICE = {"trial": 1, "floors": {"a": 0.5}, "items": None, "trials": 70, "chances": [0.1, 0.2]}
DAMAGE = (
    {"chances": {"x": 0.5}},
    {"chances": [0.5]},
    {"bounds": {"1": {"a": "high"}}},
    {"confidence": "much"},
    {"advice": {"trial": 1}},
    {"advice": {**ADVICE, "chances": [0.1]}},
)


def test_releases_of_all_ages(url: str) -> None:
    storage = open_storage(Path("none"), url)
    study = storage.get_study_id_from_name("s")
    for newer in ({}, {"chances": {"1": 0.5}, "bounds": {}, "confidence": None, "advice": ADVICE, "failed": {}}):
        storage.set_study_user_attr(study, "release", {**RELEASE, **newer})
        assert Store.open(storage, "s", DIMENSIONS) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gates", {"a": {"floor": 0.1}}),
        ("gates", []),
        ("holdout.0", {"scores": {}}),
        ("promoted.1", None),
        ("budget", {"trials": "many"}),
        ("slices", {"a": 1}),
        ("hands", "two"),
        ("release", {"trials": [0]}),
        ("look", {"budget": {"trials": 9, "seconds": None}, "raised": -1, "failed": []}),
        *(("release", {**RELEASE, **damage}) for damage in DAMAGE),
        ("surrogates", {"base": []}),
        ("gradient", {}),
    ],
)
def test_facts(url: str, key: str, value: Any) -> None:
    storage = open_storage(Path("none"), url)
    storage.set_study_user_attr(storage.get_study_id_from_name("s"), key, value)
    check(url, f"its {key} is .*", [])


def test_trials_of_other_tools_are_left_alone(url: str) -> None:
    storage = open_storage(Path("none"), url)
    storage.create_new_trial(storage.get_study_id_from_name("s"))
    store = Store.open(storage, "s", DIMENSIONS)
    assert store is not None
    assert len(store.trials()) == 2


@pytest.mark.parametrize("table", ["trial_user_attributes", "study_user_attributes"])
def test_a_value_that_the_database_cannot_read(url: str, table: str) -> None:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
        database.execute(f"UPDATE {table} SET value_json = '{{' || value_json")
    check(url, r"it cannot be read \(.*\)", [])
