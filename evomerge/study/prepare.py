"""From files to a checked study, reading only headers: what can be wrong is found before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.preflight import TokenChanges, check_configured, check_family, token_changes
from evomerge.checkpoints.structure import Place
from evomerge.checkpoints.tokenizer import chat_template
from evomerge.errors import InputError, Where, suggestion
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import SAVINGS, FitnessSpec, ModelRef, SpaceSpec
from evomerge.files.space_file import read_space
from evomerge.optimize.declarations import OptionError, check_options, check_reference_genomes, declaration, trading
from evomerge.recipe.recipe import TokenizerPolicy
from evomerge.registry import OPTIMIZERS, PARETO
from evomerge.scoring.preflight import check_fitness
from evomerge.space.space import Models, Space
from evomerge.study.smooth import check_slopes

_FITNESS = "fitness."


@dataclass(frozen=True)
class Plan:
    """A study that passed its checks: both files, the opened checkpoints (headers only), the space over them, and what
    becomes of their tokens."""

    spec: SpaceSpec
    fitness: FitnessSpec
    base: Checkpoint
    sources: dict[str, Checkpoint]
    space: Space
    tokens: TokenChanges

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        return {"base": self.base, **self.sources}


def read_files(
    file: Path,
    settings: Sequence[str] = (),
    optimizer: str | None = None,
    fitness: Path | None = None,
    folder: Path | None = None,
) -> tuple[SpaceSpec, FitnessSpec]:
    """Read and validate both files. Raises InputError.

    A setting whose key starts with ``fitness.`` is one of the fitness file; paths in settings start at `folder`.
    """
    inner = [s.strip().removeprefix(_FITNESS) for s in settings if s.strip().startswith(_FITNESS)]
    outer = [s for s in settings if not s.strip().startswith(_FITNESS)]
    spec = read_space(file, outer, optimizer, fitness, folder)
    return spec, read_fitness(spec.fitness, inner, folder)


def check_files(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """All that both files can be checked for without a checkpoint: options, tasks, metrics, data. Raises InputError."""
    _check_options(spec)
    _check_choices(spec)
    _check_front(spec, fitness)
    check_slopes(spec, fitness)
    _check_budget(spec)
    _check_economy(spec, fitness)
    check_fitness(fitness, list(spec.sources))


def _check_options(spec: SpaceSpec) -> None:
    if not spec.genes:
        problem = "holds no gene: there is nothing to search"
        raise InputError(problem, "give at least one gene a range", spec.at("genes"))
    with _options_placed(spec):
        check_options(spec.optimizer["name"], spec.options)


def check_start(spec: SpaceSpec, space: Space) -> None:
    """InputError where the optimizer goes by models that the space does not hold."""
    with _options_placed(spec):
        check_reference_genomes(spec.optimizer["name"], spec.options, list(spec.sources), space.reference_genomes)


@contextmanager
def _options_placed(spec: SpaceSpec) -> Iterator[None]:
    """Says where in the file a wrong option of the optimizer stands."""
    try:
        yield
    except OptionError as error:
        key = f"optimizer.{error.key}"
        raise InputError(error.problem, error.mend, spec.at(key if key in spec.where else "optimizer")) from None


def _check_choices(spec: SpaceSpec) -> None:
    """InputError where a gene is a choice and the optimizer takes numbers only."""
    name = spec.optimizer["name"]
    gene = next((gene for gene in spec.genes if gene.choices), None)
    if gene is not None and not declaration(name).choices:
        able = [other for other in OPTIMIZERS if declaration(other).choices]
        problem = f"{gene.name} is a choice, and {name} takes numbers only"
        raise InputError(problem, f"use the optimizer {_either(able)}, or one of the choices", gene.where)


def _check_front(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """InputError where a front is asked for of an optimizer that keeps none, or of more or fewer slices than it can."""
    if fitness.objective != PARETO:
        return
    name, count, where = spec.optimizer["name"], len(fitness.traded), fitness.at("objective")
    most = declaration(name).objectives
    able = f"use the optimizer {_either(trading(count))}" if trading(count) else "leave slices out"
    if count < 2:
        problem = f"pareto trades slices off against each other, and {count or 'none'} has a weight above 0"
        raise InputError(problem, "use weighted_mean, or give another slice a weight", where)
    if most == 1:
        problem = f"pareto keeps a front of trade-offs, and the optimizer {name} follows one number"
        raise InputError(problem, f"{able}, or weighted_mean", where)
    if count > most:
        problem = f"{count} slices are more than the {most} that {name} can trade off"
        raise InputError(problem, f"{able}, or give slices weight 0: they only keep their floors", where)


def _either(names: Sequence[str]) -> str:
    return " or ".join(names[:3])


def _check_budget(spec: SpaceSpec) -> None:
    references = len(spec.sources) + 2
    least = references if spec.optimizer["name"] == "uniform-soup" else references + 1  # the average is its trial
    if spec.trials is not None and spec.trials < least:
        problem = f"{spec.trials} trials leave none to search: base, sources and average are {references}"
        raise InputError(problem, f"give at least {least}", spec.at("budget.trials"))


def _check_economy(spec: SpaceSpec, fitness: FitnessSpec) -> None:
    """Racing that was asked for by name; by default it just does not take place (`study.racing.racer`)."""
    if spec.asynchronous and "racing" in fitness.economy and fitness.economy != SAVINGS:
        problem = "racing compares the candidates of a generation, and an asynchronous search has none"
        raise InputError(problem, "leave it out (economy: [early_stop]), or asynchronous", fitness.at("economy"))


def open_checkpoints(spec: SpaceSpec, fitness: FitnessSpec) -> Plan:
    """Open base and sources and check that they can be merged. Raises InputError."""
    base = _open(spec.base)
    sources = {name: _open(ref, base) for name, ref in spec.sources.items()}
    where = _places(spec)
    if fitness.model is None:
        check_configured(base, where("base"))
    check_family(base, sources, where)
    tokens = token_changes(base, sources, spec.tokenizer, where)
    _check_distinct({"base": base, **sources}, where)
    _check_modules(spec, base)
    space = Space(spec, _models(spec, base, sources, tokens))
    if not space.dimensions:
        raise InputError("leaves nothing to search", "freeze less", spec.at("freeze"))
    check_start(spec, space)
    return Plan(spec, fitness, base, sources, space, tokens)


def _check_distinct(checkpoints: dict[str, Checkpoint], where: Callable[[str], Where]) -> None:
    seen: dict[str, str] = {}
    for name, checkpoint in checkpoints.items():
        twin = seen.setdefault(checkpoint.resolved(), name)
        if twin != name:
            raise InputError(f"{name} is the same checkpoint as {twin}", "list each model once", where(name))


def _check_modules(spec: SpaceSpec, base: Checkpoint) -> None:
    for name, text in spec.modules.items():
        if not any(text in tensor for tensor in base.tensors):
            parts = {part for tensor in base.tensors for part in tensor.split(".") if not part.isdigit()}
            raise InputError(f"no tensor of the base has {text!r} in its name", suggestion(text, parts),
                             spec.at(f"modules.{name}"))  # fmt: skip


def _places(spec: SpaceSpec) -> Callable[[str], Where]:
    """Where a model's name, or another key, stands in the space file."""
    models = {"base": spec.base.where, **{name: ref.where for name, ref in spec.sources.items()}}
    return lambda name: models.get(name) or spec.at(name)


def _open(ref: ModelRef, base: Checkpoint | None = None) -> Checkpoint:
    return Checkpoint.open(str(ref), ref.where, base)


def _models(spec: SpaceSpec, base: Checkpoint, sources: dict[str, Checkpoint], tokens: TokenChanges) -> Models:
    references = {name: checkpoint.resolved() for name, checkpoint in sources.items()}
    policy = None
    if tokens.changes or spec.tokenizer in references:
        policy = TokenizerPolicy(references.get(spec.tokenizer, spec.tokenizer), where=spec.at("tokenizer"))
    return Models(
        base=base.resolved(),
        sources=references,
        layers=base.layers,
        dtype=spec.dtype or base.dtype,
        tokenizer=policy,
        chat_template=_chat_template(spec, {"base": base, **sources}),
        tensors=_layers_of(base),
        tied=base.tied,
    )


def _layers_of(base: Checkpoint) -> dict[str, int]:
    """The base's tensors of floating point in the order of the model, with the layer whose values each takes: what
    stands before the layers the first's, what stands behind them the last's (mergekit's rule for slices)."""
    ends: dict[Place, int] = {"before": -1, "after": base.layers}
    floats = [name for name, info in base.tensors.items() if info.dtype in FLOATS]
    places = {name: place if isinstance(place := base.stack.place(name), int) else ends[place] for name in floats}
    in_order = sorted(floats, key=places.__getitem__)
    return {name: min(max(places[name], 0), base.layers - 1) for name in in_order}


def _chat_template(spec: SpaceSpec, models: dict[str, Checkpoint]) -> str:
    """Either "auto" or the text of the template: mergekit knows no model's name there."""
    if spec.chat_template not in models:
        return spec.chat_template
    template = chat_template(models[spec.chat_template])
    if template is None:
        problem, where = f"{spec.chat_template} has no chat template", spec.at("chat_template")
        raise InputError(problem, "use auto, another model, or a Jinja text", where)
    return template
