"""Polish: after the search, the best merge is scored in a few other forms, which need no gene.

What a search of weights cannot reach may still help the merge that it found: singular values closer to their mean
(`isotropy`, Marczak et al. 2025), or calibrated (`svc`, https://arxiv.org/abs/2602.05536), and weights that rise with
depth (LiNeS, Wang et al. 2024, https://arxiv.org/abs/2410.17146). The forms are trials like any other: under the same
floors, and finalists where they are good. No optimizer is told of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evomerge.checkpoints.structure import is_matrix
from evomerge.evaluator.executor import run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.files.objects import SpaceSpec
from evomerge.recipe.recipe import Document, Recipe, Slice
from evomerge.study.loop import Budget
from evomerge.study.prepare import Plan
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session

POLISHED = "task_arithmetic"
"""The method whose merges have other forms here."""

SPECTRAL: tuple[tuple[str, str, float], ...] = (
    ("isotropy", "isotropy", 0.25),
    ("isotropy", "isotropy", 0.5),
    ("isotropy", "isotropy", 1.0),
    ("svc", "alpha", 0.5),
    ("svc", "alpha", 1.0),
)
"""Forms by the singular values of the merged delta: a method, its parameter, and the value of that."""

SLOPE = 0.3
"""How much weights rise with depth: they are less by this share in the first layer, and more in the last."""

AFFORDED = {"cpu": 2e13, "cuda": 1e16}
"""The most operations for the singular values of one form: some minutes of two cores, and of a GPU."""

_STEPS = 30
"""Products of matrices that the singular values of one take, about."""


def count(session: Session) -> int:
    """How many trials of the best merge's forms a search may need: none where its space has no such merges, or its file
    wants none."""
    plan = session.plan
    if plan.spec.polish is False or not _has_forms(plan.spec):
        return 0
    return len(_spectral(session)) + (not _rises(plan.spec))


def kept(session: Session, budget: Budget) -> int:
    """So many trials of a budget are kept for the polish. By `polish: auto`, as many as it needs where they are a tenth
    of the budget at most, else none."""
    needed = count(session)
    if session.plan.spec.polish is None and budget.trials is not None and 10 * needed > budget.trials:
        return 0
    return needed


def polish(session: Session, budget: Budget) -> None:
    """Scores the forms of the best merge that the search found, as far as the budget goes; those that an earlier
    session has scored stay as they are."""
    best = _best(session)
    if best is None or not kept(session, budget):
        return
    known = {t.label: t for t in session.leaderboard.trials if t.polished == best.number}
    forms = {f"trial {best.number}, {label}": recipe for label, recipe in _forms(session, best.recipe)}
    new = [label for label in forms if label not in known]
    new = new[: budget.left(session, len(new))]
    if not new and not any(t.state == "running" for t in known.values()):
        return
    session.observer.phase(f"polishing {best.name}: {len(forms)} other forms of it")
    running = [t for t in known.values() if t.state == "running"]
    begun = (session.trials.begin("search", label, best.genome, forms[label], polished=best.number) for label in new)
    for _ in run_all(session.executor, (_scored(session, trial) for trials in (running, begun) for trial in trials)):
        pass


def _scored(session: Session, trial: Trial) -> EvalTask[Trial]:
    return session.end(trial, (yield from session.trials.evaluate(trial)))


def _best(session: Session) -> Trial | None:
    """The best merge that the search proposed and scored in full, as it was told: above the floors by their aim, where
    one is."""
    merges = session.trials.as_ended.merges_in_order()
    return next((t for t in merges if t.is_proposed and t.duplicate_of is None), None)


def _forms(session: Session, recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The other forms of a merge, by name; none where it is of another method."""
    document = recipe.output
    if len(recipe.documents) > 1 or document.method != POLISHED or document.modules:
        return
    for method, parameter, value in _spectral(session):
        changed = replace(document, method=method, parameters={**document.parameters, parameter: value})
        yield f"{method} {parameter} {value:g}" if method != parameter else f"{method} {value:g}", Recipe((changed,))
    if not _rises(session.plan.spec):
        yield f"weights that rise by {SLOPE:g}", Recipe((_rising(document),))


def _has_forms(spec: SpaceSpec) -> bool:
    return spec.dataflow is None and POLISHED in spec.methods


def _rises(spec: SpaceSpec) -> bool:
    """Whether weights differ by layers as it is."""
    return any(gene.name == "weight" and {"layers", "tensors"} & set(gene.per) for gene in spec.genes)


def _spectral(session: Session) -> tuple[tuple[str, str, float], ...]:
    """Those forms by singular values that can be afforded where the candidates are."""
    device = "cuda" if "cuda" in session.executor.devices else "cpu"
    return SPECTRAL if operations(session.plan) <= AFFORDED[device] else ()


def operations(plan: Plan) -> float:
    """About how many operations the singular values of all matrices of a merged delta take."""
    tensors = plan.models.base.tensors.items()
    return sum(2.0 * _STEPS * t.elements * min(t.shape[-2:]) for name, t in tensors if is_matrix(name, t.shape))


def _rising(document: Document) -> Document:
    """The same merge with weights that rise with depth."""
    ends = [each.layers[1] for slice_ in document.slices for each in slice_.inputs if each.layers is not None]
    last = max(max(ends, default=2) - 1, 1)

    def risen(slice_: Slice) -> Slice:
        first, end = slice_.inputs[0].layers or (0, last + 1)
        inputs = (replace(i, parameters=_scaled(i.parameters, first / last, (end - 1) / last)) for i in slice_.inputs)
        return replace(slice_, inputs=tuple(inputs))

    return replace(document, slices=tuple(map(risen, document.slices)))


def _scaled(parameters: Mapping[str, Any], first: float, last: float) -> dict[str, Any]:
    """Parameters of a model whose weight is scaled from the depth `first` to `last` of a slice."""

    def scaled(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            return [{**entry, "value": scaled(entry["value"])} for entry in value]
        knots = value if isinstance(value, list) and len(value) > 1 else [value, value]
        depths = [first + (last - first) * i / (len(knots) - 1) for i in range(len(knots))]
        risen = [knot * (1 + SLOPE * (2 * depth - 1)) for knot, depth in zip(knots, depths, strict=True)]
        return risen if first < last else risen[0]

    return {name: scaled(value) if name == "weight" else value for name, value in parameters.items()}
