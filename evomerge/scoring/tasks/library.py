"""Builds lm-eval's task objects, from local YAML or lm-eval's own, and prepares them as `simple_evaluate` would.

Imports lm-eval: import it where it is used.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
from lm_eval.tasks import TaskManager, _yaml_loader
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import TaskIndex
from lm_eval.utils import simple_parse_args_string

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import shortened
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.item_files import read_items
from evomerge.scoring.replies import check_sampled
from evomerge.scoring.splits import item_key
from evomerge.scoring.tasks.task_files import SPLITS, LocalTasks, anchor, json_lines, scan
from evomerge.scoring.tasks.trust import TrustedFolders, check_trust, functions
from evomerge.scoring.templates import TemplateLimit

log = logging.getLogger(__name__)

FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")
"""The fields of a task's YAML that make a prompt of a document."""

FEWSHOT_SEED = 1234
"""`simple_evaluate`'s default, so that prompts are equal to its prompts."""


class _AnchoredFactory(TaskFactory):  # type: ignore[misc]  # lm-eval is untyped
    """Builds tasks as lm-eval does, but finds a local task's data beside its YAML."""

    def __init__(self, local: LocalTasks) -> None:
        super().__init__(meta=None)
        self._local = {file.path.resolve(): file for file in local.files.values()}

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        file = self._local.get(Path(entry.yaml_path).resolve()) if entry.yaml_path else None
        if file is not None:
            anchor(config, file.folders)
        return config


@dataclass(frozen=True)
class TaskSet:
    """The leaf tasks that one name stands for.

    Attributes:
        leaves: name -> lm-eval's task.
        unweighted: the metrics for which a group counts its leaf tasks equally.
    """

    leaves: Mapping[str, Any]
    unweighted: frozenset[str] = frozenset()

    def by_size(self, metric: str) -> bool:
        """Whether leaf tasks count by their numbers of items: lm-eval's rule for groups; tags always do."""
        return metric not in self.unweighted


def _index(local: LocalTasks) -> dict[str, Any]:
    """lm-eval's index of the local tasks, groups and tags, which override its own."""
    index: dict[str, Any] = {}
    for file in local.files.values():
        with suppress(KeyError):  # a class without the name of its task
            TaskIndex.process_cfg(dict(file.config), file.path, index)
    return index


class TaskLibrary:
    """Finds and builds tasks. lm-eval's own index is read only if a task is not local (it takes some 10 s)."""

    def __init__(self, fitness: FitnessSpec, names: Iterable[str]) -> None:
        folders = list(fitness.include)
        self._fitness, self._trusted = fitness, TrustedFolders(fitness)
        self.local = scan(folders)
        foreign: set[str] = set()
        for name in names:
            foreign |= self.local.closure(name)[1]
        # lm-eval would walk the folders and read what is in them without any bound. It gets what `scan` has read.
        self._manager = TaskManager(include_defaults=bool(foreign))
        self._manager._index.update(_index(self.local))
        self._manager._factory = _AnchoredFactory(self.local)

    def build(self, spec: SliceSpec) -> TaskSet:
        """Builds task objects for a slice and applies its options. InputError where they cannot be built."""
        where = spec.at("task")
        check_trust(self._fitness, spec.task or "", self.local, where)
        for leaf in self.local.closure(spec.task or "")[0] if not self._fitness.trust_tasks else ():
            # lm-eval would look for a script of that name on the hub, and run it.
            unknown = _unknown_metric(leaf.config)
            if unknown is not None:
                problem = f"task {spec.task!r} cannot be built: lm-eval knows no metric {unknown!r}"
                raise InputError(problem, suggestion(unknown, METRIC_REGISTRY), where)
        try:
            with self._functions_checked(spec.task or "", where):
                loaded = self._manager.load([spec.task])
        except InputError:
            raise
        except Exception as error:  # from a task's code, its YAML or its data
            problem = f"task {spec.task!r} cannot be built: {self._why(spec, error)}"
            raise InputError(problem, "mend the task or its data", where) from error
        for name, task in loaded["tasks"].items():
            _refuse(name, task, spec)
            _check_parts(name, task, spec)
            _configure(name, task, spec)
        group = loaded.get("groups", {}).get(spec.task)
        rules = (group.aggregate_metric_list or []) if group is not None else []
        unweighted = frozenset(rule.metric for rule in rules if not rule.weight_by_size)
        return TaskSet(loaded["tasks"], unweighted)

    @contextmanager
    def _functions_checked(self, task: str, where: Where) -> Iterator[None]:
        """Until the end, a `!function` of a task is imported only if it stands where its code is trusted. This holds
        also for those of an included YAML that the including one overrides: lm-eval imports these, too."""
        load = _yaml_loader._import_func_in_yml

        def load_checked(name: str, folder: Path) -> Any:
            for code in functions(name, [folder]):
                self._trusted.check(code, task, where)
            return load(name, folder)

        _yaml_loader._import_func_in_yml = load_checked
        try:
            yield
        finally:
            _yaml_loader._import_func_in_yml = load

    def _why(self, spec: SliceSpec, error: Exception) -> str:
        """Says what is wrong, also where lm-eval's error is only a name."""
        for leaf in self.local.closure(spec.task or "")[0]:
            split = next((leaf.config[k] for k in SPLITS if k in leaf.config and error.args == (leaf.config[k],)), None)
            if isinstance(error, KeyError) and split is not None:
                return f"its data has no split {split!r}"
            for path in json_lines(leaf):
                try:
                    read_items(path)
                except InputError as fault:
                    return str(fault)
            field = next((f for f in FIELDS if _comes_from(leaf.config.get(f), error)), None)
            if field is not None:
                return f"{field}: {reason(error)}"
        return reason(error)


def _unknown_metric(config: Mapping[str, Any]) -> str | None:
    """A metric that lm-eval does not have, where the task names one."""
    entries = config.get("metric_list")
    if config.get("process_results") or not isinstance(entries, list):
        return None
    named = [str(e.get("metric")) for e in entries if isinstance(e, dict) and not e.get("hf_evaluate")]
    return next((n for n in named if n not in METRIC_REGISTRY and not n.startswith("!function")), None)


def _comes_from(template: Any, error: Exception) -> bool:
    """Whether rendering a template may have raised the error."""
    if isinstance(error, TemplateLimit):
        return bool(template == error.source)
    name = re.match(r"'(\w+)' is undefined", str(error))
    return name is not None and isinstance(template, str) and re.search(rf"\b{name[1]}\b", template) is not None


def reason(error: Exception) -> str:
    """A task's error in one line. The text of a LookupError is only a key, so its type is added."""
    text, kind = shortened(" ".join(str(error).split()), 400), type(error).__name__
    return f"{kind}: {text}" if text and isinstance(error, LookupError) else text or kind


def failing_field(task: Any, documents: Iterable[Any], kind: type[Exception]) -> tuple[str, int] | None:
    """The field of a task's YAML that raises an error of this kind for one of the documents, and that one's place."""
    for place, document in enumerate(documents):
        for field in FIELDS:
            try:
                if task.get_config(field) is not None:
                    getattr(task, field)(copy.deepcopy(document))
            except kind:
                return field, place
            except Exception:
                continue
    return None


def _check_parts(name: str, task: Any, spec: SliceSpec) -> None:
    """InputError for faults that lm-eval would notice only when it marks the first answer."""
    where = spec.at("task")
    for metric, function in getattr(task, "_metric_fn_list", {}).items():
        if function is None and task.get_config("process_results") is None:
            problem = f"task {name!r}: lm-eval knows no metric {metric!r}"
            raise InputError(problem, suggestion(metric, METRIC_REGISTRY), where)
    for metric, function in task.aggregation().items():
        if not callable(function):
            problem = f"task {name!r}: lm-eval does not know the aggregation of {metric!r}"
            raise InputError(problem, suggestion("", AGGREGATION_REGISTRY), where)
    for pipeline in getattr(task, "_filters", ()):
        for make in pipeline.filters:
            try:
                make()
            except Exception as error:
                problem = f"task {name!r}: its filter {pipeline.name!r} cannot be made ({reason(error)})"
                raise InputError(problem, "mend the task", where) from error


def _refuse(name: str, task: Any, spec: SliceSpec) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        problem = f"task {name!r} runs code that the model writes"
        raise InputError(problem, "choose another task", spec.at("task"))
    if getattr(task, "MULTIMODAL", False) and task.get_config("doc_to_audio") is not None:
        raise InputError(f"task {name!r} needs sound", "choose a task of texts or images", spec.at("task"))


def _configure(name: str, task: Any, spec: SliceSpec) -> None:
    """Applies a slice's options to a task as `lm_eval.simple_evaluate` does."""
    options = spec.options
    extra = options.get("gen_kwargs")
    if extra and task.get_config("output_type") == "generate_until":
        parsed = simple_parse_args_string(extra) if isinstance(extra, str) else dict(extra)
        task.set_config(key="generation_kwargs", value=parsed, update=True)
    if spec.samples > 1:
        check_sampled(name, task, spec)
        task.set_config(key="repeats", value=spec.samples)
    stated, wanted = task.get_config("num_fewshot"), options.get("num_fewshot")
    if wanted is not None and stated == 0 and wanted != 0:
        log.warning("%s: task %s fixes num_fewshot at 0; lm-eval keeps that", spec.where, name)
    elif wanted is not None:
        task.set_config(key="num_fewshot", value=wanted)
    elif stated is None:
        task.set_config(key="num_fewshot", value=0)


def prepare(
    task: Any, documents: list[Any], indices: list[int], forbidden: set[str], spec: SliceSpec, lm: Any
) -> list[Any]:
    """Builds the requests of documents, as lm-eval instances in document order.

    lm-eval would read the documents again here and run the task's code again. If that code draws random numbers, it
    would ask other documents than the dealt ones. So the task gets the dealt documents.

    Args:
        task: lm-eval's task.
        documents: all of the task's documents.
        indices: the documents that are asked.
        forbidden: the keys of items that few-shot examples must not come from (the holdout's).
        spec: the slice.
        lm: the model.
    """
    options = spec.options
    chat = bool(options.get("apply_chat_template", False))
    task.doc_iterator = lambda **_: enumerate(documents[i] for i in indices)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    try:
        with _fewshot_pool_without(forbidden, task):
            task.build_all_requests(
                limit=None,
                samples=None,
                rank=0,
                world_size=1,
                cache_requests=False,
                rewrite_requests_cache=False,
                system_instruction=options.get("system_instruction"),
                apply_chat_template=chat,
                fewshot_as_multiturn=bool(options.get("fewshot_as_multiturn", True)),
                chat_template=lm.apply_chat_template if chat else None,
                tokenizer_name=lm.tokenizer_name if chat else "",
            )
    finally:
        del task.doc_iterator
    instances: list[Any] = task.instances
    return instances


@contextmanager
def _fewshot_pool_without(forbidden: set[str], task: Any) -> Iterator[None]:
    """Keeps some items out of the few-shot examples. For some tasks the pool of these is the test set itself."""
    sampler = getattr(task, "sampler", None)
    if not forbidden or sampler is None or not task.get_config("num_fewshot"):
        yield
        return
    pool = sampler.df
    allowed = [example for example in pool if item_key(example) not in forbidden]
    if len(allowed) < len(pool):
        sampler.replace_df(allowed)
    try:
        yield
    finally:
        sampler.replace_df(pool)
