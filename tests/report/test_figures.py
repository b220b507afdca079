"""The picture of a path: what it shows, not how it looks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.examine.path import Point, ScoredPath
from evomerge.report.figures import draw_path
from evomerge.scoring.gates import Gate, judge
from evomerge.types import ItemScore, SliceScore
from tests.report.examples import Made

WANTED = [i / 10 for i in range(11)]
METRICS = {"shipping": ("acc", 1), "refunds": ("acc", 1), "english": ("bits_per_byte", -1)}


def scored(name: str, sign: int, t: float) -> SliceScore:
    hill = t * (1 - t)
    right = round(40 * (0.95 - 1.6 * hill - (0.2 * t if name == "refunds" else 0)))
    if sign > 0:
        items = tuple(ItemScore(str(i), float(i < right)) for i in range(50))
        return SliceScore(right / 50, 0.05, items, loss=0.4 + 3 * hill)
    return SliceScore(-(2.5 + hill), 0.03, (), loss=2.0 + 0.5 * t + hill)


def made(floors: dict[str, float], wanted: list[float] = WANTED) -> ScoredPath:
    slices: Any = {
        name: SimpleNamespace(metric=metric, sign=sign, show=lambda value, sign=sign: sign * value, counts={})
        for name, (metric, sign) in METRICS.items()
    }
    gates = {name: Gate(name, floors.get(name), "", sign) for name, (_, sign) in METRICS.items()}
    points = []
    for t in wanted:
        scores = {name: scored(name, sign, t) for name, (_, sign) in METRICS.items()}
        points.append(Point(t, "d", 0.5, scores, judge(scores, gates, {})))
    return ScoredPath("models/base", "models/tuned", "holdout", slices, gates, points, wanted, {}, None)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_every_format_is_written_whole(ending: str, tmp_path: Path) -> None:
    draw_path(made({}), tmp_path / f"x.{ending}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert (tmp_path / f"x.{ending}").read_bytes().startswith(start)


def text(result: ScoredPath, file: Path) -> str:
    """The words of the picture (matplotlib keeps them as comments of an SVG's paths)."""
    draw_path(result, file)
    return file.read_text()


def test_it_names_slices_floors_barrier_and_passing_points(tmp_path: Path) -> None:
    floors = {"shipping": 0.6, "english": -2.7}
    words = text(made(floors), tmp_path / "x.svg")
    legend = ("shipping", "refunds", "english", "mean", "straight line", "passes every floor")
    titles = ("base → tuned, holdout items", "acc (higher is better", "bits_per_byte (lower is better")
    for start in (*legend, *titles, "loss (nats per token)", "loss of the right answers"):
        assert f"<!-- {start}" in words, start
    assert "barrier of the mean: 0.5833 at t = 0.5" in words


def test_without_floors_nothing_passes_them(tmp_path: Path) -> None:
    assert "passes every floor" not in text(made({}), tmp_path / "x.svg")


def test_part_of_a_path_is_drawn_too(tmp_path: Path) -> None:
    whole = made({})
    part = ScoredPath(**{**vars(whole), "points": whole.points[:1]})
    assert "barrier" not in text(part, tmp_path / "x.svg")


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    draw_path(made({}), tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_names_are_no_formulas(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Dollar signs, which start a formula; a beginning that hides a label; letters that the font lacks; long names."""
    names = ("$\\frac{1$", "$x$", "_hidden", "a\x1b[31m\nb", "重み🙂", "<b>&--!>", "x" * 128, "%s {0}", "\\n", "")
    made = Made(names, ("$\\frac{$", "b"), metric="$\\frac{$")
    made.model = "models/$\\frac{$"
    for ending in ("png", "pdf"):
        draw_path(made.path, tmp_path / f"x.{ending}")
    words = text(made.path, tmp_path / "x.svg")
    for word in ("$\\frac{1$", "$x$", " _hidden", "a\\x1b[31m\\nb", "%s {0}"):
        assert f"<!-- {word} -->" in words, word
    assert capfd.readouterr().err == ""
