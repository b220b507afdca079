"""A search over bands, end to end: it follows slopes, is resumed, exported and merged with equal bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.after.status import status

Study = Callable[..., Path]
FACTS = ("number", "label", "state", "genome", "scores", "digest", "slopes")


def banded(bands: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        weight = {"low": -1.0, "high": 2.0, "per": ["sources", "tensors", "bands"], "bands": bands}
        space["genes"] = {"method": "task_arithmetic", "weight": weight}
        space["optimizer"] = {"name": "gradient", "steps": 6, "seed": 3}
        space["budget"] = {"trials": 9}

    return change


@pytest.mark.parametrize("bands", [3, "each"])
def test_search_export_merge(tiny_study: Study, bands: Any) -> None:
    result = evomerge.search(tiny_study(banded(bands)))
    steps = [t for t in result.search.trials if t.slopes]
    assert len(steps) >= 4
    losses = [sum(about["loss"] for about in t.slopes.values()) for t in steps]
    assert losses[-1] < losses[0]
    best = max(steps, key=lambda t: t.objective or 0.0)
    text = evomerge.export("space", "best.yaml", trial=best.number, allow_infeasible=True)
    assert "merge_method: band_arithmetic" in text
    assert "mergekit knows no bands and cannot run it" in text
    assert "mergekit-yaml" not in text
    folder = evomerge.merge("best.yaml", "out")
    assert checkpoint_digest(folder) == best.digest


def test_a_resumed_search_is_the_same(tiny_study: Study) -> None:
    file = tiny_study(banded(2))
    evomerge.search(file, run="whole")
    evomerge.search(file, run="pieces", trials=6)
    evomerge.resume("pieces", trials=9)
    whole, pieces = (
        [tuple(getattr(t, f) for f in FACTS) for t in status(r).search.trials] for r in ("whole", "pieces")
    )
    assert whole == pieces


def test_bands_begin_from_the_same_bands_only(tiny_study: Study) -> None:
    evomerge.search(tiny_study(banded(2)), run="two")
    file = Path("space.yaml")
    file.write_text(file.read_text().replace("bands: 2", "bands: 3"))
    with pytest.raises(InputError, match="a weight of bands is another merge"):
        evomerge.search(file, run="three", begin="two:4")
