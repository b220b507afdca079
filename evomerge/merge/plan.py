"""A recipe and the headers of its checkpoints -> one job for every tensor of the merged model. No weight is read.

The rules are mergekit 0.1.5's (`mergekit.plan`): the slices of a document stack to its layers; tensors before the stack
take the first slice's models and parameters, tensors after it the last slice's, both at depth t = 0; layer i of a slice
of L layers has depth i / (L - 1), a single layer depth 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.structure import Stack, is_head
from evomerge.errors import InputError, Where
from evomerge.merge.output_config import output_config
from evomerge.recipe.parameters import source_value, tensor_value
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS, Method, Parameter

COPY = "copy"
"""The method of tensors that are not of floating point: all models must agree on them (mergekit 0.1.5)."""


@dataclass(frozen=True)
class Read:
    """A stored tensor of a checkpoint (`model` is its resolved reference)."""

    model: str
    tensor: str


@dataclass(frozen=True, eq=False)
class Job:
    """How one output tensor is made.

    Attributes:
        tensor: the output's name.
        inputs: the merged tensors, without the base where the method subtracts it or starts from it.
        base: that base.
        parameters: the method's parameters by name: a tuple with one value for each input, or one value.
        work: the dtype that inputs are cast to and the result is rounded to; out: the dtype it is then cast to.
        seed: of random masks.
    """

    tensor: str
    method: str
    inputs: tuple[Operand, ...]
    base: Operand | None
    parameters: Mapping[str, Any]
    work: str
    out: str
    shape: tuple[int, ...]
    seed: int = 0


Operand = Read | Job


@dataclass(frozen=True)
class Tensor:
    """A tensor that a document can read: stored, or another document's output."""

    operand: Operand
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Model:
    """What a document sees of a model, be it a checkpoint or an earlier document."""

    reference: str
    config: dict[str, Any]
    stack: Stack
    tied: bool
    embedding: str | None
    tensors: dict[str, Tensor]

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name; the head of a model with tied embeddings is its embeddings."""
        if name not in self.tensors and is_head(name) and self.tied and self.embedding:
            return self.tensors.get(self.embedding)
        return self.tensors.get(name)


@dataclass(frozen=True)
class Plan:
    """The merged model: its configuration, and the jobs of its tensors in the order in which they are written.

    `donor` is the checkpoint whose tokenizer and generation settings it takes; `checkpoints` are all that it reads.
    """

    config: dict[str, Any]
    jobs: dict[str, Job]
    stack: Stack
    tied: bool
    embedding: str | None
    donor: Checkpoint
    checkpoints: tuple[Checkpoint, ...] = field(repr=False)

    @property
    def elements(self) -> int:
        return sum(math.prod(job.shape) for job in self.jobs.values())


def plan(recipe: Recipe, open_checkpoint: Callable[[str, Where | None], Checkpoint]) -> Plan:
    """Plan a recipe. Checkpoints are opened with `open_checkpoint(reference, where)`.

    Raises:
        InputError: the recipe and its checkpoints do not fit: names document, model, tensor, and how to mend.
    """
    models: dict[str, Model] = {}
    stages: dict[str, Plan] = {}
    opened: dict[str, Checkpoint] = {}

    def find(reference: str, where: Where | None) -> Model:
        if reference not in models:
            opened[reference] = open_checkpoint(reference, where)
            models[reference] = _stored_model(opened[reference])
        return models[reference]

    result: Plan | None = None
    for document in recipe.documents:
        builder = _Document(document, find)
        jobs, config, tied = builder.jobs(), builder.config(), builder.tied()
        lead = builder.lead
        donor = stages[lead].donor if lead in stages else opened[lead]
        checkpoints = tuple(opened.values())
        result = Plan(config, jobs, builder.stack, tied, builder.donor.embedding, donor, checkpoints)
        if document.name:
            stages[document.name] = result
            models[document.name] = _staged_model(document.name, result)
    assert result is not None, "a recipe has at least one document"
    return result


def _stored_model(checkpoint: Checkpoint) -> Model:
    key = checkpoint.resolved()
    tensors = {n: Tensor(Read(key, n), i.shape, i.dtype) for n, i in checkpoint.tensors.items()}
    return Model(key, checkpoint.config, checkpoint.stack, checkpoint.tied, checkpoint.embedding, tensors)


def _staged_model(name: str, stage: Plan) -> Model:
    tensors = {n: Tensor(job, job.shape, job.out) for n, job in stage.jobs.items()}
    return Model(name, stage.config, stage.stack, stage.tied, stage.embedding, tensors)


@dataclass(frozen=True)
class _Member:
    """One model of a slice: as the recipe writes it, as it is, its first layer."""

    input: Input
    model: Model
    start: int


class _Document:
    """Plans one document."""

    def __init__(self, document: Document, find: Callable[[str, Where | None], Model]) -> None:
        self.document = document
        self.method: Method = METHODS[document.method]
        self._find = find
        self.lead = document.base or document.slices[0].inputs[0].model
        self.donor = find(self.lead, document.where)
        self.base = None if document.base is None else self.donor
        self.slices = [self._members(piece) for piece in document.slices]
        self.lengths = [self._length(piece) for piece in document.slices]
        self.stack = Stack(self.donor.stack.prefix, sum(self.lengths))

    def jobs(self) -> dict[str, Job]:
        jobs: list[Job] = []
        first, last = 0, len(self.slices) - 1
        jobs += [self._job(first, n, [n] * len(self.slices[first]), 0.0) for n in self._outside(first, "before")]
        layer = 0
        for number, length in enumerate(self.lengths):
            for depth in range(length):
                jobs += self._layer(number, depth, layer)
                layer += 1
        jobs += [self._job(last, n, [n] * len(self.slices[last]), 0.0) for n in self._outside(last, "after")]
        return {job.tensor: job for job in jobs}

    def config(self) -> dict[str, Any]:
        """The donor's, with the output's dtype, number of layers and tying."""
        taken = [
            (m.model.config, m.start, n) for members, n in zip(self.slices, self.lengths, strict=True) for m in members[:1]
        ]
        dtype = self.document.out_dtype or self.document.dtype
        return output_config(self.donor.config, taken, dtype, self.tied())

    def tied(self) -> bool:
        """Whether the output ties its head: all models that its head comes from do."""
        return all(member.model.tied for member in self.slices[-1])

    def _members(self, piece: Slice) -> list[_Member]:
        members = []
        for source in piece.inputs:
            where = source.where or piece.where
            model = self._find(source.model, where)
            start, end = source.layers or (0, model.stack.layers)
            if end > model.stack.layers:
                problem = f"layer_range [{start}, {end}) of {source.model}, which has {model.stack.layers} layers"
                raise InputError(problem, f"end at {model.stack.layers} at most", where)
            members.append(_Member(source, model, start))
        self._add_base(piece, members)
        self._check_members(piece, members)
        return members

    def _add_base(self, piece: Slice, members: list[_Member]) -> None:
        """A base that is not listed takes part with the layers that the others have."""
        base = self.base
        if base is None or any(m.model.reference == base.reference for m in members):
            return
        if self.method.base == "ordinary" and not self.document.whole:
            return  # it decides the configuration only
        assert self.document.base is not None
        ranges = {source.layers for source in piece.inputs}
        if len(ranges) > 1:
            problem = "the base is not listed, and the models' layer ranges differ"
            raise InputError(problem, f"list {self.document.base} with the layers that it gives", piece.where)
        layers = ranges.pop()
        listed = Input(self.document.base, layers, where=self.document.where)
        members.append(_Member(listed, base, layers[0] if layers else 0))

    def _check_members(self, piece: Slice, members: Sequence[_Member]) -> None:
        name, method = self.document.method, self.method
        seen: set[str] = set()
        for member in members:
            if member.model.reference in seen:
                raise InputError(f"{member.input.model} is listed twice", "list each model once", piece.where)
            seen.add(member.model.reference)
        if method.base != "ordinary" and self.base is None:
            raise InputError(f"{name} needs a base_model", "add base_model: the common ancestor", self.document.where)
        count = len(self._merged(members))
        least, most = method.sources
        if not least <= count <= most:
            besides = "" if method.base == "ordinary" else " besides the base"
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            raise InputError(f"{name} takes {wanted} model{besides}, not {count}", "mend the list", piece.where)

    def _length(self, piece: Slice) -> int:
        members = self.slices[self.document.slices.index(piece)]
        spans = {(i.layers[1] - i.layers[0]) if i.layers else m.model.stack.layers for m in members for i in (m.input,)}
        if len(spans) != 1:
            told = ", ".join(map(str, sorted(spans)))
            problem = f"its models give different numbers of layers ({told})"
            raise InputError(problem, "give every model of a slice equally many layers", piece.where)
        return spans.pop()

    def _merged(self, members: Sequence[_Member]) -> list[_Member]:
        """The members that the method merges: all, or all but the base."""
        if self.method.base == "ordinary" or self.base is None:
            return list(members)
        return [m for m in members if m.model.reference != self.base.reference]

    def _outside(self, number: int, place: str) -> list[str]:
        """The tensors before or after the stack. A head that only some models store is an output: the others have
        tied it to their embeddings."""
        names: dict[str, None] = {}
        for member in self.slices[number]:
            names.update(dict.fromkeys(n for n in member.model.tensors if member.model.stack.place(n) == place))
        return list(names)

    def _layer(self, number: int, depth: int, out_layer: int) -> list[Job]:
        length, members = self.lengths[number], self.slices[number]
        t = depth / (length - 1) if length > 1 else 1.0
        parts: dict[str, None] = {}
        for m in members:
            parts.update(dict.fromkeys(_parts(m.model, m.start + depth)))
        return [
            self._job(
                number,
                self.stack.name(out_layer, part),
                [m.model.stack.name(m.start + depth, part) for m in members],
                t,
            )
            for part in parts
        ]

    def _job(self, number: int, name: str, names: Sequence[str], t: float) -> Job:
        """The job of output tensor `name`, which is called `names` in the members of slice `number`."""
        document, piece, members = self.document, self.document.slices[number], self.slices[number]
        tensors = [self._tensor(m, n) for m, n in zip(members, names, strict=True)]
        _check_shapes(name, members, tensors)
        if any(tensor.dtype not in FLOATS for tensor in tensors):
            operands = tuple(t.operand for t in tensors)
            return Job(name, COPY, operands, None, {}, tensors[0].dtype, tensors[0].dtype, tensors[0].shape)
        merged = self._merged(members)
        chosen = [(m, n, x) for m, n, x in zip(members, names, tensors, strict=True) if m in merged]
        base = next((x.operand for m, x in zip(members, tensors, strict=True) if m not in merged), None)
        parameters = {
            p.name: tuple(self._of_source(piece, m.input, p, n, t) for m, n, _ in chosen)
            if p.scope == "source"
            else self._of_tensor(piece, p, name, t)
            for p in self.method.parameters
        }
        work = document.dtype or _promoted([x.dtype for x in tensors])
        operands = tuple(x.operand for _, _, x in chosen)
        out = document.out_dtype or work
        return Job(name, document.method, operands, base, parameters, work, out, tensors[0].shape, document.seed)

    def _tensor(self, member: _Member, name: str) -> Tensor:
        tensor = member.model.find(name)
        if tensor is None:
            problem = f"{member.input.model} has no tensor {name}, which another model of the merge has"
            raise InputError(problem, "merge models of one architecture", member.input.where)
        return tensor

    def _of_source(self, piece: Slice, source: Input, parameter: Parameter, name: str, t: float) -> Any:
        value = source_value(self.document, piece, source, parameter.name, name, t)
        return _legal(value, parameter, f"{self.document.method} of {source.model}", name, source.where)

    def _of_tensor(self, piece: Slice, parameter: Parameter, name: str, t: float) -> Any:
        value = tensor_value(self.document, piece, parameter.name, name, t)
        return _legal(value, parameter, self.document.method, name, piece.where)


def _parts(model: Model, layer: int) -> list[str]:
    start = f"{model.stack.prefix}.{layer}."
    return [name[len(start) :] for name in model.tensors if name.startswith(start)]


def _check_shapes(name: str, members: Sequence[_Member], tensors: Sequence[Tensor]) -> None:
    for member, tensor in zip(members, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            problem = (
                f"{name} is {list(tensor.shape)} in {member.input.model}, {list(tensors[0].shape)} in "
                f"{members[0].input.model}"
            )
            raise InputError(problem, "merge models of one architecture and vocabulary", member.input.where)


def _promoted(dtypes: Sequence[str]) -> str:
    """The dtype that holds all of them, as torch promotes."""
    promoted: torch.dtype = getattr(torch, dtypes[0])
    for other in dtypes[1:]:
        promoted = torch.promote_types(promoted, getattr(torch, other))
    return str(promoted).removeprefix("torch.")


def _legal(value: Any, parameter: Parameter, of: str, tensor: str, where: Where) -> float | bool:
    """The value, or the default; a required one must be given, and be a finite number."""
    if value is None:
        if parameter.default is None:
            problem = f"{of} has no {parameter.name} for {tensor}"
            raise InputError(problem, f"give {parameter.name}, or a filter entry without filter", where)
        value = parameter.default
    if parameter.kind is bool:
        return bool(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{of}: {parameter.name} is {value!r}, not a number", "give a number", where)
    return number
