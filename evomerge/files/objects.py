"""What the two input files say, validated: a search-space file and a fitness file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import Where
from evomerge.registry import OPTIMIZER_KEYS, PARETO

Axis = Literal["sources", "layers", "modules", "tensors", "bands"]
Cut = int | tuple[float, ...] | Literal["each"]
"""How directions of a matrix are cut into bands: into so many of equal size, by shares, or each one by itself."""


INCLUDE, WINDOW, EXPONENT = "include", "window", "exponent"
"""The genes that no method has: whether a source takes part, how many of a trajectory's last checkpoints do, and the
exponent of the curve that gives them their weights."""

DECAY = "decay"
CURVES = (DECAY,)
"""How a trajectory's checkpoints are weighted."""


@dataclass(frozen=True)
class Top:
    """The cut of a matrix's `count` largest directions; all others are one more band, the rest. A matrix that has no
    more directions is cut without a rest."""

    count: int
    cut: Cut = "each"


Measure = Literal["layers", "parameters"]
MEASURES: tuple[Measure, ...] = ("layers", "parameters")
"""What is known of a candidate's size without asking it: the layers of its language model, and the parameters of the
checkpoint that it is written as."""

LENGTHS = ("generated_tokens", "truncated")
"""What can be measured of answers that were written: how many tokens they have, and which of them were cut off."""

Engine = Literal["auto", "resident", "vllm"]
ENGINES: tuple[Engine, ...] = ("auto", "resident", "vllm")
"""What has the candidate answer: transformers in this process, vLLM, or whichever suits the slice."""

Pruner = Literal["early_stop", "racing", "representative"]
PRUNERS: tuple[Pruner, ...] = ("early_stop", "racing", "representative")
OLD_KEYS = {"economy": "pruning"}
"""Keys of a fitness file that had another name: old name -> name. Both are read, the new one is written."""
AXES: tuple[Axis, ...] = ("sources", "layers", "modules", "tensors", "bands")


@dataclass(frozen=True)
class ModelRef:
    """A checkpoint folder (absolute path) or a hub id with its revision; or two of these as ``model+adapter``.

    align: whether its hidden units are brought into the base's order first.
    specification: the file that says which units may move, in place of the built-in one.
    copy: the folder of the aligned copy, once it is written.
    """

    path: str
    revision: str | None = None
    where: Where = field(default=Where(), compare=False)
    align: bool = False
    specification: Path | None = None
    copy: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def local(self) -> bool:
        whole = Path(self.path)
        pair = "+" in self.path and not whole.is_dir()
        return all(Path(half).is_absolute() for half in self.path.split("+")) if pair else whole.is_absolute()


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints of one training run, oldest first, of which the last few are averaged along a curve."""

    checkpoints: tuple[ModelRef, ...]
    curve: str = DECAY


@dataclass(frozen=True)
class Matched:
    """What the patterns of a space's sources matched when the file was read.

    Attributes:
        models: the paths of all models among it.
        notes: a line for each pattern that did not make sources of all.
        pool: whether the sources are a pool, each of which a merge may leave out.
    """

    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pool: bool = False


@dataclass(frozen=True)
class GeneSpec:
    """One gene as written: a numeric range or choices, and the axes along which it takes separate values. `bands`: how
    the axis of that name cuts a matrix."""

    name: str
    per: tuple[Axis, ...] = ()
    low: float = 0.0
    high: float = 1.0
    init: float | str | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    where: Where = field(default=Where(), compare=False)
    bands: Cut | Top | None = None


@dataclass(frozen=True)
class Freeze:
    """What is not searched: `layers` [start, end) stay the base's; `sources` keep this weight, or (None) the gene's
    `init`; `modules` are this source's, or (None) the base's."""

    layers: tuple[tuple[int, int], ...] = ()
    sources: dict[str, float | None] = field(default_factory=dict)
    modules: dict[str, str | None] = field(default_factory=dict)


WINNER = "winner"
"""The model of a path that another run's winner is (`evomerge search SPACE.yaml --from RUN`)."""

SCALE_FORMS = ("auto", "none", "pairs", "shared")


@dataclass(frozen=True)
class Scales:
    """The input scales of a path's layers: a value for each pair of layers ("pairs"), one for all pairs of like kind
    ("shared"), "none", or what suits the space ("auto"); and their range."""

    form: str = "auto"
    low: float = 0.5
    high: float = 2.0


@dataclass(frozen=True)
class Dataflow:
    """What a space of paths says besides genes.

    Attributes:
        both: whether blocks of layers are merged, too; else each is one model's as it is.
        path: the models whose layers a path uses, in order.
        repeats: how often these layers stand in a row.
        max_layers, max_parameters: limits of a candidate. Parameters are a multiple of the first model's up to 1000,
            and a number above.
        scales: of the hops between layers.
        blocks: the number of contiguous blocks; None: each layer has a slot.
    """

    both: bool
    path: tuple[str, ...]
    repeats: int = 1
    max_layers: int | None = None
    max_parameters: float | None = None
    scales: Scales = Scales()
    blocks: int | None = None


@dataclass(frozen=True)
class RaySpec:
    """What a worker takes of a node of a Ray cluster, and which nodes are used.

    Attributes:
        num_cpus, num_gpus: of a worker; parts of one are shared. None: what suits the cluster.
        resources: further ones, by name.
        labels: that a node has.
        runtime_env: Ray's runtime environment, as its documentation says.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpaceSpec:
    """A search-space file. `layers` is a number of equal groups, "each", or explicit [start, end) ranges. `dataflow`:
    how layers are stacked, where paths are searched. `core`: whether the changes of LoRA sources are merged in Core
    Space, with `core_rank` of its directions (None: all). `polish`: None is auto. `trajectories`: the sources that are
    averages of checkpoints; in `sources` each is its newest one. `winner`: the recipe of the model of that name, which
    is no part of the file, as is what patterns `matched`."""

    file: Path
    base: ModelRef
    sources: dict[str, ModelRef]
    genes: tuple[GeneSpec, ...]
    methods: tuple[str, ...]
    fitness: Path
    tokenizer: str = "base"
    chat_template: str = "auto"
    dtype: str | None = None
    layers: int | str | tuple[tuple[int, int], ...] = 1
    modules: dict[str, str] = field(default_factory=dict)
    interpolate: bool = False
    fixed: dict[str, float | bool] = field(default_factory=dict)
    freeze: Freeze = Freeze()
    optimizer: dict[str, Any] = field(default_factory=dict)
    trials: int | None = 100
    most_items: int | None = None
    seconds: float | None = None
    core: bool = False
    core_rank: int | None = None
    dataflow: Dataflow | None = None
    polish: bool | None = None
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    winner: str | None = field(default=None, compare=False)
    matched: Matched | None = field(default=None, compare=False)
    ray: RaySpec = field(default=RaySpec(), compare=False)
    where: dict[str, Where] = field(default_factory=dict, compare=False)

    def at(self, key: str) -> Where:
        """Where `key` stands in the file."""
        return self.where.get(key, Where(self.file, None, key))

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """All checkpoints: the base, the sources, and the earlier ones of trajectories."""
        earlier = (ref for trajectory in self.trajectories.values() for ref in trajectory.checkpoints[:-1])
        return (self.base, *self.sources.values(), *earlier)

    @property
    def source_names(self) -> dict[str, str]:
        """The sources in words, by name."""
        shown = {name: str(ref) for name, ref in self.sources.items()}
        for name, trajectory in self.trajectories.items():
            first, last = trajectory.checkpoints[0], trajectory.checkpoints[-1]
            if first != last:
                shown[name] = f"{len(trajectory.checkpoints)} checkpoints, {first} to {last}"
        return shown

    @property
    def stacks(self) -> bool:
        """Whether candidates are stacks of the models' own layers, and no weights are merged."""
        return self.dataflow is not None and not self.dataflow.both

    @property
    def to_align(self) -> dict[str, ModelRef]:
        """The sources whose hidden units are brought into the base's order."""
        return {name: ref for name, ref in self.sources.items() if ref.align}

    @property
    def asynchronous(self) -> bool:
        """Whether the optimizer is asked as soon as a worker is free, not a generation at a time."""
        return bool(self.optimizer.get("asynchronous", False))

    @property
    def options(self) -> dict[str, Any]:
        """The options of this optimizer alone."""
        return {k: v for k, v in self.optimizer.items() if k not in OPTIMIZER_KEYS}


@dataclass(frozen=True)
class FloorSpec:
    """The worst acceptable score: `value` in the metric's natural direction, or relative to the score of
    `of` ("base", "best_source" or a source's name) by ratio (`keep`) or by distance (`margin`)."""

    value: float | None = None
    of: str | None = None
    keep: float | None = None
    margin: float | None = None
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class FunctionRef:
    """A user's function and the file that defines it. `module`: of an installed package, by which it is imported."""

    script: Path
    function: str
    where: Where = field(default=Where(), compare=False)
    module: str | None = None

    @property
    def name(self) -> str:
        """The name in messages, the same in a run's copy of the fitness file."""
        return f"{self.script.stem}:{self.function}"

    @property
    def anywhere(self) -> str:
        """A reference that means the same from any folder."""
        return f"{self.script}:{self.function}"


@dataclass(frozen=True)
class Command:
    """A program that scores a candidate: its arguments as they are written, with the placeholders of
    `PLACEHOLDERS`, and the folder that it is run in."""

    text: str
    arguments: tuple[str, ...]
    folder: Path

    def uses(self, name: str) -> bool:
        """Whether the placeholder `{name}` stands in it."""
        return any(found[1] == name for part in self.arguments for found in PLACEHOLDER.finditer(part))


PLACEHOLDERS = {
    "model": "the folder of the candidate's checkpoint",
    "url": "the address of an OpenAI-compatible endpoint that serves the candidate by vLLM",
    "scores": "the JSON file that the program writes: a number for each item, by the item's id",
    "items": "a JSONL file of the items that are asked for",
}
"""What stands in a command in braces, and what is put in its place."""
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")
"""A placeholder, or a brace that is written twice and means itself."""


@dataclass(frozen=True)
class SliceSpec:
    """One slice: an lm-eval `task`, a `python` callable with `data` (a JSONL file), which may be that of a `scorer` of
    another package, a `command` that scores such items, or a `measure` of the candidate's size, where less is better.

    `items` caps the number of items of each split. `options` is handed to lm-eval as it is: num_fewshot, filter,
    apply_chat_template, fewshot_as_multiturn, system_instruction, gen_kwargs, add_bos_token. `cluster` names the
    document's field that items with a common origin share; `range` holds the worst and the best that an item can score.
    `of` names the slice whose answers are measured in place of asking for others: its task and options are this one's.
    `samples` answers are written to each item, of which `pass_at` are looked at: does one of them pass?
    `timeout` is the most seconds that it may take for a candidate. `engine` answers, if not the fitness file's.
    """

    name: str
    task: str | None = None
    python: FunctionRef | None = None
    scorer: str | None = None
    command: Command | None = None
    data: Path | None = None
    measure: Measure | None = None
    metric: str | None = None
    direction: Literal["higher", "lower"] | None = None
    floor: FloorSpec | None = None
    weight: float = 1.0
    items: int | None = None
    of: str | None = None
    samples: int = 1
    pass_at: int | None = None
    cluster: str | None = None
    range: tuple[float, float] | None = None
    timeout: float | None = None
    engine: Engine | None = None
    options: dict[str, Any] = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)
    lines: dict[str, Where] = field(default_factory=dict, compare=False)

    def at(self, key: str) -> Where:
        return self.lines.get(key, self.where)


@dataclass(frozen=True)
class FitnessSpec:
    """A fitness file.

    search: the share of items dealt to the search split.
    pruning: the pruners by which a candidate is scored on fewer than all items.
    auto_pruning: whether everything is scored all the same where that costs less than to prune.
    model: builds what is scored where that is no language model.
    engine: has the slices' language model answer, where they do not say it themselves.
    trust_tasks: whether tasks may run code that stands outside of the folders under `include`; no key of the file.
    """

    file: Path
    slices: dict[str, SliceSpec]
    include: tuple[Path, ...] = ()
    model: FunctionRef | None = None
    objective: str = "mean"
    search: float = 0.5
    split_seed: int = 0
    confidence: float | None = None
    batch_size: int = 16
    pruning: tuple[Pruner, ...] = PRUNERS
    auto_pruning: bool = True
    engine: Engine = "auto"
    trust_tasks: bool = field(default=False, compare=False)
    where: dict[str, Where] = field(default_factory=dict, compare=False)

    @property
    def traded(self) -> tuple[str, ...]:
        """The slices that are traded off against each other; none where the objective is one number."""
        return tuple(n for n, spec in self.slices.items() if spec.weight > 0) if self.objective == PARETO else ()

    def engine_of(self, spec: SliceSpec) -> Engine:
        """The engine that a slice asks for."""
        return spec.engine or self.engine

    def at(self, key: str) -> Where:
        return self.where.get(key, Where(self.file, None, key))
