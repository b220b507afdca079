"""The parts of a merge plan: models as a recipe sees them, and one job for every tensor of the merged model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.naming import rename_between
from evomerge.checkpoints.layouts.relayout import Pieces, pieces
from evomerge.checkpoints.modules import Modules, find_modules
from evomerge.checkpoints.structure import Place, Stack, is_head, is_matrix, text_config
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.merging.kernels.factors import Wanted
from evomerge.merging.plan.once import Once
from evomerge.recipe.bands import Bands
from evomerge.registry import METHODS

COPY = "copy"
"""The method of tensors that are not of floating point: all models must agree on them (mergekit 0.1.5)."""


@dataclass(frozen=True)
class Read:
    """A stored tensor of a checkpoint (`model` is its resolved reference)."""

    model: str
    tensor: str


@dataclass(frozen=True, eq=False)
class MergeJob:
    """The merge of one output tensor.

    Attributes:
        tensor: the output's name.
        inputs: the merged tensors, without the base if the method subtracts it or starts from it.
        base: the base that the method subtracts or starts from.
        parameters: the method's parameters by name: a tuple with one value for each input, or one value.
        work: the dtype that inputs are cast to and the result is rounded to.
        out: the dtype that the result is then cast to.
        seed: the seed of random masks.
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

    @property
    def banded(self) -> bool:
        """Whether weights are those of bands."""
        weights = self.parameters.get("weight")
        return isinstance(weights, tuple) and any(isinstance(weight, Bands) for weight in weights)

    @property
    def decomposed(self) -> dict[int, Wanted]:
        """The inputs, by number, whose deltas are decomposed, and which of their directions the merge needs."""
        method = METHODS.get(self.method)
        if method is not None and method.decomposed is not None and is_matrix(self.tensor, self.shape):
            centred = bool(self.parameters.get("centred"))
            wanted = Wanted.of(method.decomposed, self.shape, len(self.inputs), centred)
            return dict.fromkeys(range(len(self.inputs)), wanted)
        if not self.banded:
            return {}
        return {i: Wanted(w.top) for i, w in enumerate(self.parameters["weight"]) if isinstance(w, Bands)}


@dataclass(frozen=True, eq=False)
class Picked:
    """Rows of one matrix, and the output rows that they are copied to (both int64, of one length)."""

    operand: Operand
    rows: torch.Tensor
    at: torch.Tensor


@dataclass(frozen=True, eq=False)
class RebuiltMatrix:
    """An embedding or head matrix (or a head's bias) rebuilt row by row, for another vocabulary.

    Attributes:
        key: equal for equal contents, so that a rebuilt matrix can be kept between candidates.
        shape: the result's shape; its dimension `axis` is the output's vocabulary.
        dtype: the result's dtype.
        copied: rows that are copied. Output rows that nothing fills are zeros.
        averaged: rows that are averaged over the matrices, in float32; their `at` is a position in `means`.
        means: the output rows of those means.
        real: the output rows of tokens, if the others are padding, which becomes the mean of these; else None.
        axis: the dimension whose entries are called rows here, of the result and of the matrices.
    """

    key: Hashable
    shape: tuple[int, ...]
    dtype: str
    copied: tuple[Picked, ...]
    averaged: tuple[Picked, ...] = ()
    means: torch.Tensor | None = None
    real: torch.Tensor | None = None
    axis: int = 0

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The matrices that are read, each once."""
        return tuple(dict.fromkeys(part.operand for part in (*self.copied, *self.averaged)))

    def build(self, fetch: Callable[[Operand], torch.Tensor]) -> torch.Tensor:
        """The matrix, on the device of its first operand. `fetch` gives an operand's tensor."""
        matrices = {operand: fetch(operand).movedim(self.axis, 0) for operand in self.operands}
        device = next((m.device for m in matrices.values()), torch.device("cpu"))
        whole = torch.zeros(self.shape, dtype=getattr(torch, self.dtype), device=device)
        built = whole.movedim(self.axis, 0)
        for part in self.copied:
            rows = _rows(matrices[part.operand], part.rows)
            built.index_copy_(0, part.at.to(device), rows.to(device, built.dtype))
        if self.means is not None:
            built.index_copy_(0, self.means.to(device), self._mean(matrices, device).to(built.dtype))
        if self.real is not None:
            self._pad(built, self.real.to(device))
        return whole

    def _mean(self, matrices: Mapping[Operand, torch.Tensor], device: torch.device) -> torch.Tensor:
        """The means, one row for each of `means`: the sum over the matrices that have the row, over their number."""
        assert self.means is not None
        wide = torch.promote_types(getattr(torch, self.dtype), torch.float32)
        others = [n for i, n in enumerate(self.shape) if i != self.axis]
        total = torch.zeros((len(self.means), *others), dtype=wide, device=device)
        count = torch.zeros((len(self.means), *(1 for _ in others)), dtype=wide, device=device)
        for part in self.averaged:
            at = part.at.to(device)
            total[at] += _rows(matrices[part.operand], part.rows).to(device, wide)
            count[at] += 1
        return total / count

    def _pad(self, built: torch.Tensor, real: torch.Tensor) -> None:
        """Padding is the mean of the real rows (Hewitt 2021, "Initializing new word embeddings")."""
        wide = torch.promote_types(built.dtype, torch.float32)
        mean = built.index_select(0, real).to(wide).mean(0)
        padding = torch.ones(len(built), dtype=torch.bool, device=built.device)
        padding[real] = False
        built[padding] = mean.to(built.dtype)


def _rows(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return matrix.index_select(0, rows.to(matrix.device))


@dataclass(frozen=True, eq=False)
class Relaid:
    """A tensor made of those that another layout of the model stores (`checkpoints.layouts.relayout`)."""

    pieces: Pieces
    operands: tuple[Operand, ...]

    @property
    def key(self) -> Hashable:
        """Equal for equal contents."""
        return self.pieces, self.operands

    def build(self, fetch: Callable[[Operand], torch.Tensor]) -> torch.Tensor:
        """The tensor. `fetch` gives an operand's."""
        return self.pieces.build([fetch(operand) for operand in self.operands])


@dataclass(frozen=True)
class Block:
    """The place of a matrix in a stack [experts, rows, columns]: its expert, its first row, the one behind its last."""

    expert: int
    first: int
    end: int

    def of(self, stack: torch.Tensor) -> torch.Tensor:
        """The matrix, as a view of the stack."""
        return stack[self.expert, self.first : self.end]


@dataclass(frozen=True, eq=False)
class StackedMatrices:
    """The matrices of a layer's experts as one tensor.

    Attributes:
        key: equal for equal contents.
        shape: [experts, rows, columns].
        dtype: the result's dtype.
        blocks: the matrices and their places.
    """

    key: Hashable
    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[tuple[Block, Operand], ...]

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The matrices that are read."""
        return tuple(operand for _, operand in self.blocks)

    def build(self, fetch: Callable[[Operand], torch.Tensor]) -> torch.Tensor:
        """The stack, on the device of its first matrix. `fetch` gives an operand's tensor."""
        stack = torch.empty(0)
        for block, operand in self.blocks:
            matrix = fetch(operand)
            if not stack.numel():
                stack = torch.empty(self.shape, dtype=getattr(torch, self.dtype), device=matrix.device)
            block.of(stack).copy_(matrix)
        return stack


@dataclass(frozen=True, eq=False)
class BlockOf:
    """A block of a stack that another job merges. The blocks of a stack have one `once`."""

    job: MergeJob
    block: Block
    once: Once
    key: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.block.end - self.block.first, *self.job.shape[2:])

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The job of the stack."""
        return (self.job,)

    def build(self, fetch: Callable[[Operand], torch.Tensor]) -> torch.Tensor:
        """The block. `fetch` carries out a job."""
        return self.block.of(self.once.get(lambda: fetch(self.job)))


class Made(Protocol):
    """An operand that is made of others."""

    @property
    def key(self) -> Hashable:
        """Equal for equal contents; None: they change with the candidate."""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Those that it is made of."""

    def build(self, fetch: Callable[[Operand], torch.Tensor], /) -> torch.Tensor:
        """The tensor. `fetch` gives an operand's."""


Operand = Read | MergeJob | Made


@dataclass(frozen=True)
class TensorRef:
    """A tensor that a document can read: stored, or another document's output."""

    operand: Operand
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Model:
    """A model as a document sees it, be it a checkpoint or an earlier document."""

    reference: str
    config: dict[str, Any]
    modules: Modules
    tied: bool
    embedding: str | None
    tensors: dict[str, TensorRef]
    vocabulary: Vocabulary

    def find(self, name: str) -> TensorRef | None:
        """The tensor of that name; the head of a model with tied embeddings is its embeddings."""
        if name not in self.tensors and is_head(name) and self.tied and self.embedding:
            return self.tensors.get(self.embedding)
        return self.tensors.get(name)

    def named_like(self, other: Model) -> Model:
        """This model, its tensors under the names that they have in another one: where one of the two has a prefix more
        before its layers, or stores them in another layout."""
        renamed = self._prefixed_like(other)
        made = pieces(other.config, other._shapes, renamed._shapes)
        if not made:
            return renamed
        used = {name for parts in made.values() for name in parts.names}
        tensors = {name: tensor for name, tensor in renamed.tensors.items() if name not in used}
        for name, parts in made.items():
            stored = [renamed.tensors[n] for n in parts.names]
            relaid = Relaid(parts, tuple(tensor.operand for tensor in stored))
            tensors[name] = stored[0] if parts.same else TensorRef(relaid, parts.out.shape, stored[0].dtype)
        modules = find_modules(tensors, self.config, other.stack(None))
        return replace(renamed, modules=modules, embedding=other.embedding, tensors=tensors)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def _prefixed_like(self, other: Model) -> Model:
        main, theirs = self.stack(None), other.stack(None)
        rename = rename_between(main, theirs, other.tensors)
        if rename is None:
            return self
        tensors = {rename(name): tensor for name, tensor in self.tensors.items()}
        modules = find_modules(tensors, self.config, replace(main, prefix=theirs.prefix))
        embedding = None if self.embedding is None else rename(self.embedding)
        return replace(self, modules=modules, embedding=embedding, tensors=tensors)

    def stack(self, module: str | None) -> Stack:
        """The layer stack of a module; None: of the whole model."""
        return self.modules.stacks.get(module or self.modules.main, Stack("", 0))

    def places(self, module: str | None) -> Mapping[Place, list[str]]:
        """The tensors of a module (None: of the whole model): names before and after its layers, and by layer what
        follows the layer number."""
        if module not in self._places:
            self._places[module] = self._sorted(module)
        return self._places[module]

    @cached_property
    def _places(self) -> dict[str | None, dict[Place, list[str]]]:
        return {}

    def _sorted(self, module: str | None) -> dict[Place, list[str]]:
        stack, places = self.stack(module), dict[Place, list[str]]()
        for name in self.tensors:
            if module is None or self.modules.of(name) == module:
                place: Place = stack.place(name) if stack.layers else "before"
                places.setdefault(place, []).append(stack.part(name) if isinstance(place, int) else name)
        return places

    @property
    def rows(self) -> int:
        """The size of its vocabulary: ids from there on have no embedding."""
        configured = text_config(self.config).get("vocab_size", self.config.get("vocab_size"))
        if isinstance(configured, int):
            return configured
        matrix = self.tensors.get(self.embedding or "")
        return matrix.shape[0] if matrix else self.vocabulary.rows


@dataclass(frozen=True)
class MergePlan:
    """The merged model: its configuration, and the jobs of its tensors in the order in which they are written.

    Attributes:
        vocabulary: the output's tokenizer.
        donor: the checkpoint that gives the generation settings and processors.
        checkpoints: all checkpoints that the merge reads.
        notes: lines on tensors that not all models store.
    """

    config: dict[str, Any]
    jobs: dict[str, MergeJob]
    modules: Modules
    tied: bool
    embedding: str | None
    vocabulary: Vocabulary
    donor: Checkpoint
    checkpoints: tuple[Checkpoint, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def stack(self) -> Stack:
        """The layer stack of the language model."""
        return self.modules.stacks[self.modules.main]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors, by name."""
        return {name: job.shape for name, job in self.jobs.items()}

    @property
    def elements(self) -> int:
        return sum(math.prod(job.shape) for job in self.jobs.values())

    @property
    def parameters(self) -> int:
        """The number of its parameters. A head that is the embeddings counts once, wherever it is stored."""
        shared = self.tied and self.embedding in self.jobs
        jobs = (job for name, job in self.jobs.items() if job.method != COPY and not (shared and is_head(name)))
        return sum(math.prod(job.shape) for job in jobs)
