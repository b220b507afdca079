"""The proxy loss of a slice: differentiable by the weights, where the metric is not.

It is how unlikely the right answers are; lower is better. Texts and single answers give their negative loglikelihood,
choices the cross-entropy of a softmax over what the metric compares. Where text is generated, the answers that a source
writes take the place of right ones. Which request holds what follows lm-eval 0.4.13
(`lm_eval.api.task.ConfigurableTask`, `construct_requests` and `process_results`). Imports torch and lm-eval: import it
where it is used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from evomerge.errors import TrialError
from evomerge.scoring.engine.activations import Extent
from evomerge.scoring.engine.backward import Sum, Term
from evomerge.scoring.engine.encode import Window, encode
from evomerge.scoring.engine.lm import LanguageModel
from evomerge.scoring.replies import REPLIES
from evomerge.scoring.tasks.instances import Doc, TaskRequests
from evomerge.scoring.tasks.losses import right_answers, right_choices
from evomerge.scoring.tasks.metrics import Metric
from evomerge.scoring.tasks.passes import TaskPass
from evomerge.types import SplitName

_KEPT = 64
"""How many sets of items keep their micro-batches."""

_LOWER = {"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "brier_score"}
"""lm-eval's metrics that fall as the right answers become more likely. The others rise."""


@dataclass(frozen=True)
class Likelihood:
    """Computes ``-weight * ll``, `ll` being the sum of the windows' loglikelihoods."""

    weight: float

    def __call__(self, lls: Tensor) -> Tensor:
        return -self.weight * lls.sum()


@dataclass(frozen=True)
class CrossEntropy:
    """Computes ``-weight * log p(right)``, `p` being the softmax over the C choices' scores.

    Attributes:
        right: the right choices; their probabilities are added.
        scales: [C], what each choice's loglikelihood is multiplied by to give its score.
        contrast: C more requests follow, and their loglikelihoods are subtracted from the scores.
        weight: the document's share of the loss.
    """

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


class ProxyLoss:
    """Computes the proxy loss of a slice that is an lm-eval task, over items of the search split."""

    def __init__(self, source: TaskPass, metric: Metric) -> None:
        self._source, self._metric = source, metric
        self._taught: dict[tuple[str, str], Window] | None = {} if not is_generated(source) else None
        self._prepared = lru_cache(_KEPT)(self._prepare)

    @property
    def lacks_answers(self) -> bool:
        """Whether it has to be taught first (`learn`)."""
        return self._taught is None

    def learn(self) -> None:
        """Takes what the model writes with its current weights, those of a source, as the right answers to the items of
        the search split. TrialError where it writes nothing."""
        self._taught = self._source.prepare("search").written()
        if not self._taught:
            raise TrialError("the source whose answers are learned from writes nothing")

    def value(self, items: frozenset[str]) -> float:
        """Averages the loss over `items` (`ItemScore.item`) with the current weights.

        Texts: negative loglikelihood in nats per byte (UTF-8), in bits where the metric is `bits_per_byte`. Single
        answers, and those that a source has written: nats per token, averaged over documents. Choices: nats, averaged
        over documents; those without a right answer add nothing. Leaf tasks are pooled as the metric pools them.

        Raises:
            ValueError: no item is one of the slice's.
        """
        return self._prepared(items).value(self._source.lm)

    def backward(self, items: frozenset[str], share: float = 1.0, checkpointing: bool = False) -> float:
        """Computes the same, and `share` times its gradient, by torch's autograd; see `Suite.proxy_loss`."""
        return self._prepared(items).backward(self._source.lm, share, checkpointing)

    def largest(self, items: frozenset[str]) -> Extent:
        """The largest micro-batch, for `activation_bytes`. Reads no weights."""
        return self._prepared(items).largest(self._source.lm)

    def _prepare(self, items: frozenset[str]) -> Sum:
        tasks = self._source.requests("search", items)
        total = sum(len(task.docs) for task in tasks)
        if not total:
            raise ValueError("none of these items is in the slice's search split")
        by_size = self._metric.by_size
        shares = [len(task.docs) / total if by_size else 1 / len(tasks) for task in tasks]
        pairs = zip(tasks, shares, strict=True)
        lm, metric, taught = self._source.lm, self._metric, self._taught
        assert taught is not None, "no answers were learned"
        return Sum([term for task, share in pairs for term in _terms(lm, task, metric, share, taught)])


def no_proxy_loss(source: TaskPass, metric: Metric, split: SplitName) -> str:
    """Says why a slice has no proxy loss, judged by the items of `split`; empty if it has one."""
    tasks = source.requests(split)
    kinds = {doc.instances[0].request_type for task in tasks for doc in task.docs}
    if metric.filter == REPLIES:
        return "the length of an answer has no gradient"
    if "generate_until" in kinds and len(kinds) > 1:
        return "some of its tasks generate text, and others do not"
    if not hasattr(source.lm, "shortcuts"):
        return "its model reads images, whose requests are left to lm-eval"
    if source.lm.backend != "causal":
        return "its model has an encoder, whose requests are left to lm-eval"
    if metric.sign != (-1 if metric.name in _LOWER else 1):
        return f"{metric.label} is not known to get better as the right answers become more likely"
    for task in tasks if kinds != {"generate_until"} else ():
        if not any(_right(task.task, doc) for doc in task.docs):
            return f"the requests of task {task.leaf!r} do not tell which answer is right"
    return ""


def is_generated(source: TaskPass) -> bool:
    """Whether a slice's answers are written, so that only another model's can be learned from."""
    return "generate_until" in {task.get_config("output_type") for task in source.tasks.leaves.values()}


def _right(task: Any, doc: Doc) -> tuple[int, ...]:
    """The requests that hold a right answer."""
    document = copy.deepcopy(doc.document)
    if task.OUTPUT_TYPE == "multiple_choice":
        return right_choices(task, document)
    kind = doc.instances[0].request_type
    at = right_answers(task, kind, document, doc.instances)
    return () if at is None else (at,)


def _terms(
    lm: LanguageModel, requests: TaskRequests, metric: Metric, share: float, taught: Mapping[tuple[str, str], Window]
) -> Iterator[Term]:
    """The terms of one leaf task, which has `share` in the slice's loss. `taught`: the answers of a source."""
    if taught:
        yield from _written(requests, taught, share / len(requests.docs))
    elif requests.task.OUTPUT_TYPE == "multiple_choice":
        yield from _choices(lm, requests, metric.name, share / len(requests.docs))
    elif requests.task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield from _texts(lm, requests, metric.name, share)
    else:
        yield from _answers(lm, requests, share / len(requests.docs))


def _texts(lm: LanguageModel, requests: TaskRequests, metric: str, share: float) -> Iterator[Term]:
    """Each window of a text is a term: their sum needs no two of them at once."""
    sizes = [_bytes(requests.task, doc, metric) for doc in requests.docs]
    unit = math.log(2) if metric == "bits_per_byte" else 1.0
    for doc in requests.docs:
        for window in _windows(lm, doc.instances)[0]:
            yield Term([window], Likelihood(share / sum(sizes) / unit))


def _bytes(task: Any, doc: Doc, metric: str) -> float:
    """A text's length; for bits per byte, the length that the metric divides by."""
    if metric == "bits_per_byte":
        return float(task.process_results(copy.deepcopy(doc.document), [-1.0])[metric][1])
    return len(doc.instances[0].args[0].encode())


def _answers(lm: LanguageModel, requests: TaskRequests, weight: float) -> Iterator[Term]:
    for doc in requests.docs:
        if not _right(requests.task, doc):
            continue
        (windows,) = _windows(lm, doc.instances)
        yield Term(windows, Likelihood(weight / sum(len(window.targets) for window in windows)))


def _written(requests: TaskRequests, taught: Mapping[tuple[str, str], Window], weight: float) -> Iterator[Term]:
    """The answers of a source, each token forced: cross-entropy with what it wrote (Expert Merging, arXiv
    2509.25712)."""
    for doc in requests.docs:
        window = taught.get((requests.leaf, doc.item))
        if window is not None:
            yield Term([window], Likelihood(weight / len(window.targets)))


def _choices(lm: LanguageModel, requests: TaskRequests, metric: str, weight: float) -> Iterator[Term]:
    for doc in requests.docs:
        right = _right(requests.task, doc)
        if not right:
            continue
        choices = requests.task.doc_to_choice(copy.deepcopy(doc.document))
        contrast = metric == "acc_mutual_info"
        by_request = _windows(lm, doc.instances[: len(choices) * (1 + contrast)])
        value = CrossEntropy(right, tuple(_scale(choice, metric) for choice in choices), contrast, weight)
        yield Term([window for windows in by_request for window in windows], value)  # one window a request


def _scale(choice: str, metric: str) -> float:
    """What the metric multiplies a choice's loglikelihood by."""
    lengths = {"acc_norm": len(choice), "acc_bytes": len(choice.encode())}
    return 1 / max(lengths.get(metric, 1), 1)


def _windows(lm: LanguageModel, instances: Sequence[Any]) -> list[list[Window]]:
    """The windows of each request."""
    return encode(lm, instances[0].request_type, [instance.args for instance in instances])
