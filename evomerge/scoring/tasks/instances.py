"""Prepared questions: a task's items with their requests, asked of the model as it is, marked by the task's code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evomerge.errors import TrialError
from evomerge.scoring.tasks.losses import mean_loss, right_answers
from evomerge.scoring.tasks.metrics import Rows

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")


@dataclass
class Doc:
    """One document with the requests that it gave rise to, in lm-eval's order, and what its templates render to."""

    item: str
    document: Any
    instances: list[Any]
    rendered: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class TaskRequests:
    """One leaf task's questions. The requests are lm-eval's instances; their answers are filled in and taken out
    again at every pass."""

    leaf: str
    task: Any
    questions: list[Doc]

    @property
    def names(self) -> list[str]:
        """The questions as `ItemScore.item` calls them."""
        return [f"{self.leaf}/{question.item}" for question in self.questions]

    @property
    def instances(self) -> list[Any]:
        return [instance for question in self.questions for instance in question.instances]

    def part(self, names: frozenset[str]) -> TaskRequests:
        pairs = zip(self.names, self.questions, strict=True)
        return TaskRequests(self.leaf, self.task, [question for name, question in pairs if name in names])

    def apply_filters(self) -> None:
        self.task._instances = self.instances
        self.task.apply_filters()

    def rows(self, name: str) -> Rows:
        """The task's own verdict on each answer, as the filter `name` let it through."""
        rows = []
        with _templates_rendered_once(self.task) as now:
            for question in self.questions:
                now(question)
                answers = [instance.filtered_resps[name] for instance in question.instances]
                rows.append((question.item, self.task.process_results(self._document(question), answers)))
        return rows

    def _document(self, question: Doc) -> Any:
        # Task code may change the document it is given; the next candidate must get it whole.
        return copy.deepcopy(question.document) if self._runs_code else question.document

    @cached_property
    def _runs_code(self) -> bool:
        from lm_eval.api.task import ConfigurableTask

        own = type(self.task).process_results is not ConfigurableTask.process_results
        fields = ("process_results", *_TEMPLATES)
        return own or any(callable(self.task.get_config(name)) for name in fields)


class PreparedRequests:
    """Some leaf tasks' questions, encoded and put into batches once."""

    def __init__(self, papers: Sequence[TaskRequests], lm: Any) -> None:
        self.papers, self._lm = list(papers), lm
        self._instances = [instance for paper in self.papers for instance in paper.instances]
        by_kind: dict[str, list[Any]] = {}
        for instance in self._instances:
            by_kind.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        self._requests = list(by_kind.values())
        self._plans = [lm.plan(requests) for requests in self._requests]

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The model's answers stand in the instances, filtered, for the time being. TrialError where one is NaN: such
        a candidate must not get the accuracy of always choosing the first answer."""
        self._forget()
        try:
            for requests, plan in zip(self._requests, self._plans, strict=True):
                answers = self._lm.answer(plan)
                broken = sum(map(_is_nan, answers))
                if broken:
                    raise TrialError(f"the model answered {broken} of {len(requests)} requests with NaN")
                for instance, answer in zip(requests, answers, strict=True):
                    instance.resps.append(answer)
            for paper in self.papers:
                paper.apply_filters()
            yield
        finally:
            self._forget()

    def loss(self) -> float | None:
        """The mean negative log-likelihood, in nats per token, of the right answers among those that were asked."""
        return mean_loss((_loglikelihood(instance.resps[0]), tokens) for instance, tokens in self._right)

    @cached_property
    def _right(self) -> list[tuple[Any, int]]:
        """The requests whose answers are right, with their numbers of tokens."""
        tokens: dict[int, int] = {}
        for requests, plan in zip(self._requests, self._plans, strict=True):
            tokens.update((id(r), n) for r, n in zip(requests, plan.tokens, strict=True))
        found = []
        for paper in self.papers:
            for question in paper.questions:
                kind = question.instances[0].request_type
                at = right_answers(paper.task, kind, copy.deepcopy(question.document), question.instances)
                if at is not None:
                    found.append((question.instances[at], tokens[id(question.instances[at])]))
        return found

    def _forget(self) -> None:
        for instance in self._instances:
            instance.resps = []
            instance.filtered_resps = {}


def _loglikelihood(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, tuple) else answer)


def _is_nan(answer: Any) -> bool:
    value = answer[0] if isinstance(answer, tuple) else answer
    return isinstance(value, float) and math.isnan(value)


@contextmanager
def _templates_rendered_once(task: Any) -> Iterator[Callable[[Doc], None]]:
    """lm-eval compiles and renders a task's templates again for every answer it marks, which can take longer than the
    forward passes. A template's text depends on the document alone, so it is kept beside the question; the function
    that is yielded says which one comes now. Functions in place of templates are called as ever."""
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
        yield lambda question: current.__setitem__(slice(None), [question])
    finally:
        for name in replaced:
            delattr(task, name)
