"""A task's documents with their requests: asked of the model, and marked by the task's code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.errors import TrialError
from evomerge.scoring.replies import Written, lengths, together
from evomerge.scoring.tasks.losses import mean_loss, right_answers
from evomerge.scoring.tasks.metrics import Rows

if TYPE_CHECKING:
    from evomerge.scoring.engine.encode import Window

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")


@dataclass
class Doc:
    """One document with its requests.

    Attributes:
        item: the document's name within its leaf task.
        document: what lm-eval read.
        instances: its requests, in lm-eval's order.
        rendered: what the task's templates render to for it.
    """

    item: str
    document: Any
    instances: list[Any]
    rendered: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class TaskRequests:
    """One leaf task's documents and requests. The requests are lm-eval's instances: every pass puts the model's
    responses into them and takes them out again."""

    leaf: str
    task: Any
    docs: list[Doc]
    samples: int = 1

    @property
    def names(self) -> list[str]:
        """The documents, as `ItemScore.item` calls them."""
        return [f"{self.leaf}/{doc.item}" for doc in self.docs]

    @property
    def instances(self) -> list[Any]:
        return [instance for doc in self.docs for instance in doc.instances]

    def part(self, names: frozenset[str]) -> TaskRequests:
        pairs = zip(self.names, self.docs, strict=True)
        return replace(self, docs=[doc for name, doc in pairs if name in names])

    def apply_filters(self) -> None:
        self.task._instances = self.instances
        self.task.apply_filters()

    def rows(self, filter_name: str) -> Rows:
        """What the task's code returns for each document, from the responses that the filter let through; of several
        samples, for each one by itself."""
        if self.samples == 1:
            return self._marked(filter_name)
        responses, marks = [instance.resps for instance in self.instances], []
        for at in range(self.samples):
            for instance, given in zip(self.instances, responses, strict=True):
                instance.resps = [given[at]]
            self.apply_filters()
            marks.append(self._marked(filter_name))
        for instance, given in zip(self.instances, responses, strict=True):
            instance.resps = given
        self.apply_filters()
        return together(marks)

    def replies(self) -> Rows:
        """How long the replies to each document are."""
        return [(doc.item, lengths([r for instance in doc.instances for r in instance.resps])) for doc in self.docs]

    def _marked(self, filter_name: str) -> Rows:
        rows = []
        with _templates_rendered_once(self.task) as start:
            for doc in self.docs:
                start(doc)
                responses = [_as_in_lm_eval(instance.filtered_resps[filter_name]) for instance in doc.instances]
                rows.append((doc.item, self.task.process_results(self._document(doc), responses)))
        return rows

    def _document(self, doc: Doc) -> Any:
        # A task's code may change the document; the next candidate must get it whole.
        return copy.deepcopy(doc.document) if self._runs_code else doc.document

    @cached_property
    def _runs_code(self) -> bool:
        from lm_eval.api.task import ConfigurableTask

        overridden = type(self.task).process_results is not ConfigurableTask.process_results
        fields = ("process_results", *_TEMPLATES)
        return overridden or any(callable(self.task.get_config(name)) for name in fields)


def _as_in_lm_eval(response: Any) -> Any:
    """What a filter let through, with plain texts: tasks look at their type, and make others of it."""
    if isinstance(response, list):
        return [_as_in_lm_eval(each) for each in response]
    return str(response) if isinstance(response, Written) else response


class PreparedRequests:
    """The requests of some leaf tasks, encoded and put into batches once."""

    def __init__(self, tasks: Sequence[TaskRequests], lm: Any) -> None:
        """`lm`: a `ResidentLM`."""
        self.tasks, self._lm = list(tasks), lm
        self._instances = [instance for task in self.tasks for instance in task.instances]
        by_kind: dict[str, list[Any]] = {}
        for instance in self._instances:
            by_kind.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        self._requests = list(by_kind.values())
        self._plans = [lm.plan(requests) for requests in self._requests]

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Puts the model's responses, filtered, into the instances, and takes them out at the end. TrialError where one
        is NaN: an accuracy of NaNs would be that of always choosing the first answer."""
        self._forget()
        try:
            for requests, plan in zip(self._requests, self._plans, strict=True):
                responses = self._lm.answer(plan)
                broken = sum(map(_is_nan, responses))
                if broken:
                    raise TrialError(f"the model answered {broken} of {len(requests)} requests with NaN")
                for instance, response in zip(requests, responses, strict=True):
                    instance.resps.append(response)
            for task in self.tasks:
                task.apply_filters()
            yield
        finally:
            self._forget()

    def written(self) -> dict[tuple[str, str], Window]:
        """What the model writes with its current weights, by leaf task and item, each as a window behind its prompt;
        the first of several samples."""
        from evomerge.scoring.engine.generation import reply_windows

        found: dict[int, Window | None] = {}
        for requests, plan in zip(self._requests, self._plans, strict=True):
            windows = reply_windows(self._lm, plan, self._lm.answer(plan))
            found.update(reversed([(id(r), window) for r, window in zip(requests, windows, strict=True)]))
        asked = ((task.leaf, doc.item, found[id(doc.instances[0])]) for task in self.tasks for doc in task.docs)
        return {(leaf, item): window for leaf, item, window in asked if window is not None}

    def loss(self) -> float | None:
        """The mean negative log-likelihood of the right answers among the requests, in nats per token."""
        return mean_loss((_loglikelihood(instance.resps[0]), tokens) for instance, tokens in self._right)

    @cached_property
    def _right(self) -> list[tuple[Any, int]]:
        """The requests that hold a right answer, with their numbers of tokens."""
        tokens: dict[int, int] = {}
        for requests, plan in zip(self._requests, self._plans, strict=True):
            tokens.update((id(r), n) for r, n in zip(requests, plan.tokens, strict=True))
        right = []
        for task in self.tasks:
            for doc in task.docs:
                kind = doc.instances[0].request_type
                at = right_answers(task.task, kind, copy.deepcopy(doc.document), doc.instances)
                if at is not None:
                    right.append((doc.instances[at], tokens[id(doc.instances[at])]))
        return right

    @property
    def n_read(self) -> int | None:
        """How many tokens the model reads for them; None where it generates text, whose length is unknown."""
        numbers = [getattr(plan, "n_read", None) for plan in self._plans]
        return None if None in numbers else sum(n for n in numbers if n is not None)

    def _forget(self) -> None:
        for instance in self._instances:
            instance.resps = []
            instance.filtered_resps = {}


def _loglikelihood(response: Any) -> float:
    return float(response[0] if isinstance(response, tuple) else response)


def _is_nan(response: Any) -> bool:
    value = response[0] if isinstance(response, tuple) else response
    return isinstance(value, float) and math.isnan(value)


@contextmanager
def _templates_rendered_once(task: Any) -> Iterator[Callable[[Doc], None]]:
    """Keeps what a task's templates render to in each `Doc`; the function that is yielded says which document is next.

    lm-eval compiles and renders the templates again for every response that it marks, which can take longer than the
    forward passes. Their text depends on the document alone. Functions in place of templates are called as usual.
    """
    current: list[Doc] = []

    def remembered(name: str, render: Callable[..., Any]) -> Callable[..., Any]:
        def call(document: Any, *template: Any) -> Any:
            kept, key = current[0].rendered, (name, *map(str, template))
            if key not in kept:
                kept[key] = render(document, *template)
            return copy.copy(kept[key])

        return call

    replaced = [name for name in _TEMPLATES if isinstance(task.get_config(name), str)]
    for name in replaced:
        setattr(task, name, remembered(name, getattr(task, name)))
    try:
        yield lambda doc: current.__setitem__(slice(None), [doc])
    finally:
        for name in replaced:
            delattr(task, name)
