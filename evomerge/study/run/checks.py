"""What a recorded trial and a recorded fact must be. A storage can be damaged: the first fault is said in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import EvomergeError
from evomerge.escape import quoted
from evomerge.recipe.mergekit import recipe_from_data
from evomerge.study.run.stored import OPEN
from evomerge.study.run.trial import Trial
from evomerge.types import Dimension

Predicate = Callable[[Any], bool]

_OWN = {"kind", "label", "genome", "recipe", "recipe_id", "seed"}
"""What every trial has from its beginning."""


def is_own(frozen: FrozenTrial) -> bool:
    """Whether a trial of the storage is one of a search: other tools may add their own."""
    return not _OWN.isdisjoint(frozen.user_attrs)


def attribute_fault(frozen: FrozenTrial) -> str | None:
    """What is wrong with an attribute of a stored trial, whatever the search."""
    attributes = frozen.user_attrs
    for key in sorted(_OWN):
        if key not in attributes:
            return f"it has no {key}"
    for key, value in attributes.items():
        if key in _TRIAL and not _TRIAL[key](value):
            return f"its {key} is {quoted(value)}"
    return next(_faults(frozen, attributes), None)


def _faults(frozen: FrozenTrial, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Attributes that do not go with each other."""
    if attributes["genome"] != frozen.params:
        yield "its genome is not that of its parameters"
    if attributes.get("evaluated", 0) > attributes.get("items", math.inf):
        yield f"it was scored on {attributes['evaluated']} of {attributes['items']} items"
    if attributes.get("duplicate_of", -1) >= frozen.number:
        yield f"it is a duplicate of trial {attributes['duplicate_of']}"
    if attributes.get("polished", -1) >= frozen.number:
        yield f"it is another form of trial {attributes['polished']}"
    if attributes.get("told", 0) > frozen.number:
        yield f"its told is {attributes['told']}"
    if frozen.state is TrialState.FAIL and "reason" not in attributes:
        yield "it failed without a reason"
    is_open = frozen.state is TrialState.RUNNING and OPEN in attributes
    if is_open or frozen.state in (TrialState.COMPLETE, TrialState.PRUNED):
        missing = {"scores", "stderr", "bounds", "digest", "evaluated", "items", "seconds"} - attributes.keys()
        if missing:
            yield f"it has ended without {', '.join(sorted(missing))}"
        elif not attributes["scores"] or not _digest(attributes["digest"]):
            yield "it has ended without scores or digest"
        elif not is_open and not _known(frozen.value):
            yield f"its objective is {quoted(frozen.value)}"
    if frozen.state is TrialState.PRUNED and "by" not in attributes:
        yield "it was pruned by nothing"


def content_fault(trial: Trial, dimensions: Sequence[Dimension]) -> str | None:
    """What is wrong with a trial of a search over these dimensions."""
    try:
        if recipe_from_data(json.loads(trial.recipe_text)).id != trial.recipe_id:
            return "its recipe is not that of its recipe_id"
    except (EvomergeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"its recipe cannot be read ({error})"
    if trial.kind == "reference":
        return "it is a reference with a genome" if trial.genome else None
    if set(trial.genome) != {d.key for d in dimensions}:
        return "its genome has other genes than the space"
    for dimension in dimensions:
        value = trial.genome[dimension.key]
        legal = value in dimension.choices if dimension.choices else _finite(value) and _inside(value, dimension)
        if not legal:
            return f"its {dimension.key} is {quoted(value)}, outside of the space"
    return None


def fact_fault(facts: Mapping[str, Any]) -> str | None:
    """What is wrong with a fact of a study."""
    for key, value in facts.items():
        legal = _FACTS.get(key.partition(".")[0])
        if legal is not None and not legal(value):
            return f"its {key} is {quoted(value)}"
    return None


def _inside(value: Any, dimension: Dimension) -> bool:
    return bool(dimension.low <= value <= dimension.high)


# What values may be.


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _number(value) and math.isfinite(value)


def _known(value: Any) -> bool:
    return _number(value) and value == value


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-z]{0,128}", value) is not None


def _optional(legal: Predicate) -> Predicate:
    return lambda value: value is None or legal(value)


def _one_of(*values: object) -> Predicate:
    return lambda value: value in values


def _by_name(legal: Predicate) -> Predicate:
    """A mapping from names to such values."""
    return lambda value: isinstance(value, Mapping) and all(map(legal, value.values()))


def _by_trial(legal: Predicate) -> Predicate:
    """A mapping from the numbers of trials, as text, to such values."""
    return lambda value: _by_name(legal)(value) and all(key.isdecimal() for key in value)


def _listed(legal: Predicate) -> Predicate:
    return lambda value: isinstance(value, list | tuple) and all(map(legal, value))


def _with(**parts: Predicate) -> Predicate:
    """A mapping that has at least these keys."""
    return lambda value: (
        isinstance(value, Mapping) and all(key in value and legal(value[key]) for key, legal in parts.items())
    )


_SCORES = {
    "scores": _by_name(_known),
    "stderr": _by_name(_optional(_number)),
    "bounds": _by_name(_known),
    "digest": _digest,
    "evaluated": _count,
    "items": _count,
}

_TRIAL: Mapping[str, Predicate] = {
    "kind": _one_of("reference", "search"),
    "label": _text,
    "genome": _by_name(lambda value: _text(value) or _finite(value)),
    "recipe": lambda value: isinstance(value, str | list),
    "recipe_id": lambda value: _text(value) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "seed": lambda value: isinstance(value, int),
    **_SCORES,
    OPEN: _known,
    "errors": _by_name(_number),
    "seconds": _by_name(_number),
    "by": _one_of("racing", "early_stop"),
    "reason": _text,
    "told": _count,
    "place": _count,
    "sloped": lambda value: isinstance(value, bool),
    "slopes": _by_name(_with(loss=_number, checked=_number, slopes=_listed(_number))),
    "duplicate_of": _count,
    "generation": _count,
    "polished": _count,
}

_RESCORED = _with(**_SCORES, objective=_known)
_GATE = _with(floor=_optional(_number), text=_text, sign=_one_of(1, -1), scale=_number)


def _budget(value: Any) -> bool:
    """Older runs have no limit of items."""
    limits = _with(trials=_optional(_number), seconds=_optional(_number))
    return limits(value) and _optional(_number)(value.get("items"))


_ADVICE = _with(
    trial=_count,
    floors=_by_name(_known),
    items=_optional(_finite),
    trials=_optional(_count),
    chances=_optional(lambda value: _listed(_finite)(value) and len(value) == 2),
)
_NEWER = {
    "failed": _by_trial(_text),
    "chances": _by_trial(_finite),
    "bounds": _by_trial(_by_name(_known)),
    "confidence": _optional(_finite),
    "advice": _optional(_ADVICE),
}
"""Of a release; older runs lack some of these."""


def _release(value: Any) -> bool:
    oldest = _with(gates=_by_name(_GATE), trials=_listed(_count), winner=_optional(_count), after=_count)
    return oldest(value) and all(legal(value[key]) for key, legal in _NEWER.items() if key in value)


_FACTS: Mapping[str, Predicate] = {
    "promoted": _RESCORED,
    "holdout": _RESCORED,
    "gates": _by_name(_GATE),
    "errors": _by_name(_by_name(_number)),
    "slices": _by_name(_with(metric=_text, sign=_one_of(1, -1), weight=_number)),
    "budget": _budget,
    "hands": _count,
    "notes": _by_name(_count),
    "release": _release,
    "look": _with(budget=_budget, raised=_optional(_count), failed=_listed(_count)),
    "gradient": _with(
        first=_count,
        last=_count,
        objective=_listed(_number),
        parts=_listed(lambda row: isinstance(row, list) and len(row) == 4),
    ),
    "surrogates": _by_name(_by_name(_listed(_number))),
    "subsets": _by_name(_listed(_text)),
}
