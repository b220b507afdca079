"""One pass of the model over one task's items: what all slices with the same task and options share."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.splits import SIDES, Deal, deal_all, item_key, labels
from evomerge.scoring.tasks import library as tasks
from evomerge.scoring.tasks.instances import Doc, PreparedRequests, TaskRequests
from evomerge.scoring.tasks.metrics import Rows
from evomerge.types import SplitName

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
    """What one pass over a task found: filter -> leaf task -> rows, and the mean negative log-likelihood of the right
    answers (nats per token), where the requests tell it."""

    rows: Mapping[str, Mapping[str, Rows]]
    loss: float | None


class TaskPass:
    """The items of a task (or of a group's or tag's leaf tasks), dealt and turned into requests once."""

    def __init__(self, fitness: FitnessSpec, piece: SliceSpec, found: tasks.TaskSet, lm: Any) -> None:
        self.piece, self.found, self.lm = piece, found, lm
        self.filters: set[str] = set()
        self._documents = {leaf: _documents(piece, leaf, task) for leaf, task in found.leaves.items()}
        self._keys = {leaf: [item_key(d) for d in docs] for leaf, docs in self._documents.items()}
        self._labels = {leaf: labels(keys) for leaf, keys in self._keys.items()}
        self.deal: Deal = deal_all(self._keys, fitness.split_seed, fitness.search, piece.items)
        self._prepared: dict[SplitName, dict[str, TaskRequests]] = {}
        self._chosen: dict[tuple[SplitName, frozenset[str] | None], PreparedRequests] = {}

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> PreparedRequests:
        """Build the requests of a split's items (of those in `names`), the first time they are asked for. InputError
        where they cannot be built."""
        if (split, names) not in self._chosen:
            try:
                self._chosen[split, names] = PreparedRequests(self.papers(split, names), self.lm)
            except InputError as error:
                raise InputError(error.problem, error.mend, error.where or self.piece.at("task")) from error
            except (TypeError, ValueError, LookupError) as error:
                problem = f"the requests of task {self.piece.task!r} cannot be prepared: {tasks.reason(error)}"
                raise InputError(problem, "mend the task or its options", self.piece.at("task")) from error
        return self._chosen[split, names]

    def papers(self, split: SplitName, names: frozenset[str] | None = None) -> list[TaskRequests]:
        """The questions of a split's items (of those in `names`), of the leaf tasks that have any."""
        papers = self._papers(split)
        return papers if names is None else [part for p in papers if (part := p.part(names)).questions]

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, as `ItemScore.item` calls them, in the order in which they are reported."""
        return tuple(name for paper in self._papers(split) for name in paper.names)

    def clusters(self, field: str, where: Where) -> dict[str, str]:
        """Item -> the content of its document's `field`. InputError where a document has no such field."""
        found = {}
        for leaf, documents in self._documents.items():
            for label, document in zip(self._labels[leaf], documents, strict=True):
                if field not in document:
                    problem = f"the items of task {leaf!r} have no field {field!r}"
                    raise InputError(problem, suggestion(field, map(str, document)), where)
                found[f"{leaf}/{label}"] = str(document[field])
        return found

    def _papers(self, split: SplitName) -> list[TaskRequests]:
        if split not in self._prepared:
            chosen = {leaf: self.deal.indices(split, leaf) for leaf in self.found.leaves}
            self._prepared[split] = {leaf: self._prepare(leaf, split, at) for leaf, at in chosen.items() if at}
        return list(self._prepared[split].values())

    def _prepare(self, leaf: str, split: SplitName, chosen: list[int]) -> TaskRequests:
        task, documents = self.found.leaves[leaf], self._documents[leaf]
        forbidden = set() if split == "all" else self.deal.keys("holdout", leaf)
        try:
            instances = tasks.prepare(task, documents, chosen, forbidden, self.piece, self.lm)
        except Exception as error:
            if "larger than population" in str(error):
                problem = f"task {leaf!r} has not as many few-shot examples as it is to show"
                raise InputError(problem, "lower `num_fewshot`", self.piece.at("num_fewshot")) from error
            problem = f"the prompts of task {leaf!r} cannot be built: {tasks.reason(error)}"
            raise InputError(problem, "mend the task, its data or its options", self.piece.at("task")) from error
        by_document: dict[int, list[Any]] = {}
        for instance in instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        questions = [
            Doc(self._labels[leaf][index], documents[index], sorted(by_document[k], key=lambda i: i.idx))
            for k, index in enumerate(chosen)
        ]
        return TaskRequests(leaf, task, questions)

    def reported(self, leaf: str, metric: str, split: SplitName) -> set[str] | None:
        """The metrics that the leaf's code returns, tried on made-up answers; None where that cannot be tried.
        Stops at the first document whose result holds `metric`."""
        paper = next((p for p in self._papers(split) if p.leaf == leaf), None)
        if paper is None:
            return None
        seen: set[str] = set()
        for question in paper.questions[:50]:
            try:
                result = paper.task.process_results(
                    copy.deepcopy(question.document), [_made_up(i.request_type) for i in question.instances]
                )
            except Exception:
                return None
            seen.update(result)
            if metric in seen:
                break
        return seen

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> Answers:
        """Ask the model, with the weights it has now, the items of a split (of them, those in `names`)."""
        exam = self.prepare(split, names)
        with exam.asked():
            rows = {f: {paper.leaf: paper.rows(f) for paper in exam.papers} for f in sorted(self.filters)}
            return Answers(rows, exam.loss())

    def digest(self) -> str:
        """sha256 over the items, the side each was dealt to, and the task's prompts and options."""
        parts: list[Any] = [sorted(self.piece.options.items(), key=str)]
        for leaf, task in self.found.leaves.items():
            parts.append([leaf, _prompt_config(task)])
        for side in SIDES:
            parts.append([side, sorted((item.task, item.key) for item in self.deal.items(side))])
        return hashlib.sha256(json.dumps(parts, default=_source, sort_keys=True).encode()).hexdigest()


def _documents(piece: SliceSpec, leaf: str, task: Any) -> list[Any]:
    try:
        return list(task.eval_docs)
    except Exception as error:
        problem = f"the items of task {leaf!r} cannot be read: {tasks.reason(error)}"
        raise InputError(problem, "mend the task or its data", piece.at("task")) from error


def _made_up(kind: str) -> Any:
    answers: dict[str, Any] = {"loglikelihood": (-1.0, False), "loglikelihood_rolling": -1.0}
    return answers.get(kind, "")


def _prompt_config(task: Any) -> dict[str, Any]:
    return {name: task.get_config(name) for name in _PROMPT_FIELDS}


def _source(value: Any) -> str:
    """A function by its source text, so that the digest is the same in the next process."""
    if callable(value):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(value)
        return str(getattr(value, "__qualname__", type(value).__name__))
    return type(value).__name__
