"""A search over bands, end to end: it follows slopes, is resumed, exported and merged with equal bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.merging.kernels.factors import Factors
from evomerge.merging.resident.factor_cache import default_folder
from evomerge.study.after.status import status
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer

Study = Callable[..., Path]
FACTS = ("number", "label", "state", "genome", "scores", "digest", "slopes")


def banded(bands: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        weight = {"low": -1.0, "high": 2.0, "per": ["sources", "tensors", "bands"], "bands": bands}
        space["genes"] = {"method": "task_arithmetic", "weight": weight}
        space["optimizer"] = {"name": "gradient", "steps": 6, "seed": 3}
        space["budget"] = {"trials": 9}

    return change


@pytest.mark.parametrize("bands", [3, "each", {"top": 4}, {"top": 6, "cut": 2}])
def test_search_export_merge(tiny_study: Study, bands: Any) -> None:
    result = evomerge.search(tiny_study(banded(bands)))
    steps = [t for t in result.search.trials if t.slopes]
    assert len(steps) >= 4
    losses = [sum(about["loss"] for about in t.slopes.values()) for t in steps]
    assert losses[-1] < losses[0]
    best = max(steps, key=lambda t: t.objective or 0.0)
    text = evomerge.export("space", "best.yaml", trial=best.number, allow_infeasible=True)
    assert "merge_method: band_arithmetic" in text
    assert "mergekit has no band_arithmetic: it cannot run it" in text
    assert "mergekit-yaml" not in text
    folder = evomerge.merge("best.yaml", "out")
    assert checkpoint_digest(folder) == best.digest


@pytest.mark.slow
def test_what_was_decomposed_once_is_not_decomposed_again(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """By no other search of these models, no merge and no evaluation; and nothing depends on the folder."""
    file = tiny_study(banded({"top": 2}))
    monkeypatch.setenv("EVOMERGE_CACHE", str(file.parent / "cache"))
    calls = []
    once = Factors.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Factors, "of", classmethod(lambda *given: calls.append(given) or once(*given)))

    class Heard(Observer):
        notes: list[str] = []  # noqa: RUF012

        def note(self, message: str) -> None:
            self.notes.append(message)

    first = evomerge.search(file, run="first", observer=Heard())
    [note] = [line for line in Heard.notes if line.startswith("decompositions: ")]
    assert note.startswith(f"decompositions: {len(calls)} of deltas, ")
    assert note.endswith(str(default_folder()))
    assert note == f"decompositions: {dry_run(file)['decompositions']}"
    assert len(list(default_folder().iterdir())) == len(calls) == len({id(call[1]) for call in calls})
    computed = len(calls)
    again = evomerge.search(file, run="again")
    evomerge.export("again", "best.yaml", trial=again.search.trials[-1].number, allow_infeasible=True)
    assert checkpoint_digest(evomerge.merge("best.yaml", "out")) == again.search.trials[-1].digest
    evomerge.evaluate("best.yaml", fitness="fitness.yaml")
    assert len(calls) == computed
    monkeypatch.setenv("EVOMERGE_CACHE", str(file))  # no folder
    alone = evomerge.search(file, run="alone")
    assert len(calls) == 2 * computed
    facts = [[tuple(getattr(t, f) for f in FACTS) for t in r.search.trials] for r in (first, again, alone)]
    assert facts[0] == facts[1] == facts[2]


@pytest.mark.slow
@pytest.mark.parametrize("bands", [2, {"top": 3, "cut": 2}])
def test_a_resumed_search_is_the_same(tiny_study: Study, bands: Any) -> None:
    file = tiny_study(banded(bands))
    evomerge.search(file, run="whole")
    evomerge.search(file, run="pieces", trials=6)
    evomerge.resume("pieces", trials=9)
    whole, pieces = (
        [tuple(getattr(t, f) for f in FACTS) for t in status(r).search.trials] for r in ("whole", "pieces")
    )
    assert whole == pieces


@pytest.mark.parametrize(("bands", "other"), [(2, 3), ({"top": 3}, {"top": 4}), ({"top": 3}, {"top": 3, "cut": 2})])
def test_bands_begin_from_the_same_bands_only(tiny_study: Study, bands: Any, other: Any) -> None:
    first = evomerge.search(tiny_study(banded(bands)), run="first")
    [trial] = [t for t in first.search.trials if t.number == 4]
    again = evomerge.search(tiny_study(banded(bands)), run="again", from_run="first:4")
    assert trial.digest in {t.digest for t in again.search.trials if t.genome == trial.genome}
    with pytest.raises(InputError, match="a weight of bands is another merge"):
        evomerge.search(tiny_study(banded(other)), run="other", from_run="first:4")
