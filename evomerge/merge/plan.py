"""A recipe and the headers of its checkpoints -> one job for every tensor of the merged model. No weight is read.

The rules are mergekit 0.1.5's (`mergekit.plan`): the slices of a document stack to its layers; tensors before the stack
take the first slice's models and parameters, tensors after it the last slice's, both at depth t = 0; layer i of a slice
of L layers has depth i / (L - 1), a single layer depth 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.structure import Stack, is_head
from evomerge.errors import InputError, Where
from evomerge.merge.jobs import COPY, Job, Model, Plan, Read, Tensor
from evomerge.merge.output_config import output_config
from evomerge.recipe.parameters import source_value, tensor_value
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS, Method, Parameter


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
        jobs, lead = builder.jobs(), builder.lead
        result = Plan(
            config=builder.config(jobs),
            jobs=jobs,
            stack=builder.stack,
            tied=builder.tied(),
            embedding=builder.donor.embedding,
            donor=stages[lead].donor if lead in stages else opened[lead],
            checkpoints=tuple(opened.values()),
        )
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


@dataclass(frozen=True, eq=False)
class _Member:
    """One model of a slice: as the recipe writes it, as it is, its first layer, its number of layers."""

    input: Input
    model: Model
    start: int
    layers: int


class _Document:
    """Plans one document."""

    def __init__(self, document: Document, find: Callable[[str, Where | None], Model]) -> None:
        self.document = document
        self.method: Method = METHODS[document.method]
        self._find = find
        self.lead = document.base or document.slices[0].inputs[0].model
        self.donor = find(self.lead, document.where if document.base else document.slices[0].inputs[0].where)
        self.base = None if document.base is None else self.donor
        self.slices = [self._members(piece) for piece in document.slices]
        self.lengths = [self._length(p, m) for p, m in zip(document.slices, self.slices, strict=True)]
        self.stack = Stack(self.donor.stack.prefix, sum(self.lengths))

    def jobs(self) -> dict[str, Job]:
        """The jobs of all output tensors, in the order of the model."""
        first, last = 0, len(self.slices) - 1
        jobs = [self._job(first, n, [n] * len(self.slices[first]), 0.0) for n in self._before()]
        layer = 0
        for number, length in enumerate(self.lengths):
            for depth in range(length):
                jobs += self._layer(number, depth, layer)
                layer += 1
        jobs += [self._job(last, n, [n] * len(self.slices[last]), 0.0) for n in self._after()]
        return {job.tensor: job for job in jobs}

    def config(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """The donor's, with the output's dtype (that most elements have), number of layers and tying."""
        leads = zip((members[0] for members in self.slices), self.lengths, strict=True)
        taken = [(member.model.config, member.start, length) for member, length in leads]
        elements: Counter[str] = Counter()
        for job in jobs.values():
            elements[job.out] += math.prod(job.shape)
        return output_config(self.donor.config, taken, elements.most_common(1)[0][0], self.tied())

    def tied(self) -> bool:
        """Whether the output's head is its embeddings: in all models that either comes from it is."""
        return all(member.model.tied for member in (*self.slices[0], *self.slices[-1]))

    def _members(self, piece: Slice) -> list[_Member]:
        members = []
        for source in piece.inputs:
            model = self._find(source.model, source.where)
            start, end = source.layers or (0, model.stack.layers)
            if end > model.stack.layers:
                problem = f"layer_range [{start}, {end}) of {source.model}, which has {model.stack.layers} layers"
                raise InputError(problem, f"end at {model.stack.layers} at most", source.where)
            self._check_family(source, model)
            members.append(_Member(source, model, start, end - start))
        self._add_base(piece, members)
        self._check_members(piece, members)
        return members

    def _check_family(self, source: Input, model: Model) -> None:
        ours, theirs = self.donor.config.get("model_type"), model.config.get("model_type")
        if ours != theirs:
            problem = f"{source.model} is a {theirs} model, {self.lead} is a {ours} model"
            raise InputError(problem, "merge fine-tunes of one base", source.where)

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
        start, end = layers or (0, base.stack.layers)
        members.append(_Member(listed, base, start, end - start))

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

    def _length(self, piece: Slice, members: Sequence[_Member]) -> int:
        spans = {m.layers for m in members}
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

    def _before(self) -> list[str]:
        return _union(_outside(m.model, "before") for m in self.slices[0])

    def _after(self) -> list[str]:
        """A head that any model stores is an output of its own; models that tie theirs give their embeddings for it."""
        heads = [[n for n in _outside(m.model, "after") if is_head(n)] for m in self.slices[0]]
        return _union([*(_outside(m.model, "after") for m in self.slices[-1]), *heads])

    def _layer(self, number: int, depth: int, out_layer: int) -> list[Job]:
        length, members = self.lengths[number], self.slices[number]
        t = depth / (length - 1) if length > 1 else 1.0
        parts = _union(_parts(m.model, m.start + depth) for m in members)
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


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    """All names, each once, in the order in which they first stand."""
    return list(dict.fromkeys(name for names in lists for name in names))


def _outside(model: Model, place: str) -> list[str]:
    return [name for name in model.tensors if model.stack.place(name) == place]


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
