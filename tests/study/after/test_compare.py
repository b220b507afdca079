"""Two trials item by item: who is who, which items count, and what is said when they cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.scoring.stats.aggregation import MeanKind
from evomerge.study.run.items import items_file
from evomerge.study.run.recorded import mean_kind_of
from evomerge.study.run.store import Store
from evomerge.types import ItemScore, SliceScore

from .test_rank import lower_is_better

Study = Callable[..., Path]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def run(tiny_study: Study, kept: Path) -> Path:
    space = tiny_study(lower_is_better)
    if not kept.is_dir():
        evomerge.search(space, trials=12)
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return Path("runs/space/items")


def test_scores_and_differences_are_the_recorded_ones(run: Path) -> None:
    found = evomerge.compare("space", "one", 7, split="search")
    trials = evomerge.status("space").search.trials
    for name, sign in (("a", 1), ("b", -1)):
        pair = found.comparisons[name]
        assert pair.first == pytest.approx(sign * trials[1].scores[name])
        assert pair.second == pytest.approx(sign * trials[7].scores[name])
        assert pair.difference == pytest.approx(pair.first - pair.second)
        assert pair.items == found.totals[name] > 10
        assert pair.interval is not None
        assert pair.p is not None
    assert {n: c.test for n, c in found.comparisons.items()} == {"a": "paired bootstrap", "b": "paired bootstrap"}


def test_shares_without_clusters_get_mcnemar(tiny_study: Study) -> None:
    evomerge.search(tiny_study(), trials=6)
    found = evomerge.compare("space", "base", "one")
    assert {c.test for c in found.comparisons.values()} == {"McNemar"}


def test_names_and_defaults(run: Path) -> None:
    state = evomerge.status("space")
    assert state.winner is not None
    found = evomerge.compare("space", "uniform")
    assert (found.first.label, found.second.number, found.split) == ("uniform", state.winner.number, "holdout")
    unscored = next(t.number for t in state.search.trials if t.number not in {s.number for s in state.rescored})
    assert evomerge.compare("space", "winner", unscored).split == "search"
    for first, second, split, message in [
        ("tow", "base", None, "has no trial 'tow'; did you mean 'two'?"),
        ("99", "base", None, "has no trial '99'; it has 12, from 0"),
        ("base", 0, None, "trial 0 would be compared with itself"),
        (unscored, "base", "holdout", f"--split: trial {unscored} has no scores on the holdout split; compare on the"),
    ]:
        with pytest.raises(InputError, match=message):
            evomerge.compare("space", first, second, split=split)  # type: ignore[arg-type]


def test_a_part_of_the_items(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that was stopped early has some of the items, and scores that are predictions."""
    trials = Store.trials
    stopped = {"state": "pruned", "scores": {"a": 0.123, "b": -9.0}}
    monkeypatch.setattr(Store, "trials", lambda s: [replace(t, **stopped) if t.number == 6 else t for t in trials(s)])
    file = items_file(run, 6, "search")
    table = pd.read_parquet(file)
    table.groupby("slice").head(8).to_parquet(file)
    found = evomerge.compare("space", "base", 6, split="search")
    assert {c.items for c in found.comparisons.values()} == {8}
    assert found.comparisons["a"].second == pytest.approx(
        table.groupby("slice").head(8).query("slice == 'a'").score.mean()
    )
    assert main(["compare", "space", "base", "6", "--split", "search"]) == 0
    assert f"8 of {found.totals['a']}" in capsys.readouterr().out


def test_a_damaged_file_is_named(run: Path) -> None:
    items_file(run, 1, "search").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"trial-00001.search.parquet: cannot be read .*; restore the file"):
        evomerge.compare("space", "base", "one", split="search")


def test_a_metric_that_is_no_mean_is_compared_unpaired(run: Path) -> None:
    for file in run.iterdir():
        table = pd.read_parquet(file)
        table.loc[table.slice == "a", "score"] = float("nan")
        table.to_parquet(file)
    found = evomerge.compare("space", "base", "one").comparisons
    assert found["a"].test == "unpaired normal"
    assert found["a"].interval is not None
    assert found["b"].test == "paired bootstrap"


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "space", "base"]) == 0
    said = capsys.readouterr().out
    for part in ("base against", "on the holdout items", "acc", "lower is better", "paired bootstrap"):
        assert part in said
    assert main(["compare", "space", "base", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"trial": 0, "label": "base"}.items() <= told["first"].items()
    assert told["difference"] == "first minus second"
    for slice_ in told["slices"].values():
        ahead = slice_["difference"] * (1 if slice_["higher_is_better"] else -1)
        assert slice_["better"] == ("first" if ahead > 0 else "second" if ahead < 0 else None)
    better = "first" if told["first"]["objective"] > told["second"]["objective"] else "second"
    assert f"by the objective {told[better]['label']}" in said
    assert set(told["slices"]["b"]) >= {"difference", "interval", "p", "test", "items", "higher_is_better"}


# How a score is made of its items


def items(values: list[float], leaves: str = "", weights: list[float] | None = None) -> tuple[ItemScore, ...]:
    names = leaves or "t" * len(values)
    return tuple(
        ItemScore(f"{leaf}/{i}", value, weight)
        for i, (leaf, value, weight) in enumerate(zip(names, values, weights or [1.0] * len(values), strict=True))
    )


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        (SliceScore(0.5, None, items([0.0, 1.0, 0.5])), MeanKind(1)),
        (SliceScore(0.25, None, items([0.0, 0.0, 0.5, 0.5], "aaab")), MeanKind(1)),
        (SliceScore(1 / 3, None, items([0.0, 0.0, 0.5, 0.5], "aaab")), MeanKind(1, by_size=False)),
        (SliceScore(2.0, None, items([1.0, 4.0])), MeanKind(1, logarithmic=True)),
        (SliceScore(8.0, None, items([2.0, 32.0], weights=[1, 1])), MeanKind(1, logarithmic=True)),
        (SliceScore(0.77, None, items([0.0, 1.0])), None),
        (SliceScore(0.77, None, ()), None),
    ],
)
def test_the_kind_of_mean_is_found(score: SliceScore, kind: MeanKind | None) -> None:
    assert mean_kind_of([score], 1) == kind


def test_all_candidates_decide_on_the_kind() -> None:
    alike = SliceScore(1.0, None, items([1.0, 1.0]))
    assert mean_kind_of([alike], 1) == MeanKind(1)
    assert mean_kind_of([alike, SliceScore(2.0, None, items([1.0, 4.0]))], 1) == MeanKind(1, logarithmic=True)
