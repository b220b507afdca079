"""A fitness file's slices, out of lm-eval tasks and Python callables. Imports lm-eval: import it where it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.engine.resident import ResidentLM
from evomerge.scoring.preflight import check_count, check_name, check_objective
from evomerge.scoring.python.callables import CallablePass
from evomerge.scoring.slices import Slice
from evomerge.scoring.splits import SIDES, Deal
from evomerge.scoring.tasks.library import TaskLibrary
from evomerge.scoring.tasks.metrics import resolve
from evomerge.scoring.tasks.passes import Answers, TaskPass
from evomerge.scoring.tasks.proxy_loss import Surrogate, no_surrogate
from evomerge.scoring.tasks.task_files import scan
from evomerge.types import SliceScore, SplitName


def build_slices(fitness: FitnessSpec, model: Any, tokenizer: Any, split: SplitName) -> dict[str, Slice]:
    """Every slice, with the requests of `split` prepared. Raises InputError; see `Suite.build`."""
    pieces = fitness.slices.values()
    local = scan(fitness.include)
    for piece in pieces:
        if piece.task is not None:
            check_name(piece, piece.task, local)
    names = [piece.task for piece in pieces if piece.task is not None]
    builder = _Builder(fitness, model, tokenizer, split, TaskLibrary(fitness.include, names))
    slices = {piece.name: builder.build(piece) for piece in pieces}
    check_objective(fitness, {name: piece.sign for name, piece in slices.items()})
    return slices


class _Builder:
    """Holds what slices share: the task library, lm-eval's model wrapper, and the passes."""

    def __init__(
        self, fitness: FitnessSpec, model: Any, tokenizer: Any, split: SplitName, library: TaskLibrary
    ) -> None:
        self.fitness, self.model, self.tokenizer, self.split = fitness, model, tokenizer, split
        self._library = library
        self._passes: dict[str, TaskPass] = {}
        self._wrappers: dict[bool | None, ResidentLM] = {}

    def build(self, piece: SliceSpec) -> Slice:
        return self._callable(piece) if piece.python is not None else self._task(piece)

    def _callable(self, piece: SliceSpec) -> Slice:
        source = CallablePass(self.fitness, piece, self.model, self.tokenizer)
        self._check_counts(piece, source.deal)
        self._check_clusters(piece, source, source.clusters)
        about = (piece.name, source.sign, piece.metric or "score", piece.weight, piece.floor, source)
        reason = "it is scored by a Python function, of which only the score is known"
        made = Slice(*about, _unchanged, source.mixture, source.total, no_surrogate=reason)
        return _within(piece, made)

    def _task(self, piece: SliceSpec) -> Slice:
        source = self._pass(piece)
        self._check_counts(piece, source.deal)
        for split in ("search", "holdout") if self.split == "search" else (self.split,):
            source.prepare(split)  # what cannot be asked at the end is said before the search
        leaves = source.found.leaves

        def reported(leaf: str, name: str) -> set[str] | None:
            return source.reported(leaf, name, self.split)

        metric = resolve(piece, leaves, source.found.by_size, reported)
        source.filters.add(metric.filter)
        if not metric.by_size:
            self._check_leaves(piece, source)
        if piece.cluster is not None:
            metric = replace(metric, clusters=source.clusters(piece.cluster, piece.at("cluster")))
            self._check_clusters(piece, source, metric.clusters)

        def read(answers: Answers) -> SliceScore:
            return replace(metric.read(answers.rows[metric.filter]), loss=answers.loss)

        about = (piece.name, metric.sign, metric.label, piece.weight, piece.floor, source)
        reason = no_surrogate(source, metric, self.split)
        surrogate = None if reason else Surrogate(source, metric)
        return _within(piece, Slice(*about, read, metric.mixture, metric.total, surrogate, reason))

    def _pass(self, piece: SliceSpec) -> TaskPass:
        """The pass of this task, shared with the slices that differ in metric, filter, floor or weight only."""
        options = {k: v for k, v in piece.options.items() if k != "filter"}
        key = json.dumps([piece.task, piece.items, options], sort_keys=True, default=str)
        if key not in self._passes:
            lm = self._wrapper(piece)
            self._passes[key] = TaskPass(self.fitness, piece, self._library.build(piece), lm)
        return self._passes[key]

    def _wrapper(self, piece: SliceSpec) -> ResidentLM:
        bos = piece.options.get("add_bos_token")
        if piece.options.get("apply_chat_template") and not getattr(self.tokenizer, "chat_template", None):
            problem = "apply_chat_template is set, and the tokenizer has no chat template"
            raise InputError(problem, "set `chat_template` in the search space", piece.at("apply_chat_template"))
        if bos not in self._wrappers:
            self._wrappers[bos] = ResidentLM(self.model, self.tokenizer, self.fitness.batch_size, bos)
        return self._wrappers[bos]

    def _check_counts(self, piece: SliceSpec, deal: Deal) -> None:
        total = len(deal.items("all"))
        for split in self._splits:
            check_count(piece, split, len(deal.items(split)), total, self.fitness.confidence)

    def _check_clusters(self, piece: SliceSpec, source: TaskPass | CallablePass, clusters: Mapping[str, str]) -> None:
        if self.fitness.confidence is None or piece.floor is None or piece.cluster is None:
            return
        for split in self._splits:
            if len({clusters[name] for name in source.names(split)}) < 2:
                problem = f"`confidence` needs a standard error: the {split} split's items are one cluster"
                raise InputError(problem, "name another field, or no floor", piece.at("cluster"))

    @property
    def _splits(self) -> tuple[SplitName, ...]:
        return ("all",) if self.split == "all" else SIDES

    def _check_leaves(self, piece: SliceSpec, source: TaskPass) -> None:
        """A group that weighs its leaves equally means another thing when a leaf drops out."""
        for side in SIDES if self.split != "all" else ():
            for leaf in source.found.leaves:
                if not source.deal.indices(side, leaf):
                    problem = f"task {leaf!r} of group {piece.task!r} has no items in the {side} split"
                    raise InputError(problem, "raise `items` or change `split`", piece.at("items"))


def _within(piece: SliceSpec, made: Slice) -> Slice:
    """The slice, held to the range that its items are said to have: exact early stops rest on it."""
    if piece.range is None:
        return made
    low, high = piece.range

    def read(results: Any) -> SliceScore:
        score = made.read(results)
        scored = [item for item in score.items if item.score is not None]
        outside = next((item for item in scored if not low <= (item.score or 0.0) <= high), None)
        if outside is not None:
            problem = f"item {outside.item} scored {outside.score}, outside of `range` [{low:g}, {high:g}]"
            raise TrialError(f"{problem}; mend the range or the metric")
        return score

    worst, best = (low, high) if made.sign > 0 else (high, low)
    mixture = made.mixture and replace(made.mixture, best=best, worst=worst)
    return replace(made, read=read, mixture=mixture)


def _unchanged(score: Any) -> SliceScore:
    result: SliceScore = score
    return result
