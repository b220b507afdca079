"""Reads a trial out of an Optuna storage."""

from __future__ import annotations

import json
from collections.abc import Mapping

from optuna.trial import FrozenTrial, TrialState

from evomerge.study.run.trial import State, Trial

OPEN = "objective"
"""The attribute of a reference that has ended while the storage still has it running (`Store.end`)."""

_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def read_trial(frozen: FrozenTrial) -> Trial:
    """A trial out of the storage. Some attributes are stored under names that older runs have."""
    attributes, recipe = frozen.user_attrs, frozen.user_attrs["recipe"]
    state = _STATES.get(frozen.state, "failed")
    value = frozen.value if frozen.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    if state == "running" and OPEN in attributes:
        state, value = "complete", attributes[OPEN]
    return Trial(
        number=frozen.number,
        kind=attributes["kind"],
        label=attributes["label"],
        genome=attributes["genome"],
        recipe_text=recipe if isinstance(recipe, str) else json.dumps(recipe),
        recipe_id=attributes["recipe_id"],
        seed=attributes["seed"],
        state=state,
        scores=attributes.get("scores", {}),
        stderr=attributes.get("stderr", {}),
        bounds=attributes.get("bounds", {}),
        errors=attributes.get("errors", {}),
        objective=value,
        digest=attributes.get("digest"),
        seconds=attributes.get("seconds", {}),
        reason=attributes.get("reason") if state != "complete" else None,
        pruned_by=attributes.get("by") if state != "complete" else None,
        evaluated=attributes.get("evaluated", 0),
        items=attributes.get("items", 0),
        n_told=attributes.get("told"),
        order=attributes.get("place"),
        needs_gradient=attributes.get("sloped", False),
        slopes=attributes.get("slopes"),
        duplicate_of=attributes.get("duplicate_of"),
        generation=attributes.get("generation"),
        polished=attributes.get("polished"),
        engines=attributes.get("engines", {}),
    )
