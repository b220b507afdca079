"""What a search cost, and what was saved."""

from __future__ import annotations

from collections import Counter
from typing import Any

from evomerge.report.items_scored import ItemsScored
from evomerge.report.page.run import Run

_SHOWN = 20
"""Failed trials whose reasons are shown."""


def costs_data(run: Run) -> dict[str, Any]:
    """Returns counts of trials and items, the seconds of each phase, what pruning saved, and the failed trials."""
    state = run.state
    ended = [t for t in state.search.trials if t.state != "running"]
    counted = ItemsScored.of(state.search.trials)
    # Those that were scored anew, with what each phase took.
    timed = [t for t in ended if t.ranked and t.duplicate_of is None and "score" in t.seconds]
    seconds = {phase: sum(t.seconds.get(phase, 0.0) for t in timed) for phase in ("materialize", "score", "total")}
    evaluated = sum(t.evaluated for t in timed)
    an_item = seconds["score"] / evaluated if evaluated else None
    saved = counted.in_full - counted.scored
    failed = [t for t in ended if t.state == "failed"]
    return {
        "trials": len(ended),
        "states": dict(Counter(t.state for t in ended)),
        "references": sum(t.kind == "reference" for t in ended),
        "duplicates": sum(t.duplicate_of is not None for t in ended),
        "seconds": state.seconds,
        "timed": len(timed),
        "phases": seconds,
        "seconds_an_item": an_item,
        "items": {"scored": counted.scored, "in_full": counted.in_full, "saved": saved},
        "racing": {"trials": counted.racing[0], "saved": counted.racing[1]},
        "early_stop": {"trials": counted.early_stop[0], "saved": counted.early_stop[1]},
        "seconds_saved": None if an_item is None else an_item * saved,
        "workers": run.environment.workers,
        "device": run.environment.device,
        "budget": dict(state.budget),
        "failed": [
            {"trial": t.number, "label": t.name, "reason": run.places.text(t.reason or "")} for t in failed[:_SHOWN]
        ],
    }
