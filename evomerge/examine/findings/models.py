"""A model as doctor looks at it: a stored checkpoint, or a recipe whose tensors are merged as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.config import read_settings
from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.checkpoints.layouts.naming import rename_between
from evomerge.checkpoints.read import read_tensor
from evomerge.checkpoints.structure import Place, Stack, is_embedding, is_head, text_config
from evomerge.checkpoints.tokenizer import chat_template, vocabulary
from evomerge.errors import InputError
from evomerge.merging.disk.pipeline import StreamingBank, reads_of
from evomerge.merging.plan.jobs import MergeJob, MergePlan, Operand
from evomerge.merging.plan.template_files import default_template
from evomerge.merging.plan.tokenizers import output_tokenizer
from evomerge.merging.resident.bank import torch_dtype
from evomerge.merging.resident.execute import write
from evomerge.recipe.recipe import Recipe
from evomerge.safety.read import is_there, parse_json

GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"


@dataclass(frozen=True, eq=False)
class ModelView:
    """One model, read tensor by tensor.

    Attributes:
        name: what it is called in messages.
        reference: of a checkpoint; None: a recipe's merge.
        config: its configuration.
        shapes: of its tensors, by name.
        dtypes: of its tensors, by name.
        stack: its layer stack.
        tied: whether its head is its embeddings.
        head: the name of a head that it stores, even if it ties it.
        tokens: token -> id; None without a tokenizer.
        template: its chat template.
        generation: its generation_config.json; None without one.
        special: its tokenizer_config.json.
        quantized: the tensors that are stored quantized.
        adapted: the tensors that a LoRA adapter changes; None where there is no adapter.
        origins: of a recipe, for each tensor the (reference, tensor) pairs that it is merged from.
        factors: what its recipe scales tensors by that it takes as they are, by name; 1 is left out.
        read: reads a tensor, whole.
        read_rows: reads rows [first, end) of a tensor.
    """

    name: str
    reference: str | None
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    stack: Stack
    tied: bool
    head: str | None
    tokens: Mapping[str, int] | None
    template: str | None
    generation: Mapping[str, Any] | None
    special: Mapping[str, Any]
    quantized: frozenset[str]
    adapted: frozenset[str] | None
    origins: Mapping[str, tuple[tuple[str, str], ...]] | None
    factors: Mapping[str, float]
    read: Callable[[str], Tensor]
    read_rows: Callable[[str, int, int], Tensor]

    @cached_property
    def embedding(self) -> str | None:
        """The name of the token embeddings."""
        return next((name for name in self.shapes if is_embedding(name)), None)

    @property
    def text(self) -> Mapping[str, Any]:
        """The configuration of the language model."""
        return text_config(self.config)

    @property
    def layers(self) -> int:
        return self.stack.layers

    def place(self, name: str) -> Place:
        return self.stack.place(name)

    @cached_property
    def dtype(self) -> str:
        """The dtype that most elements have."""
        counts: dict[str, int] = {}
        for name, dtype in self.dtypes.items():
            counts[dtype] = counts.get(dtype, 0) + prod(self.shapes[name])
        return max(counts, key=lambda dtype: counts[dtype])

    @cached_property
    def by_id(self) -> Mapping[int, str]:
        """id -> token."""
        return {i: token for token, i in (self.tokens or {}).items()}

    @property
    def ends(self) -> frozenset[int]:
        """The ids at which a generation stops, as transformers takes them: of the generation settings where there are
        any, else of the configuration."""
        found = (self.generation or {}).get("eos_token_id")
        if found is None and self.generation is None:
            found = self.text.get("eos_token_id", self.config.get("eos_token_id"))
        ids = found if isinstance(found, list) else [found]
        return frozenset(i for i in ids if type(i) is int)

    @property
    def end_token(self) -> str | None:
        """The end-of-text token that the tokenizer names."""
        token = self.special.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) else None

    def end_words(self) -> set[str]:
        """The tokens at which a generation stops, by text where there is a tokenizer."""
        return {self.by_id.get(i, f"id {i}") for i in self.ends}

    def named_like(self, other: ModelView) -> ModelView:
        """This model with its tensors under another one's names, where one of them has a prefix more."""
        rename = rename_between(self.stack, other.stack, other.shapes)
        if rename is None:
            return self
        old = {rename(name): name for name in self.shapes}
        return replace(
            self,
            shapes={new: self.shapes[name] for new, name in old.items()},
            dtypes={new: self.dtypes[name] for new, name in old.items()},
            stack=replace(self.stack, prefix=other.stack.prefix),
            head=self.head and rename(self.head),
            quantized=frozenset(map(rename, self.quantized)),
            adapted=None if self.adapted is None else frozenset(map(rename, self.adapted)),
            read=lambda name: self.read(old[name]),
            read_rows=lambda name, first, end: self.read_rows(old[name], first, end),
        )


class _Unchecked(StreamingBank):
    """A bank that hands out damaged weights as well: they are what is looked for."""

    def tensor(self, ref: str, name: str) -> Tensor:
        return self.open(ref).read(name)


def stored(name: str, checkpoint: Checkpoint) -> ModelView:
    """The view of a checkpoint. Raises InputError."""

    def read_rows(tensor: str, first: int, end: int) -> Tensor:
        info = checkpoint.stored[tensor]
        if checkpoint.is_computed(tensor) or isinstance(info, QuantizedTensor) or len(info.shape) < 2:
            return checkpoint.read(tensor)[first:end]
        row = info.bytes // max(1, info.shape[0])
        part = TensorInfo((end - first, *info.shape[1:]), info.dtype, info.file, info.start + first * row)
        return read_tensor(part, checkpoint.where)

    adapted = frozenset(name for name in checkpoint.stored if checkpoint.is_computed(name))
    return ModelView(
        name=name,
        reference=checkpoint.resolved(),
        config=checkpoint.config,
        shapes={n: info.shape for n, info in checkpoint.tensors.items()},
        dtypes={n: info.dtype for n, info in checkpoint.tensors.items()},
        stack=checkpoint.stack,
        tied=checkpoint.tied,
        head=next(filter(is_head, checkpoint.stored), None),
        tokens=vocabulary(checkpoint),
        template=chat_template(checkpoint),
        generation=_settings(checkpoint.path / GENERATION),
        special=_settings(checkpoint.tokenizer_path / TOKENIZER) or {},
        quantized=frozenset(n for n, info in checkpoint.stored.items() if isinstance(info, QuantizedTensor)),
        adapted=adapted or None,
        origins=None,
        factors={},
        read=checkpoint.read,
        read_rows=read_rows,
    )


def merged(name: str, recipe: Recipe, planned: MergePlan) -> ModelView:
    """The view of what a recipe makes; nothing is written. Raises InputError."""
    bank = _Unchecked()
    for checkpoint in planned.checkpoints:
        bank.add(checkpoint)
    tokenizer = output_tokenizer(recipe.output, planned)
    files = tokenizer.files
    settings = {n: _parsed(files[n], n) for n in (GENERATION, TOKENIZER) if n in files}

    def read(tensor: str) -> Tensor:
        job = planned.jobs[tensor]
        out = torch.empty(job.shape, dtype=torch_dtype(job.out))
        write([job], [out], bank)
        return out

    return ModelView(
        name=name,
        reference=None,
        config=planned.config,
        shapes=planned.shapes,
        dtypes={n: job.out for n, job in planned.jobs.items()},
        stack=planned.stack,
        tied=planned.tied,
        head=next(filter(is_head, planned.jobs), None),
        tokens=None if tokenizer.vocabulary.missing else tokenizer.vocabulary.tokens,
        template=tokenizer.template or default_template(files),
        generation=settings.get(GENERATION),
        special=settings.get(TOKENIZER, {}),
        quantized=frozenset(),
        adapted=None,
        origins={n: tuple((r.model, r.tensor) for r in reads_of(job)) for n, job in planned.jobs.items()},
        factors=factors_of(planned),
        read=read,
        read_rows=lambda tensor, first, end: read(tensor)[first:end],
    )


def factors_of(planned: MergePlan) -> dict[str, float]:
    """What a recipe scales tensors by that it takes as they are, by their names; 1 is left out."""
    factors = {name: _factor(job) for name, job in planned.jobs.items()}
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def _factor(operand: Operand) -> float:
    factor = 1.0
    while isinstance(operand, MergeJob) and operand.method == "passthrough":
        factor *= float(operand.parameters["scale"][0])
        operand = operand.inputs[0]
    return factor


def _settings(file: Path) -> dict[str, Any] | None:
    """The settings in a file, if it is there."""
    return read_settings(file) if is_there(file) else None


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    data = parse_json(content, Path(name))
    if not isinstance(data, dict):
        raise InputError(f"{name} is not a JSON object", "copy or download it again")
    return data
