"""One pass of the model over one task's items. Slices with the same task and options share it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.replies import REPLIES
from evomerge.scoring.splits import SIDES, Deal, deal_all, item_key, labels
from evomerge.scoring.tasks import library
from evomerge.scoring.tasks.answers import Given, describe, given
from evomerge.scoring.tasks.constants import constant_items
from evomerge.scoring.tasks.instances import Doc, PreparedRequests, TaskRequests
from evomerge.scoring.tasks.metrics import Rows
from evomerge.types import Document, SplitName

_PROMPT_FIELDS = (
    "output_type",
    "description",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "target_delimiter",
    "fewshot_delimiter",
    "gen_prefix",
    "num_fewshot",
    "generation_kwargs",
    "filter_list",
    "repeats",
    "metric_list",
    "process_results",
)
"""The parts of a task's config that decide what an item's score means."""


@dataclass(frozen=True)
class Answers:
    """What one pass over a task gave.

    Attributes:
        rows: filter -> leaf task -> rows.
        loss: the mean negative log-likelihood of the right answers in nats per token; None where the requests do not
            tell it.
        given: filter -> item -> answer.
    """

    rows: Mapping[str, Mapping[str, Rows]]
    loss: float | None
    given: Mapping[str, Mapping[str, Given]]


class TaskPass:
    """Holds the items of a task (or of a group's or tag's leaf tasks), dealt and turned into requests once, and asks
    the model about them.

    Attributes:
        spec: the first slice that asked for it.
        tasks: the leaf tasks.
        lm: the model, a `ResidentLM`.
        asked: what the items are asked of; another one where an engine answers.
        filters: the filters that slices read.
        deal: the side of each item.
    """

    def __init__(self, fitness: FitnessSpec, spec: SliceSpec, tasks: library.TaskSet, lm: Any) -> None:
        self.spec, self.tasks, self.lm = spec, tasks, lm
        self.asked = lm
        self.filters: set[str] = set()
        self._documents = {leaf: _documents(spec, leaf, task) for leaf, task in tasks.leaves.items()}
        self._keys = {leaf: [item_key(d) for d in docs] for leaf, docs in self._documents.items()}
        self._labels = {leaf: labels(keys) for leaf, keys in self._keys.items()}
        self.deal: Deal = deal_all(self._keys, fitness.split_seed, fitness.search, spec.items)
        self._built: dict[SplitName, list[TaskRequests]] = {}
        self._prepared: dict[tuple[SplitName, frozenset[str] | None], PreparedRequests] = {}

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> PreparedRequests:
        """Prepares the requests of a split's items (only those in `names`), the first time that they are asked for.
        InputError where they cannot be built."""
        if (split, names) not in self._prepared:
            try:
                self._prepared[split, names] = PreparedRequests(self.requests(split, names), self.asked)
            except InputError as error:
                raise InputError(error.problem, error.mend, error.where or self.spec.at("task")) from error
            except (TypeError, ValueError, LookupError) as error:
                problem = f"the requests of task {self.spec.task!r} cannot be prepared: {library.reason(error)}"
                raise InputError(problem, "mend the task or its options", self.spec.at("task")) from error
        return self._prepared[split, names]

    def requests(self, split: SplitName, names: frozenset[str] | None = None) -> list[TaskRequests]:
        """The requests of a split's items (only those in `names`), without the leaf tasks that have none."""
        if split not in self._built:
            indices = {leaf: self.deal.indices(split, leaf) for leaf in self.tasks.leaves}
            self._built[split] = [self._build(leaf, split, at) for leaf, at in indices.items() if at]
        built = self._built[split]
        return built if names is None else [part for whole in built if (part := whole.part(names)).docs]

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, as `ItemScore.item` calls them, in the order in which they are reported."""
        places = ((leaf, index) for leaf in self.tasks.leaves for index in self.deal.indices(split, leaf))
        return tuple(f"{leaf}/{self._labels[leaf][index]}" for leaf, index in places)

    def clusters(self, field: str, where: Where) -> dict[str, str]:
        """Maps each item to the content of its document's `field`. InputError where a document has no such field."""
        clusters = {}
        for leaf, documents in self._documents.items():
            for label, document in zip(self._labels[leaf], documents, strict=True):
                if field not in document:
                    problem = f"the items of task {leaf!r} have no field {field!r}"
                    raise InputError(problem, suggestion(field, map(str, document)), where)
                clusters[f"{leaf}/{label}"] = str(document[field])
        return clusters

    def _build(self, leaf: str, split: SplitName, indices: list[int]) -> TaskRequests:
        task, documents = self.tasks.leaves[leaf], self._documents[leaf]
        forbidden = set() if split == "all" else self.deal.keys("holdout", leaf)
        try:
            instances = library.prepare(task, documents, indices, forbidden, self.spec, self.lm)
        except InputError:
            raise
        except Exception as error:
            if "larger than population" in str(error):
                problem = f"task {leaf!r} has not as many few-shot examples as it is to show"
                raise InputError(problem, "lower `num_fewshot`", self.spec.at("num_fewshot")) from error
            found = library.failing_field(task, (documents[index] for index in indices), type(error))
            of = f" ({found[0]} of item {indices[found[1]] + 1} of {len(documents)})" if found else ""
            problem = f"the prompts of task {leaf!r} cannot be built{of}: {library.reason(error)}"
            raise InputError(problem, "mend the task, its data or its options", self.spec.at("task")) from error
        by_document: dict[int, list[Any]] = {}
        for instance in instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        docs = [
            Doc(self._labels[leaf][index], documents[index], sorted(by_document[k], key=lambda i: i.idx))
            for k, index in enumerate(indices)
        ]
        return TaskRequests(leaf, task, docs, self.spec.samples)

    def doubts(self) -> list[str]:
        """What the prepared items have in common and should not, a line for each leaf task."""
        lines = []
        for leaf, task in self.tasks.leaves.items():
            parts = [part for built in self._built.values() for part in built if part.leaf == leaf]
            constant = constant_items(task, [doc for part in parts for doc in part.docs])
            lines += [f"task {leaf!r}: {constant}"] if constant else []
        return lines

    def reported(self, leaf: str, metric: str, split: SplitName) -> set[str] | None:
        """The metrics that the leaf's code returns, tried on made-up responses; None where that cannot be tried.
        Stops at the first document that has `metric`."""
        requests = next((r for r in self.requests(split) if r.leaf == leaf), None)
        if requests is None:
            return None
        metrics: set[str] = set()
        for doc in requests.docs[:50]:
            try:
                responses = [_made_up(instance.request_type) for instance in doc.instances]
                result = requests.task.process_results(copy.deepcopy(doc.document), responses)
            except Exception:
                return None
            metrics.update(result)
            if metric in metrics:
                break
        return metrics

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> Answers:
        """Asks the model, with its current weights, about the items of a split (only those in `names`)."""
        prepared = self.prepare(split, names)
        with prepared.answered():
            filters = sorted(self.filters - {REPLIES})
            rows = {f: {task.leaf: task.rows(f) for task in prepared.tasks} for f in filters}
            said = {f: {k: v for task in prepared.tasks for k, v in given(task, f).items()} for f in filters}
            if REPLIES in self.filters:
                rows[REPLIES] = {task.leaf: prepared.replies(task) for task in prepared.tasks}
                said[REPLIES] = {}  # the slice that asked keeps the texts
            return Answers(rows, prepared.loss(), said)

    def documents(self, split: SplitName) -> Iterator[Document]:
        """What people read of the items of a split."""
        for task in self.requests(split):
            numbers = {label: index for index, label in enumerate(self._labels[task.leaf])}
            yield from (describe(task, doc, numbers[doc.item], split) for doc in task.docs)

    def digest(self) -> str:
        """sha256 over the items, the side of each, and the task's prompts and options."""
        parts: list[Any] = [sorted(self.spec.options.items(), key=str)]
        if self.spec.samples > 1:
            parts.append(self.spec.samples)
        for leaf, task in self.tasks.leaves.items():
            parts.append([leaf, _prompt_config(task)])
        for side in SIDES:
            parts.append([side, sorted((item.task, item.key) for item in self.deal.items(side))])
        return hashlib.sha256(json.dumps(parts, default=_source, sort_keys=True).encode()).hexdigest()


def _documents(spec: SliceSpec, leaf: str, task: Any) -> list[Any]:
    try:
        return list(task.eval_docs)
    except Exception as error:
        problem = f"the items of task {leaf!r} cannot be read: {library.reason(error)}"
        raise InputError(problem, "mend the task or its data", spec.at("task")) from error


def _made_up(kind: str) -> Any:
    """A response to a request of this kind."""
    responses: dict[str, Any] = {"loglikelihood": (-1.0, False), "loglikelihood_rolling": -1.0}
    return responses.get(kind, "")


def _prompt_config(task: Any) -> dict[str, Any]:
    config = {name: task.get_config(name) for name in _PROMPT_FIELDS}
    # Runs from before images were scored have digests without their field
    images = task.get_config("doc_to_image")
    return config if images is None else {**config, "doc_to_image": images}


def _source(value: Any) -> str:
    """A function's source text, so that the digest is the same in the next process."""
    if callable(value):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(value)
        return str(getattr(value, "__qualname__", type(value).__name__))
    return type(value).__name__
