"""A fitness file's slices, out of lm-eval tasks and Python callables. Imports lm-eval: import it where it is used."""

from __future__ import annotations

import json
from typing import Any

from evomerge.errors import InputError
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.callables import CallablePass
from evomerge.scoring.metrics import resolve
from evomerge.scoring.passes import TaskPass
from evomerge.scoring.preflight import check_name
from evomerge.scoring.resident import ResidentLM
from evomerge.scoring.splits import SIDES, Deal
from evomerge.scoring.suite import Slice
from evomerge.scoring.task_files import scan
from evomerge.scoring.tasks import TaskLibrary
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
    _check_objective(fitness, slices)
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
        read = _unchanged
        return Slice(piece.name, source.sign, piece.metric or "score", piece.weight, piece.floor, source, read)

    def _task(self, piece: SliceSpec) -> Slice:
        source = self._pass(piece)
        self._check_counts(piece, source.deal)
        source.prepare(self.split)
        leaves = source.found.leaves

        def reported(leaf: str, name: str) -> set[str] | None:
            return source.reported(leaf, name, self.split)

        metric = resolve(piece, leaves, source.found.by_size, reported)
        source.filters.add(metric.filter)
        if not metric.by_size:
            self._check_leaves(piece, source)
        if self.fitness.confidence is not None and piece.floor is not None and not metric.has_stderr:
            problem = f"`confidence` needs a standard error, and {metric.label!r} has none"
            raise InputError(problem, "remove `confidence` or this slice's floor", piece.at("metric"))

        def read(results: Any) -> SliceScore:
            return metric.read(results[metric.filter])

        return Slice(piece.name, metric.sign, metric.label, piece.weight, piece.floor, source, read)

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
        splits: tuple[SplitName, ...] = ("all",) if self.split == "all" else SIDES
        for split in splits:
            if not deal.items(split):
                problem = f"slice {piece.name!r} has no items in the {split} split (of {total} in all)"
                raise InputError(problem, "give it more items or change `split`", piece.where)

    def _check_leaves(self, piece: SliceSpec, source: TaskPass) -> None:
        """A group that weighs its leaves equally means another thing when a leaf drops out."""
        for side in SIDES if self.split != "all" else ():
            for leaf in source.found.leaves:
                if not source.deal.indices(side, leaf):
                    problem = f"task {leaf!r} of group {piece.task!r} has no items in the {side} split"
                    raise InputError(problem, "raise `items` or change `split`", piece.at("items"))


def _unchanged(score: Any) -> SliceScore:
    result: SliceScore = score
    return result


def _check_objective(fitness: FitnessSpec, slices: dict[str, Slice]) -> None:
    if all(piece.weight <= 0 for piece in slices.values()):
        raise InputError("no slice has a weight above 0", "give at least one a weight", fitness.at("slices"))
    if fitness.objective != "geometric_mean":
        return
    for name, piece in slices.items():
        if piece.sign < 0 and piece.weight > 0:
            problem = f"geometric_mean cannot hold slice {name!r}: a lower {piece.metric} is better"
            raise InputError(problem, "use mean, weighted_mean or min, or give it weight 0", fitness.at("objective"))
