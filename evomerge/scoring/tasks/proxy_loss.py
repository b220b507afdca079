"""A smooth stand-in for a slice's metric, differentiable by the weights: how unlikely the right answers are.

Lower is better. Texts and single answers give their negative loglikelihood, choices the cross-entropy of a softmax over
what the metric compares. Which request holds what follows lm-eval 0.4.13 (`lm_eval.api.task.ConfigurableTask`,
`construct_requests` and `process_results`). Imports torch and lm-eval: import it where it is used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from evomerge.scoring.engine.activations import Extent
from evomerge.scoring.engine.backward import Sum, Term
from evomerge.scoring.engine.encode import encode
from evomerge.scoring.engine.lm import LanguageModel
from evomerge.scoring.tasks.instances import Doc, TaskRequests
from evomerge.scoring.tasks.losses import right_answers, right_choices
from evomerge.scoring.tasks.metrics import Metric
from evomerge.scoring.tasks.passes import TaskPass
from evomerge.types import SplitName

_KEPT = 64
"""Sets of items whose micro-batches are kept."""

_LOWER = {"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "brier_score"}
"""lm-eval's metrics that fall as the right answers become more likely. The others rise."""


@dataclass(frozen=True)
class Likelihood:
    """``-weight * ll``, `ll` being the sum of the windows' loglikelihoods."""

    weight: float

    def __call__(self, lls: Tensor) -> Tensor:
        return -self.weight * lls.sum()


@dataclass(frozen=True)
class CrossEntropy:
    """``-weight * log p(right)``, `p` being the softmax over the C choices' scores: their loglikelihoods times `scales`
    [C], less, with `contrast`, those of the C requests that follow. Of several right choices the sum counts."""

    right: tuple[int, ...]
    scales: tuple[float, ...]
    contrast: bool
    weight: float

    def __call__(self, lls: Tensor) -> Tensor:
        count = len(self.scales)
        scores = lls[:count] * lls.new_tensor(self.scales)
        if self.contrast:
            scores = scores - lls[count:]
        return -self.weight * scores.log_softmax(0)[list(self.right)].logsumexp(0)


class Surrogate:
    """The surrogate of one slice of an lm-eval task, over items of the search split."""

    def __init__(self, source: TaskPass, metric: Metric) -> None:
        self._source, self._metric = source, metric
        self._prepared = lru_cache(_KEPT)(self._prepare)

    def value(self, items: frozenset[str]) -> float:
        """The mean over `items` (`ItemScore.item`) with the weights of now. ValueError where none is the slice's.

        Texts: negative loglikelihood in nats per byte (UTF-8), in bits where the metric is `bits_per_byte`. Single
        answers: nats per token, meaned over documents. Choices: nats, meaned over documents; those without a right
        answer add nothing. Leaf tasks are pooled as the metric's.
        """
        return self._prepared(items).value(self._source.lm)

    def backward(self, items: frozenset[str], share: float = 1.0, checkpointing: bool = False) -> float:
        """The same, and `share` times its gradient, by torch's autograd; see `Suite.surrogate`."""
        return self._prepared(items).backward(self._source.lm, share, checkpointing)

    def largest(self, items: frozenset[str]) -> Extent:
        """The largest micro-batch, for `activation_bytes`. Looks at no weights."""
        return self._prepared(items).largest(self._source.lm)

    def _prepare(self, items: frozenset[str]) -> Sum:
        papers = self._source.papers("search", items)
        total = sum(len(paper.questions) for paper in papers)
        if not total:
            raise ValueError("none of these items is in the slice's search split")
        by_size = self._metric.by_size
        shares = [len(paper.questions) / total if by_size else 1 / len(papers) for paper in papers]
        pairs = zip(papers, shares, strict=True)
        return Sum([term for paper, share in pairs for term in _terms(self._source.lm, paper, self._metric, share)])


def no_surrogate(source: TaskPass, metric: Metric, split: SplitName) -> str:
    """Why a slice has no surrogate, judged by the items of `split`; "" if it has one."""
    papers = source.papers(split)
    kinds = {question.instances[0].request_type for paper in papers for question in paper.questions}
    if "generate_until" in kinds:
        return "its answers are generated text, whose score has no gradient"
    if source.lm.backend != "causal":
        return "its model has an encoder, whose requests are left to lm-eval"
    if metric.sign != (-1 if metric.name in _LOWER else 1):
        return f"{metric.label} is not known to get better as the right answers become more likely"
    for paper in papers:
        if not any(_right(paper.task, question) for question in paper.questions):
            return f"the requests of task {paper.leaf!r} do not tell which answer is right"
    return ""


def _right(task: Any, question: Doc) -> tuple[int, ...]:
    """The requests that hold a right answer."""
    document = copy.deepcopy(question.document)
    if task.OUTPUT_TYPE == "multiple_choice":
        return right_choices(task, document)
    kind = question.instances[0].request_type
    at = right_answers(task, kind, document, question.instances)
    return () if at is None else (at,)


def _terms(lm: LanguageModel, paper: TaskRequests, metric: Metric, share: float) -> Iterator[Term]:
    """One leaf task's part, which has `share` in the slice's."""
    if paper.task.OUTPUT_TYPE == "multiple_choice":
        yield from _choices(lm, paper, metric.name, share / len(paper.questions))
    elif paper.task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield from _texts(lm, paper, metric.name, share)
    else:
        yield from _answers(lm, paper, share / len(paper.questions))


def _texts(lm: LanguageModel, paper: TaskRequests, metric: str, share: float) -> Iterator[Term]:
    """A text's windows are terms of their own: their sum needs no two of them at once."""
    sizes = [_bytes(paper.task, question, metric) for question in paper.questions]
    unit = math.log(2) if metric == "bits_per_byte" else 1.0
    for question in paper.questions:
        for window in _windows(lm, question.instances)[0]:
            yield Term([window], Likelihood(share / sum(sizes) / unit))


def _bytes(task: Any, question: Doc, metric: str) -> float:
    """A text's length; what bits per byte are counted by, where that is the metric."""
    if metric == "bits_per_byte":
        return float(task.process_results(copy.deepcopy(question.document), [-1.0])[metric][1])
    return len(question.instances[0].args[0].encode())


def _answers(lm: LanguageModel, paper: TaskRequests, weight: float) -> Iterator[Term]:
    for question in paper.questions:
        if not _right(paper.task, question):
            continue
        (windows,) = _windows(lm, question.instances)
        yield Term(windows, Likelihood(weight / sum(len(window.targets) for window in windows)))


def _choices(lm: LanguageModel, paper: TaskRequests, metric: str, weight: float) -> Iterator[Term]:
    for question in paper.questions:
        right = _right(paper.task, question)
        if not right:
            continue
        choices = paper.task.doc_to_choice(copy.deepcopy(question.document))
        contrast = metric == "acc_mutual_info"
        windows = _windows(lm, question.instances[: len(choices) * (1 + contrast)])
        value = CrossEntropy(right, tuple(_scale(choice, metric) for choice in choices), contrast, weight)
        yield Term([window for own in windows for window in own], value)  # one window a request


def _scale(choice: str, metric: str) -> float:
    """What the metric multiplies a choice's loglikelihood by."""
    lengths = {"acc_norm": len(choice), "acc_bytes": len(choice.encode())}
    return 1 / max(lengths.get(metric, 1), 1)


def _windows(lm: LanguageModel, instances: Sequence[Any]) -> list[list[Any]]:
    return encode(lm, instances[0].request_type, [instance.args for instance in instances])
