"""Resolves a slice's metric once, and reads it from every candidate's results.

Imports lm-eval: import it where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval.api import metrics as lm_metrics
from lm_eval.api.registry import is_higher_better

from evomerge.errors import InputError, TrialError, suggestion
from evomerge.files.objects import SliceSpec
from evomerge.scoring.replies import REPLIES, reduced
from evomerge.scoring.stats.aggregation import FORMULAS, Formula, MeanKind, TaskMean, formula_stderr, pooled_value
from evomerge.scoring.stats.bootstrap import aggregate_stderr
from evomerge.scoring.stats.standard_errors import pooled_stderr
from evomerge.types import ItemScore, SliceScore

Rows = Sequence[tuple[str, Mapping[str, Any]]]
"""One leaf task's results under one filter: item name, and what `process_results` returned for it."""

_LN2 = math.log(2)


@dataclass(frozen=True)
class Metric:
    """A metric of one or several leaf tasks.

    Attributes:
        name: as lm-eval reports it, before the comma of ``acc,none``.
        filter: as lm-eval reports it, after the comma.
        sign: -1 where a lower value is better, else 1.
        aggregate: leaf task -> the function that makes a score of what the metric returned for its items.
        by_size: leaf tasks count by their numbers of items, else equally.
        clusters: item -> what it shares with others of the same origin.
        pass_at: of so many samples one has to be right; None: their mean counts.
    """

    name: str
    filter: str
    sign: int
    aggregate: Mapping[str, Callable[[list[Any]], float]]
    by_size: bool = True
    clusters: Mapping[str, str] = field(default_factory=dict)
    pass_at: int | None = None

    @property
    def label(self) -> str:
        label = self.name if self.filter in ("none", REPLIES) else f"{self.name},{self.filter}"
        return label if self.pass_at is None else f"pass@{self.pass_at} {label}"

    def read(self, results: Mapping[str, Rows]) -> SliceScore:
        """Scores one candidate. `results`: leaf task -> rows. TrialError where a value is missing or not finite."""
        values: list[float] = []
        errors: list[float | None] = []
        sizes: list[float] = []
        items: list[ItemScore] = []
        for leaf, rows in results.items():
            value, error, scored = self._leaf(leaf, rows)
            values.append(value)
            errors.append(error)
            sizes.append(len(rows) if self.by_size else 1)
            items += scored
        return SliceScore(self.sign * pooled_value(values, sizes), pooled_stderr(errors, sizes), tuple(items))

    @property
    def aggregation(self) -> TaskMean | None:
        """How the score is made of the items' scores, where it is a mean of them."""
        formulas = {_formula(f) for f in self.aggregate.values()}
        if len(formulas) > 1:
            return None
        formula = formulas.pop()
        if formula == "bits_per_byte":
            return TaskMean(MeanKind(self.sign, by_size=self.by_size, best=0.0), formula, self.label)
        if formula == "mean":
            ends = (1.0, 0.0) if self.sign > 0 else (0.0, 1.0)
            best, worst = ends if self.name in SHARES else (None, None)
            return TaskMean(MeanKind(self.sign, by_size=self.by_size, best=best, worst=worst), formula, self.label)
        if len(self.aggregate) == 1 and formula is not None:
            return TaskMean(MeanKind(self.sign, logarithmic=True, by_size=self.by_size, best=1.0), formula, self.label)
        return None

    def _leaf(self, leaf: str, rows: Rows) -> tuple[float, float | None, list[ItemScore]]:
        raws = [(item, reduced(result[self.name], self.pass_at)) for item, result in rows if self.name in result]
        if not raws:
            raise TrialError(f"task {leaf!r} reported no {self.name!r} for any item")
        value = float(self.aggregate[leaf]([raw for _, raw in raws]))
        if not math.isfinite(value):
            raise TrialError(f"{self.label} of task {leaf!r} is {value}")
        formula = _formula(self.aggregate[leaf])
        scored = [_item(f"{leaf}/{item}", raw, formula) for item, raw in raws]
        if self.clusters:
            scored = [replace(i, cluster=self.clusters.get(i.item)) for i in scored]
        if formula is None:
            clusters = [item.cluster for item in scored]
            return value, aggregate_stderr(self.aggregate[leaf], [raw for _, raw in raws], clusters), scored
        return value, formula_stderr(scored, formula), scored


def _formula(aggregate: Callable[..., Any]) -> Formula | None:
    """The name of lm-eval's function; None where it is another one."""
    return next((name for name in FORMULAS if getattr(lm_metrics, name) is aggregate), None)


def _item(item: str, raw: Any, formula: Formula | None) -> ItemScore:
    """One item's number in the metric's natural direction, where it has one."""
    if formula in ("bits_per_byte", "weighted_perplexity"):
        loglikelihood, size = float(raw[0]), float(raw[1])
        if size <= 0:
            return ItemScore(item, None, 0.0, plain(raw))
        per_unit = -loglikelihood / size
        score = per_unit / _LN2 if formula == "bits_per_byte" else math.exp(min(per_unit, 700.0))
        return ItemScore(item, score, size, plain(raw))
    number = _number(raw)
    if number is not None and formula == "perplexity":
        number = math.exp(min(-number, 700.0))
    return ItemScore(item, number, 1.0, plain(raw))


SHARES = ("acc", "acc_norm", "acc_bytes", "acc_norm_bytes", "acc_mutual_info", "exact_match", "mc1", "mc2")
"""Metrics whose items lie between 0 and 1."""


def _number(raw: Any) -> float | None:
    try:
        number = float(raw)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def plain(raw: Any) -> Any:
    """`raw` as JSON-compatible Python values."""
    if hasattr(raw, "tolist"):
        raw = raw.tolist()
    if isinstance(raw, Mapping):
        return {str(k): plain(v) for k, v in raw.items()}
    if isinstance(raw, list | tuple | set):
        return [plain(v) for v in raw]
    if isinstance(raw, float) and not math.isfinite(raw):
        return str(raw)
    return raw if raw is None or isinstance(raw, bool | int | float | str) else str(raw)


# Resolving


def resolve(
    spec: SliceSpec,
    leaves: Mapping[str, Any],
    by_size: Callable[[str], bool],
    reported: Callable[[str, str], set[str] | None],
) -> Metric:
    """Finds the metric that a slice names.

    Args:
        spec: the slice.
        leaves: leaf task -> lm-eval's task.
        by_size: whether leaf tasks count by their sizes for a metric.
        reported: (leaf, metric) -> the metrics that the leaf's code returns; None where that could not be tried.

    Raises:
        InputError: a leaf lacks the metric; its filter or its direction is unknown or ambiguous.
    """
    name, _, suffix = (spec.metric or "").partition(",")
    if spec.of is not None:
        for leaf, task in leaves.items():
            if task.get_config("output_type") != "generate_until":
                problem = f"task {leaf!r} of slice {spec.of!r} generates no text that has a length"
                raise InputError(problem, "name a slice of generated answers", spec.at("of"))
        return Metric(name, REPLIES, -1, dict.fromkeys(leaves, lm_metrics.mean))
    option = spec.options.get("filter")
    if suffix and option and suffix != option:
        problem = f"the metric names the filter {suffix!r}, and `filter` is {option!r}"
        raise InputError(problem, "give one of them", spec.at("filter"))
    for leaf, task in leaves.items():
        _check_reported(spec, name, leaf, task, reported(leaf, name))
    found = Metric(
        name=name,
        filter=_filter(spec, name, suffix or option, leaves),
        sign=_sign(spec, name, leaves.values()),
        aggregate={leaf: task.aggregation().get(name, lm_metrics.mean) for leaf, task in leaves.items()},
        by_size=by_size(name),
        pass_at=spec.pass_at,
    )
    if spec.samples > 1 and {_formula(aggregate) for aggregate in found.aggregate.values()} != {"mean"}:
        problem = f"{name!r} of task {spec.task!r} is no mean over its items, and samples are averaged"
        raise InputError(problem, "remove `samples`, or take another metric", spec.at("samples"))
    return found


def _check_reported(spec: SliceSpec, name: str, leaf: str, task: Any, seen: set[str] | None) -> None:
    declared = set(task.aggregation())
    legal = declared if seen is None else seen
    if name in legal:
        return
    problem = f"task {leaf!r} has no metric {name!r}"
    if name in declared:
        problem = f"task {leaf!r} declares the metric {name!r}, but does not report it"
    raise InputError(problem, suggestion(name, legal), spec.at("metric"))


def _filter(spec: SliceSpec, metric: str, wanted: str | None, leaves: Mapping[str, Any]) -> str:
    names = {leaf: [f.name for f in task._filters] for leaf, task in leaves.items()}
    if wanted is None:
        every = {tuple(filters) for filters in names.values()}
        only = next(iter(every))
        if len(every) == 1 and len(only) == 1:
            return str(only[0])
        options = sorted({f"{metric},{name}" for filters in names.values() for name in filters})
        problem = f"task {spec.task!r} reports {metric!r} under several filters"
        raise InputError(problem, f"write one of: {', '.join(options)}", spec.at("metric"))
    for leaf, filters in names.items():
        if wanted not in filters:
            key = "filter" if "filter" in spec.options else "metric"
            raise InputError(f"task {leaf!r} has no filter {wanted!r}", suggestion(wanted, filters), spec.at(key))
    return wanted


def _sign(spec: SliceSpec, metric: str, tasks: Iterable[Any]) -> int:
    if spec.direction is not None:
        return 1 if spec.direction == "higher" else -1
    stated = {_higher(task, metric) for task in tasks}
    if len(stated) != 1 or None in stated:
        problem = f"task {spec.task!r} does not tell whether a higher {metric!r} is better"
        raise InputError(problem, "add `direction: higher` or `direction: lower`", spec.at("metric"))
    return 1 if stated == {True} else -1


def _higher(task: Any, metric: str) -> bool | None:
    stated = task.higher_is_better().get(metric)
    if stated is None:
        stated = is_higher_better(metric)
    return None if stated is None else bool(stated)
