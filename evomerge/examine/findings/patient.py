"""The patient: a merged model with its parents, and what was measured of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from evomerge.evaluator.progress import Progress
from evomerge.examine.findings.measures import Measured, comparable, measure
from evomerge.examine.findings.models import ModelView
from evomerge.examine.findings.origins import Origin, find_origins
from evomerge.examine.findings.rows import Rows, measure_rows
from evomerge.recipe.recipe import Recipe


@dataclass(frozen=True)
class Patient:
    """A model and what is known of it.

    Attributes:
        model: the merge.
        base: the common ancestor, if one is known.
        sources: what was merged.
        recipe: the recipe that made it, if there is one.
        measured: what the pass over its tensors found, by name; some are missing if the time was over.
        origins: the layer of a parent that each layer is most like; None where that is unknown.
        rows: of the embeddings and the head, by name.
        explained: tensors that findings explain already.
    """

    model: ModelView
    base: ModelView | None
    sources: tuple[ModelView, ...]
    recipe: Recipe | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)
    origins: tuple[Origin, ...] | None = None
    rows: Mapping[str, Rows] = field(default_factory=dict)
    explained: frozenset[str] = frozenset()

    @property
    def parents(self) -> tuple[ModelView, ...]:
        """The base, if it is known, and the sources."""
        return (*([self.base] if self.base else []), *self.sources)

    @property
    def of_sources(self) -> tuple[ModelView, ...]:
        """The sources; where there is none, the base: the models that this one should be like."""
        return self.sources or self.parents

    def compared(self, matrices: bool = False) -> list[Measured]:
        """The tensors that can be compared with parents, and that no finding explains yet."""
        found = [m for m in self.measured.values() if m.compared and m.name not in self.explained]
        return [m for m in found if len(m.shape) > 1] if matrices else found


_QUICK = 1 << 28
"""Elements of the matrices of one vocabulary that are compared where time is short."""


def measured(patient: Patient, progress: Progress, seconds: float | None = None) -> Patient:
    """Measures a patient's tensors; after `seconds`, what has been measured so far."""
    ends = None if seconds is None else time.monotonic() + seconds
    progress.phase("comparing layers with the parents'")
    origins = find_origins(patient.model, patient.parents)
    found: dict[str, Measured] = {}
    names = _order(patient.model)
    for done, name in enumerate(names):
        if ends is not None and time.monotonic() > ends:
            break
        progress.progress(f"measured {done} of {len(names)} tensors", done / len(names))
        place, shape = patient.model.place(name), tuple(patient.model.shapes[name])
        parents = list(_own(patient.model, patient.parents, origins, name, shape))
        factor = patient.model.factors.get(name, 1.0)
        found[name] = measure(name, patient.model.read(name), place, parents, factor)
    rows: dict[str, Rows] = {}
    for name in filter(None, (patient.model.embedding, patient.model.head)):
        size = prod(patient.model.shapes[name]) * (1 + len(patient.parents)) if name in found else 0
        short = ends is not None and (size > _QUICK or time.monotonic() > ends)
        if name in found and not found[name].n_bad and not short:
            progress.phase(f"comparing the rows of {name}")
            rows[name] = measure_rows(patient.model, patient.parents, name)
    return replace(patient, measured=found, origins=origins, rows=rows)


def _own(
    model: ModelView,
    parents: Sequence[ModelView],
    origins: Sequence[Origin] | None,
    name: str,
    shape: tuple[int, ...],
) -> Iterator[tuple[ModelView, str]]:
    """The parents' tensors that one of the merge is compared with, by name: those of the layer that it is of."""
    place = model.place(name)
    if origins is not None and isinstance(place, int) and place < len(origins):
        name = model.stack.name(origins[place].layer, model.stack.part(name))
    for parent in parents:
        if comparable(parent, name, shape):
            yield parent, name


def _order(model: ModelView) -> list[str]:
    """The tensors, small ones first, then layers from both ends and the middle, so that a part of them says much."""
    small = [n for n, shape in model.shapes.items() if len(shape) < 2]
    large = [n for n, shape in model.shapes.items() if len(shape) >= 2]
    step = 7

    def turn(name: str) -> tuple[int, int]:
        place = model.place(name)
        return (place % step, place) if isinstance(place, int) else (0, -1)

    return [*small, *sorted(large, key=turn)]
