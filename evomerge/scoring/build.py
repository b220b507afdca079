"""Builds a fitness file's slices from lm-eval tasks, Python functions and measures. Imports lm-eval: import it where it
is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.files.objects import FitnessSpec, Measure, SliceSpec
from evomerge.scoring.commands.command import CommandPass
from evomerge.scoring.commands.folder import CandidateFolder
from evomerge.scoring.engine.images import ImageLM
from evomerge.scoring.engine.resident import ResidentLM
from evomerge.scoring.file_pass import FilePass
from evomerge.scoring.measures import MeasurePass, mixture
from evomerge.scoring.preflight import check_count, check_images, check_name, check_objective
from evomerge.scoring.python.callables import CallablePass
from evomerge.scoring.serving.engine import ServingEngine
from evomerge.scoring.serving.served_pass import ServedPass
from evomerge.scoring.serving.serving import Serving
from evomerge.scoring.slices import RESIDENT, ScoredSlice, SliceInfo
from evomerge.scoring.splits import SIDES, Deal
from evomerge.scoring.tasks.answers import with_answer
from evomerge.scoring.tasks.library import TaskLibrary, TaskSet
from evomerge.scoring.tasks.metrics import resolve
from evomerge.scoring.tasks.passes import Answers, TaskPass
from evomerge.scoring.tasks.proxy_loss import ProxyLoss, is_generated, no_proxy_loss
from evomerge.scoring.tasks.task_files import scan
from evomerge.types import SliceScore, SplitName


def build_slices(
    fitness: FitnessSpec, model: Any, tokenizer: Any, split: SplitName, serving: Serving
) -> dict[str, ScoredSlice]:
    """Builds every slice, with the requests of `split` prepared. Raises InputError; see `Suite.build`."""
    specs = fitness.slices.values()
    local = scan(fitness.include, fitness.at("include"))
    for spec in specs:
        if spec.task is not None:
            check_name(spec, spec.task, local)
    tasks = [spec.task for spec in specs if spec.task is not None]
    builder = _Builder(fitness, model, tokenizer, split, TaskLibrary(fitness, tasks), serving)
    slices = {spec.name: builder.build(spec) for spec in specs}
    check_objective(fitness, {name: slice_.info.sign for name, slice_ in slices.items()})
    return slices


class _Builder:
    """Builds slices. Holds what they share: the task library, lm-eval's model wrappers, and the passes."""

    def __init__(
        self,
        fitness: FitnessSpec,
        model: Any,
        tokenizer: Any,
        split: SplitName,
        library: TaskLibrary,
        serving: Serving,
    ) -> None:
        self.fitness, self.model, self.tokenizer, self.split = fitness, model, tokenizer, split
        self._library, self._serving = library, serving
        self._passes: dict[str, TaskPass] = {}
        self._folder = CandidateFolder()
        self._wrappers: dict[Any, ResidentLM | ImageLM] = {}

    def build(self, spec: SliceSpec) -> ScoredSlice:
        if spec.measure is not None:
            return self._measured(spec, spec.measure)
        slice_ = self._task(spec) if spec.task is not None else self._rows(spec)
        return slice_ if spec.range is None else _within(*spec.range, slice_)

    def _measured(self, spec: SliceSpec, measure: Measure) -> ScoredSlice:
        source, doubt = MeasurePass(measure), mixture(self.fitness, spec)
        info = SliceInfo(
            name=spec.name,
            sign=-1,
            metric=measure,
            weight=spec.weight,
            floor=spec.floor,
            items=source.names("search"),
            n_holdout=len(source.names("holdout")),
            aggregation=None,
            no_proxy_loss="a size has no slope",
            doubts=(f"{spec.at('measure')}: {doubt}",) if doubt else (),
            n_read=0,
            is_measure=True,
        )
        return ScoredSlice(info, source, _unchanged)

    def _rows(self, spec: SliceSpec) -> ScoredSlice:
        """A slice over the rows of a file, which code of the user scores."""
        source: FilePass
        served: ServingEngine | None = None
        if spec.command is not None:
            served = self._serving.endpoint(spec) if spec.command.uses("url") else None
            source, scorer = CommandPass(self.fitness, spec, self._folder, served), "a command"
        else:
            source, scorer = CallablePass(self.fitness, spec, self.model, self.tokenizer), "a Python function"
        self._check_counts(spec, source.deal)
        self._check_clusters(spec, source, source.clusters)
        info = SliceInfo(
            name=spec.name,
            sign=source.sign,
            metric=spec.metric or "score",
            weight=spec.weight,
            floor=spec.floor,
            items=source.names("search"),
            n_holdout=len(source.names("holdout")),
            aggregation=source.aggregation,
            no_proxy_loss=f"it is scored by {scorer}, which has no known gradient",
            engine=RESIDENT if served is None else self._serving.name,
        )
        return ScoredSlice(info, source, _unchanged)

    def _task(self, spec: SliceSpec) -> ScoredSlice:
        source = self._pass(spec)
        self._check_counts(spec, source.deal)
        for split in ("search", "holdout") if self.split == "search" else (self.split,):
            source.prepare(split)  # what cannot be asked at the end is said before the search
        leaves = source.tasks.leaves

        def reported(leaf: str, name: str) -> set[str] | None:
            return source.reported(leaf, name, self.split)

        metric = resolve(spec, leaves, source.tasks.by_size, reported)
        source.filters.add(metric.filter)
        if not metric.by_size:
            self._check_leaves(spec, source)
        if spec.cluster is not None:
            metric = replace(metric, clusters=source.clusters(spec.cluster, spec.at("cluster")))
            self._check_clusters(spec, source, metric.clusters)

        def read(answers: Answers) -> SliceScore:
            score, given = metric.read(answers.rows[metric.filter]), answers.given[metric.filter]
            items = (with_answer(i, metric.name, given) for i in score.items)
            return replace(score, items=tuple(items), loss=answers.loss)

        lacking = no_proxy_loss(source, metric, self.split)
        info = SliceInfo(
            name=spec.name,
            sign=metric.sign,
            metric=metric.label,
            weight=spec.weight,
            floor=spec.floor,
            items=source.names("search"),
            n_holdout=len(source.names("holdout")),
            aggregation=metric.aggregation,
            no_proxy_loss=lacking,
            learns=not lacking and is_generated(source),
            doubts=tuple(f"{spec.at('task')}: {line}" for line in source.doubts()),
            n_read=source.prepare(self.split).n_read,
            engine=self._serving.name if isinstance(source, ServedPass) else RESIDENT,
        )
        return ScoredSlice(info, source, read, None if lacking else ProxyLoss(source, metric))

    def _pass(self, spec: SliceSpec) -> TaskPass:
        """The pass of a slice's task. Slices that differ only in metric, filter, floor or weight share it."""
        options = {k: v for k, v in spec.options.items() if k != "filter"}
        asked = [spec.task, spec.items, spec.samples, options, self.fitness.engine_of(spec)]
        key = json.dumps(asked, sort_keys=True, default=str)
        if key not in self._passes:
            tasks = self._library.build(spec)
            lm = self._wrapper(spec, tasks)
            served = self._serving.lm(self.fitness, spec, tasks, lm)
            self._passes[key] = (
                TaskPass(self.fitness, spec, tasks, lm)
                if served is None
                else ServedPass(self.fitness, spec, tasks, lm, served)
            )
        return self._passes[key]

    def _wrapper(self, spec: SliceSpec, tasks: TaskSet) -> ResidentLM | ImageLM:
        bos = spec.options.get("add_bos_token")
        if spec.options.get("apply_chat_template") and not getattr(self.tokenizer, "chat_template", None):
            problem = "apply_chat_template is set, and the tokenizer has no chat template"
            raise InputError(problem, "set `chat_template` in the search space", spec.at("apply_chat_template"))
        images = {bool(getattr(task, "MULTIMODAL", False)) for task in tasks.leaves.values()}
        if images == {True}:
            return self._image_wrapper(spec, tasks)
        if images == {True, False}:
            problem = f"some tasks of {spec.task!r} show images, others do not"
            raise InputError(problem, "give each kind a slice of its own", spec.at("task"))
        if bos not in self._wrappers:
            self._wrappers[bos] = ResidentLM(self.model, self.tokenizer, self.fitness.batch_size, bos)
        return self._wrappers[bos]

    def _image_wrapper(self, spec: SliceSpec, tasks: TaskSet) -> ImageLM:
        for name, task in tasks.leaves.items():
            check_images(name, task.get_config("output_type"), task.get_config("num_fewshot"), spec)
        # lm-eval's class remembers that a chat template was applied, and then leaves the images' places alone
        key = "images", bool(spec.options.get("apply_chat_template"))
        if key not in self._wrappers:
            try:
                self._wrappers[key] = ImageLM(self.model, self.tokenizer, self.fitness.batch_size)
            except InputError as error:
                raise InputError(error.problem, error.mend, spec.at("task")) from error
        return self._wrappers[key]

    def _check_counts(self, spec: SliceSpec, deal: Deal) -> None:
        total = len(deal.items("all"))
        for split in self._splits:
            check_count(spec, split, len(deal.items(split)), total, self.fitness.confidence)

    def _check_clusters(self, spec: SliceSpec, source: TaskPass | FilePass, clusters: Mapping[str, str]) -> None:
        if self.fitness.confidence is None or spec.floor is None or spec.cluster is None:
            return
        for split in self._splits:
            if len({clusters[name] for name in source.names(split)}) < 2:
                problem = f"`confidence` needs a standard error: the {split} split's items are one cluster"
                raise InputError(problem, "name another field, or no floor", spec.at("cluster"))

    @property
    def _splits(self) -> tuple[SplitName, ...]:
        return ("all",) if self.split == "all" else SIDES

    def _check_leaves(self, spec: SliceSpec, source: TaskPass) -> None:
        """InputError where a split lacks a leaf of a group that weighs its leaves equally: it would be another mean."""
        for side in SIDES if self.split != "all" else ():
            for leaf in source.tasks.leaves:
                if not source.deal.indices(side, leaf):
                    problem = f"task {leaf!r} of group {spec.task!r} has no items in the {side} split"
                    raise InputError(problem, "raise `items` or change `split`", spec.at("items"))


def _within(low: float, high: float, slice_: ScoredSlice) -> ScoredSlice:
    """Holds a slice's items to the range that the fitness file gives, since exact early stops rest on it."""

    def read(results: Any) -> SliceScore:
        score = slice_.read(results)
        scored = [item for item in score.items if item.score is not None]
        outside = next((item for item in scored if not low <= (item.score or 0.0) <= high), None)
        if outside is not None:
            problem = f"item {outside.item} scored {outside.score}, outside of `range` [{low:g}, {high:g}]"
            raise TrialError(f"{problem}; mend the range or the metric")
        return score

    info = slice_.info
    worst, best = (low, high) if info.sign > 0 else (high, low)
    if info.aggregation is not None:
        kind = replace(info.aggregation.kind, best=best, worst=worst)
        info = replace(info, aggregation=replace(info.aggregation, kind=kind))
    return replace(slice_, info=info, read=read)


def _unchanged(score: SliceScore) -> SliceScore:
    return score
