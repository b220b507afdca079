"""`search --from RUN`: another run's winner as the first genome of a finer space, its values carried over exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from evomerge.errors import InputError, Where
from evomerge.evaluator.models import OpenModels
from evomerge.files.objects import INCLUDE, WINDOW, SpaceSpec
from evomerge.files.space_file import read_space
from evomerge.optimize.declarations import declaration
from evomerge.registry import CHOICES
from evomerge.space.genes import value_at
from evomerge.space.space import Space
from evomerge.study.after.status import Status, status
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.manifest import Environment
from evomerge.study.run.trial import Trial
from evomerge.types import Dimension, Genome, Value

_FLAG = Where("--from")


@dataclass(frozen=True)
class StartingPoint:
    """The genome that a search begins with, the trial that had it, and the digest of its weights."""

    run: str
    trial: int
    genome: Genome
    digest: str | None

    def __str__(self) -> str:
        return f"trial {self.trial} of {self.run}"


def starting_point(run: str, models: OpenModels) -> StartingPoint:
    """The winner of a run as a genome of the space over `models`.

    Args:
        run: its name or path; the winner, or before there is one its best feasible trial; ``RUN:TRIAL``: that trial.
        models: of the new search, with its space.

    Raises:
        InputError: there is no such trial, or it is not exactly a genome of the space.
    """
    space = models.space
    assert isinstance(space, Space), "a path begins with another run's winner as a model"
    name, state, trial = starting_trial(run, space.spec)
    trial = proposed(state, trial)
    # Its optimizer does not matter: it may be one that was removed.
    old = read_space(state.folder.space, optimizer="random", fitness=state.folder.fitness)
    if old.dataflow is not None:
        problem = f"{name} stacked layers, and this space merges weights"
        raise InputError(problem, "begin from a run of weights, or write `space: dataflow`", _FLAG)
    check_models(name, Environment.read(state.folder), models)
    sources = {source: space.models.sources[source] for source in old.sources}
    averaged = {name: space.models.trajectories[name] for name in old.trajectories}
    before = Space(old, replace(space.models, sources=sources, trajectories=averaged))
    genome = _Transfer(before, space, trial.genome).genome()
    return StartingPoint(name, trial.number, genome, trial.digest)


def starting_trial(run: str, spec: SpaceSpec) -> tuple[str, Status, Trial]:
    """The run that `starting_point` begins from, by name and state, and its trial. InputError where there is none."""
    optimizer = spec.optimizer["name"]
    if not declaration(optimizer).takes_start:
        raise InputError(f"{optimizer} goes by known models only", "use another optimizer", _FLAG)
    name, _, number = run.rpartition(":") if run.rpartition(":")[2].isdecimal() else (run, "", "")
    if not name:
        raise InputError(f"{run!r} names no run", "give RUN or RUN:TRIAL", _FLAG)
    state = status(RunFolder.existing(name, _FLAG).path)
    return name, state, _trial(state, name, number)


def proposed(state: Status, trial: Trial) -> Trial:
    """The trial whose genome this one has: another form of a merge (`study.polish`) is no genome of its own."""
    return trial if trial.polished is None else next(t for t in state.search.trials if t.number == trial.polished)


def check_models(name: str, environment: Environment, models: OpenModels) -> None:
    """InputError where a run merges models that a space does not have, or has others by their names."""
    recorded: Mapping[str, Any] = environment.identity["checkpoints"]
    for model, fingerprint in recorded.items():
        if model not in models.checkpoints:
            raise InputError(f"{name} merges {model}, which this space does not have", f"add the source {model}", _FLAG)
        if models.checkpoints[model].fingerprint() != fingerprint:
            problem = f"{model} is another checkpoint than in {name}"
            raise InputError(problem, "begin from a run of the same models", _FLAG)


def _trial(state: Status, name: str, number: str) -> Trial:
    if number:
        trial = next((t for t in state.search.trials if t.number == int(number) and t.genome), None)
        if trial is None:
            raise InputError(f"{name} has no searched trial {number}", "give the number of one", _FLAG)
        return trial
    found = [trial for trial in (state.winner, state.search.best()) if trial is not None]
    best = next((trial for trial in found if trial.genome), None)
    if best is None and found:
        raise InputError(f"{found[0].name} won in {name}, which has no genome", "name a trial: RUN:TRIAL", _FLAG)
    if best is None:
        raise InputError(f"{name} has no searched merge that passes every floor", "name one: RUN:TRIAL", _FLAG)
    return best


class _Transfer:
    """Reads an old genome at every place of a new space."""

    def __init__(self, old: Space, new: Space, genome: Genome) -> None:
        self._old, self._new, self._genome = old, new, {**old.frozen_values, **genome}
        self._leave_out()
        self._genes = {gene.name: gene for gene in old.spec.genes}
        cuts = [[gene.bands for gene in space.spec.genes if gene.bands is not None] for space in (old, new)]
        if cuts[0] != cuts[1]:
            self._refuse("a weight of bands is another merge", "keep `per` and `bands` of the weight")
        if (old.spec.core, old.spec.core_rank) != (new.spec.core, new.spec.core_rank):
            self._refuse("a merge in Core Space is another one than that of weights", "keep `adapters`, `core_rank`")
        if old.spec.interpolate or new.spec.interpolate:
            same = old.axes.groups == new.axes.groups and old.axes.knots == new.axes.knots
            if not (same and old.spec.interpolate == new.spec.interpolate):
                self._refuse(
                    "values between knots are no values of other layer groups", "keep `layers` and `interpolate`"
                )

    def _leave_out(self) -> None:
        """Gives weight 0 to the sources that the old genome leaves out, which this space may merge."""
        absent = self._old.models.sources.keys() - {*self._old.included(self._genome)}
        weights = {d.key: 0.0 for d in self._old.dimensions if d.gene == "weight" and d.place.get("sources") in absent}
        if absent and not weights and not any(gene.name == INCLUDE for gene in self._new.spec.genes):
            self._refuse(f"{min(absent)} was left out", "write `include: true`")
        self._genome = {**self._genome, **weights}

    def genome(self) -> Genome:
        genome = {d.key: self._at(d) for d in self._new.dimensions}
        for tensor in self._new.models.tensors:
            for source in self._old.models.sources:
                self._check_effect(genome, source, tensor)
        return genome

    def _check_effect(self, genome: Genome, source: str, tensor: str) -> None:
        """What is no gene here, and what is frozen, has to be as it was."""
        before = _effect(self._old, self._genome, source, tensor)
        after = _effect(self._new, {**self._new.frozen_values, **genome}, source, tensor)
        if _idle(before) and _idle(after):
            return
        layer = self._new.models.tensors[tensor]
        if layer in self._new.frozen_layers:
            self._refuse(f"layer {layer} is frozen here, and was merged", "freeze only what the run left as it was")
        for name in before | after:
            was, now = before.get(name), after.get(name)
            if was != now:
                problem = f"{name} was {was} for {source} in layer {layer}, and is {now} here"
                self._refuse(problem, f"search {name} there, or fix it at {was}")

    def _at(self, dimension: Dimension) -> Value:
        source = dimension.place.get("sources", next(iter(self._old.models.sources)))
        if source not in self._old.models.sources:
            value: Value = 0.0 if dimension.gene == "weight" else dimension.init
        elif dimension.gene == WINDOW and source not in self._old.models.trajectories:
            value = 1.0  # its newest checkpoint alone
        else:
            band = int(dimension.place.get("bands", 0))
            read = (self._read(dimension.gene, source, tensor, band) for tensor in self._tensors(dimension))
            values = {value for value in read if value is not None} or {dimension.init}
            if len(values) > 1:
                self._refuse(f"{dimension.key} would need {len(values)} values", "search it `per` what the run has")
            value = values.pop()
        if dimension.choices and value not in dimension.choices:
            self._refuse(f"{dimension.key} was {value}, which is no choice here", f"add {value} to its choices")
        if not dimension.choices and not dimension.low <= float(value) <= dimension.high:
            self._refuse(f"{dimension.key} was {value:g}, outside of its range", "widen its range")
        return value

    def _tensors(self, dimension: Dimension) -> list[str]:
        """Those that the dimension decides on."""
        axes, place = self._new.axes, dimension.place
        group = place.get("layers")
        return [
            tensor
            for tensor, layer in self._new.models.tensors.items()
            if group is None or axes.group_of(layer) == int(group)
            if place.get("modules") in (None, axes.module_of(tensor))
            if place.get("tensors") in (None, tensor)
        ]

    def _read(self, gene: str, source: str, tensor: str, band: int) -> Value | None:
        """What it was there, in a band; None for what the method there does not take, so that any value is as good."""
        layer = self._old.models.tensors[tensor]
        knots = replace(self._old.axes, interpolate=False)  # where both interpolate, knots are transferred to knots
        if gene in self._genes and layer not in self._old.frozen_layers:
            module = knots.module_of(tensor)
            return value_at(self._genes[gene], self._genome, knots, source, layer, module, tensor, band)
        return _effect(self._old, self._genome, source, tensor).get(gene)

    def _refuse(self, problem: str, mend: str) -> NoReturn:
        raise InputError(f"the genome cannot be carried over exactly: {problem}", mend, _FLAG)


def _effect(space: Space, genome: Genome, source: str, tensor: str) -> dict[str, Value | None]:
    """The method and all of its parameters for one source of one tensor."""
    genes = {gene.name: gene for gene in space.spec.genes}
    layer, module = space.models.tensors[tensor], space.axes.module_of(tensor)

    def value(name: str, otherwise: Value | None) -> Value | None:
        return space.value(genes[name], genome, source, layer, module, tensor) if name in genes else otherwise

    method = str(value("method", space.spec.methods[0]))
    shares = space.shares_of(source, genome)
    curve = {"curve": str(shares)} if len(shares) > 1 else {}
    fixed = space.spec.fixed
    values = {p.name: value(p.name, fixed.get(p.name, p.default)) for p in CHOICES[method].parameters}
    if layer in space.frozen_layers:
        values |= dict.fromkeys(values.keys() & {"weight", "t"}, 0.0)
    return {"method": method, **values, **curve}


def _idle(effect: Mapping[str, Value | None]) -> bool:
    """Whether the base stays as it is, as far as one source is concerned."""
    return effect.get("weight", effect.get("t")) == 0.0
