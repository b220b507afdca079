"""What an optimizer asks of a space: that it holds the models by which the optimizer goes. Light, as `options` is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import suggestion
from evomerge.optimize.declarations import OptionError, check_options
from evomerge.space.landmarks import LADDER, UNIFORM
from evomerge.types import Genome

SOURCES = "sources"
"""In place of a landmark's label: every source."""

_MEND = (
    "search `method: task_arithmetic` (or linear, which reaches the sources and their average) with "
    "`weight: {low: 0, high: 1, per: [sources]}`, and let density and lambda, where they vary, reach 1"
)


def check_landmarks(
    name: str, options: Mapping[str, Any], sources: Sequence[str], landmarks: Mapping[str, Genome]
) -> None:
    """Raises OptionError where the optimizer `name` goes by models that are not among the space's `landmarks`."""
    if name in ("uniform-soup", "greedy-soup") and len(sources) == 1:
        raise OptionError("name", f"{name} has nothing to average with one source", "add sources, or use the path")
    wanted: dict[str, str] = {}
    if name in ("uniform-soup", "greedy-soup"):
        wanted = {"name": UNIFORM}
    elif name == "path":
        checked = check_options(name, options)
        wanted = {key: str(checked[key]) for key in ("begin", "end")}
    legal = ["base", *sources, UNIFORM, *(f"equal {step:g}" for step in LADDER)]
    for key, label in wanted.items():
        if label not in legal and (label != SOURCES or key == "begin"):
            raise OptionError(key, f"{name} knows no model {label!r}", suggestion(label, legal))
        if any(model not in landmarks for model in (sources if label == SOURCES else [label])):
            named = {"base": "the base", UNIFORM: "the uniform average", SOURCES: "the sources"}.get(label, label)
            held = [model for model in legal if model in landmarks]
            mend = f"name ends that it holds: {', '.join(held)}" if name == "path" and len(held) > 1 else _MEND
            raise OptionError(key, f"{name} goes by {named}, which the space does not hold", mend)
    ends = [landmarks.get(label) for label in wanted.values()]
    if name == "path" and ends[0] == ends[1]:
        raise OptionError("end", f"the path begins and ends with the same model, {wanted['begin']}", "name another")
