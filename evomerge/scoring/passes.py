"""One pass of the model over one task's items: what all slices with the same task and options share."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring import tasks
from evomerge.scoring.metrics import Rows
from evomerge.scoring.splits import SIDES, Deal, deal_all, item_key, labels
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
class _Question:
    """One document of a prepared split, with the requests that it gave rise to, in lm-eval's order."""

    item: str
    document: Any
    instances: list[Any]


@dataclass(frozen=True)
class _Prepared:
    """A leaf task's requests for one split. The instances are lm-eval's; their answers are filled in and taken out
    again at every pass."""

    task: Any
    instances: list[Any]
    questions: list[_Question]


class TaskPass:
    """The items of a task (or of a group's or tag's leaf tasks), dealt and turned into requests once."""

    def __init__(self, fitness: FitnessSpec, piece: SliceSpec, found: tasks.TaskSet, lm: Any) -> None:
        self.piece, self.found, self._lm = piece, found, lm
        self.filters: set[str] = set()
        self._documents = {leaf: _documents(piece, leaf, task) for leaf, task in found.leaves.items()}
        self._keys = {leaf: [item_key(d) for d in docs] for leaf, docs in self._documents.items()}
        self._labels = {leaf: labels(keys) for leaf, keys in self._keys.items()}
        self.deal: Deal = deal_all(self._keys, fitness.split_seed, fitness.search, piece.items)
        self._prepared: dict[SplitName, dict[str, _Prepared]] = {}

    def prepare(self, split: SplitName) -> dict[str, _Prepared]:
        """Build the requests of a split, the first time it is asked for. InputError where they cannot be built."""
        if split not in self._prepared:
            chosen = {leaf: self.deal.indices(split, leaf) for leaf in self.found.leaves}
            self._prepared[split] = {leaf: self._prepare(leaf, split, at) for leaf, at in chosen.items() if at}
        return self._prepared[split]

    def _prepare(self, leaf: str, split: SplitName, chosen: list[int]) -> _Prepared:
        task, documents = self.found.leaves[leaf], self._documents[leaf]
        forbidden = set() if split == "all" else self.deal.keys("holdout", leaf)
        try:
            instances = tasks.prepare(task, documents, chosen, forbidden, self.piece, self._lm)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"the prompts of task {leaf!r} cannot be built: {reason[:400]}"
            raise InputError(problem, "mend the task, its data or its options", self.piece.at("task")) from error
        by_document: dict[int, list[Any]] = {}
        for instance in instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        questions = [
            _Question(self._labels[leaf][index], documents[index], sorted(by_document[k], key=lambda i: i.idx))
            for k, index in enumerate(chosen)
        ]
        return _Prepared(task, instances, questions)

    def reported(self, leaf: str, metric: str, split: SplitName) -> set[str] | None:
        """The metrics that the leaf's code returns, tried on made-up answers; None where that cannot be tried.
        Stops at the first document whose result holds `metric`."""
        prepared = self.prepare(split).get(leaf)
        if prepared is None:
            return None
        seen: set[str] = set()
        for question in prepared.questions[:50]:
            try:
                result = prepared.task.process_results(
                    copy.deepcopy(question.document), [_made_up(i.request_type) for i in question.instances]
                )
            except Exception:
                return None
            seen.update(result)
            if metric in seen:
                break
        return seen

    def run(self, split: SplitName) -> Mapping[str, Mapping[str, Rows]]:
        """Ask the model, with the weights it has now: filter -> leaf task -> rows."""
        prepared = self.prepare(split)
        everything = [instance for leaf in prepared.values() for instance in leaf.instances]
        try:
            for instance in everything:
                _forget(instance)
            _ask(self._lm, everything)
            for leaf in prepared.values():
                leaf.task._instances = leaf.instances
                leaf.task.apply_filters()
            return {f: {name: _rows(leaf, f) for name, leaf in prepared.items()} for f in sorted(self.filters)}
        finally:
            for instance in everything:
                _forget(instance)

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
        problem = f"the items of task {leaf!r} cannot be read: {' '.join(str(error).split())[:400]}"
        raise InputError(problem, "mend the task or its data", piece.at("task")) from error


def _forget(instance: Any) -> None:
    instance.resps = []
    instance.filtered_resps = {}


def _ask(lm: Any, instances: Iterable[Any]) -> None:
    """What `lm_eval.evaluate` does with requests: one call per kind, a request standing `repeats` times."""
    by_kind: dict[str, list[Any]] = {}
    for instance in instances:
        by_kind.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
    for kind, requests in by_kind.items():
        answers = getattr(lm, kind)(requests)
        broken = sum(map(_is_nan, answers))
        if broken:
            raise TrialError(f"the model answered {broken} of {len(requests)} requests with NaN")
        for instance, answer in zip(requests, answers, strict=True):
            instance.resps.append(answer)


def _is_nan(answer: Any) -> bool:
    """A candidate whose logits are NaN must not get the accuracy of always choosing the first answer."""
    value = answer[0] if isinstance(answer, tuple) else answer
    return isinstance(value, float) and math.isnan(value)


def _rows(prepared: _Prepared, name: str) -> Rows:
    # Task code may change the document it is given; the next candidate must get it whole.
    return [
        (
            question.item,
            prepared.task.process_results(
                copy.deepcopy(question.document), [i.filtered_resps[name] for i in question.instances]
            ),
        )
        for question in prepared.questions
    ]


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
