"""Jobs: units of work that need an evaluator. A job goes to another process as it is, and its result comes back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from evomerge.recipe.recipe import Recipe
from evomerge.types import Document, SplitName

if TYPE_CHECKING:
    from evomerge.evaluator.evaluation import Evaluation
    from evomerge.evaluator.evaluator import Evaluator
    from evomerge.merging.resident.slopes import ParameterSlopes

T = TypeVar("T")


class Job(Protocol):
    """Runs on an evaluator."""

    @property
    def recipe(self) -> Recipe:
        """The model that the job is about. An evaluator that holds it already is preferred."""
        ...

    def run(self, evaluator: Evaluator, on_slice: Callable[[str], None]) -> Any: ...


EvalTask = Generator[Job | Sequence[Job], Any, T]
"""A generator that yields jobs and returns a `T`. It is sent the result of each job, or has the job's exception thrown
in. Where it yields several jobs at once, it is sent the list of their results, exceptions among them."""


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """Scores a recipe on a split, on the named items of each slice or on all."""

    recipe: Recipe
    split: SplitName
    items: Mapping[str, frozenset[str]] | None = None

    def run(self, evaluator: Evaluator, on_slice: Callable[[str], None]) -> Evaluation:
        return evaluator.evaluate(self.recipe, self.split, on_slice, self.items)


@dataclass(frozen=True, eq=False)
class DocumentsJob:
    """Lists what people read of the items, by slice: of at most `most` items. No model is merged."""

    recipe: Recipe
    most: int

    def run(self, evaluator: Evaluator, on_slice: Callable[[str], None]) -> dict[str, list[Document]]:
        return evaluator.suite.documents(self.most)


@dataclass(frozen=True, eq=False)
class GradientJob:
    """Computes a slice's proxy loss, and its slopes by the parameters of the merge of `tensors`
    (`Evaluator.proxy_loss`)."""

    recipe: Recipe
    name: str
    items: frozenset[str]
    checked: frozenset[str]
    tensors: tuple[str, ...]
    teacher: Recipe | None = None

    def run(
        self, evaluator: Evaluator, on_slice: Callable[[str], None]
    ) -> tuple[float, float, dict[str, ParameterSlopes]]:
        on_slice(f"slopes of {self.name}")
        return evaluator.proxy_loss(self.recipe, self.name, self.items, self.checked, self.tensors, self.teacher)
