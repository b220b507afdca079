"""Opens a checkpoint on disk: reads its configuration and its tensors' headers, and each tensor on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.config import CONFIG, check_config, read_config
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.hub import arrive, header, headers, is_known
from evomerge.checkpoints.identity import Identity, file_digest, fingerprint, identities, identity
from evomerge.checkpoints.layouts.naming import unwrapped
from evomerge.checkpoints.lora import Adapter, FittedAdapter, read_adapter
from evomerge.checkpoints.lora_config import CONFIG as ADAPTER_CONFIG
from evomerge.checkpoints.lora_steps import Change
from evomerge.checkpoints.pickled import check_allowed, read_pickled
from evomerge.checkpoints.quantized.formats import Quantization, unpacked
from evomerge.checkpoints.quantized.gguf_file import ENDING, read_gguf
from evomerge.checkpoints.read import read_tensor
from evomerge.checkpoints.references import resolve, split_adapter
from evomerge.checkpoints.structure import (
    Stack,
    find_stack,
    is_derived,
    is_embedding,
    is_head,
    layer_counts,
    text_config,
    with_text_config,
)
from evomerge.errors import InputError, Where
from evomerge.safety.names import check_name
from evomerge.safety.read import is_there, read_object

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorInfo"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "target_vocab.json", "normalizer.json", "bpe.codes", "tekken.json", "qwen.tiktoken", "chat_template.jinja",
    "byte_maps.json", "dict.txt", "emoji.json", "encoder.json", "entity_vocab.json", "hy.tiktoken",
    "prophetnet.tokenizer", "sentencepiece.model", "spm.model", "spm_char.model", "tiktoken.model", "tokenizer.jsonl",
    "tokenizer.model.v3", "vocab-src.json", "vocab-tgt.json", "vocab.bpe", "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
"""The tokenizers of all families, and the chat template."""
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
PROCESSOR_FILES = (
    *IMAGE_FILES,
    "video_preprocessor_config.json",
    "chat_template.json",
    "audio_tokenizer_config.json",
)
GENERATION_FILE = "generation_config.json"
NAMED_TEMPLATES = "additional_chat_templates"
"""The folder of a tokenizer's further chat templates, as NAME.jinja."""
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "tekken.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PAIR = "write model+adapter"


class _AdapterError(InputError):
    """An adapter's base is an adapter."""


class Checkpoint:
    """Reads a model folder, or a model folder with a LoRA adapter merged into it. Opening it reads headers only.

    Attributes:
        reference: the reference as the user wrote it.
        path: the model's folder.
        parts: references from anywhere (``hub id@commit``, an absolute path): the model's, then the adapter's or that
            of the file of weights.
        tokenizer_path: the folder of its tokenizer and chat template: the adapter's, if it brings a tokenizer.
        config: config.json; empty if a model of the user's own has none. A quantization is left out.
        tensors: every tensor that a model of this kind reads, by name, in the order of the names. A stored head
            that the configuration ties to the embeddings, and buffers that the model computes itself, are left out.
        stack: the layer stack.
        quantization: how its weights are quantized, if they are. `tensors` are those that they stand for.
        seen: the files of its folders as they were before the first of them was read (`identity.check_unchanged`).
    """

    def __init__(
        self,
        reference: str,
        path: Path,
        config: dict[str, Any],
        stored: dict[str, TensorInfo],
        where: Where | None = None,
        parts: tuple[str, ...] = (),
        adapter: Adapter | None = None,
        changes: Mapping[str, Change] | None = None,
        seen: Mapping[Path, Identity] | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.quantization = quantization
        self.reference, self.path, self.config, self.where = reference, path, config, where
        self.seen: Mapping[Path, Identity] = seen or {}
        self.parts = parts or (str(path),)
        self._adapter, self._changes = adapter, changes or {}
        has_tokenizer = adapter is not None and any(is_there(adapter.folder / name, where) for name in VOCABULARY_FILES)
        self.tokenizer_path = adapter.folder if adapter is not None and has_tokenizer else path
        self._tokenizer_files = [f for n in TOKENIZER_FILES if is_there(f := self.tokenizer_path / n, where)]
        self.stored = dict(sorted(stored.items()))
        self.tensors = {
            name: info
            for name, info in self.stored.items()
            if not (self.tied and is_head(name)) and not is_derived(name, info.shape)
        }
        counts: list[int | None] = [*layer_counts(config)] or [None]
        stacks = (find_stack(self.tensors, layers) for layers in counts)
        stack = next((found for found in stacks if found is not None), None)
        if stack is None and "model_type" not in config:
            stack = find_stack(self.tensors, None)  # not a configuration of transformers
        if stack is None:
            problem = f"{path}: no numbered stack of {counts[0]} layers among its tensors"
            raise InputError(problem, "check num_hidden_layers in its config.json", where)
        self.stack: Stack = stack

    @classmethod
    def open(cls, ref: str, where: Where | None = None, base: Checkpoint | None = None) -> Checkpoint:
        """Open a folder or a hub id (``name[@revision]``), followed by ``+adapter[@revision]`` for a LoRA adapter, or
        by ``+file.gguf`` for the weights of a GGUF file in place of the model's.

        Relative folders start at the current folder or, if there is none, at the folder of the file that `where` names.
        An adapter alone belongs to the model that its configuration names, or to `base` if that is not found.

        Raises:
            InputError: there is no such checkpoint, or it cannot be merged; the message says why.
        """
        return cls._open(ref, where, base)

    @classmethod
    def _open(cls, ref: str, where: Where | None, base: Checkpoint | None, is_base: bool = False) -> Checkpoint:
        """`open`. `is_base`: whether an adapter names it as its base."""
        model, adapter = split_adapter(ref, where)
        if adapter is not None:
            on = cls._open(model, where, None, is_base)
            folder, resolved = resolve(adapter, where)
            if folder.suffix == ENDING and folder.is_file():
                return on.with_weights(ref, folder, where)
            seen = identities(folder)
            return on.adapted(ref, read_adapter(folder, resolved, where), seen)
        folder, resolved = resolve(ref, where)
        if folder.suffix == ENDING and folder.is_file():
            if base is None:
                raise InputError(f"{folder} has weights only", f"write model+{folder.name}", where)
            return base.with_weights(ref, folder, where)
        seen = identities(folder)
        if is_there(folder / ADAPTER_CONFIG, where) and not any(is_known(folder / n, where) for n in (WEIGHTS, INDEX)):
            if is_base:
                raise _AdapterError(f"{folder} is an adapter", _PAIR, where)
            alone = read_adapter(folder, resolved, where)
            return cls._base_of(alone, base).adapted(ref, alone, seen)
        stored = _stored(folder, where)
        config, stored, quantization = unpacked(folder, _config(folder, stored, where), stored, where)
        _check_tensors(folder, config, stored, where)
        return cls(ref, folder, config, stored, where, (resolved,), seen=seen, quantization=quantization)

    @classmethod
    def _base_of(cls, adapter: Adapter, base: Checkpoint | None) -> Checkpoint:
        """The model that an adapter names, or `base` if that cannot be opened."""
        if base is not None and adapter.base in (None, base.reference, base.resolved()):
            return base
        if adapter.base is None:
            raise adapter.error("it does not name its base", _PAIR)
        try:
            # Its configuration is no file of the user's: a path in it does not start where the user's paths do.
            where = replace(adapter.where, folder=None) if adapter.where else None
            return cls._open(adapter.base, where, None, is_base=True)
        except InputError as error:
            if base is not None:
                return base
            problem = f"its base {adapter.base} cannot be opened ({error.problem})"
            if isinstance(error, _AdapterError):
                problem = f"its base, by its {ADAPTER_CONFIG}, is an adapter ({adapter.base})"
            raise adapter.error(problem, _PAIR) from None

    def with_weights(self, reference: str, file: Path, where: Where | None) -> Checkpoint:
        """This checkpoint with the weights of a GGUF file in place of its own. Raises InputError."""
        seen = identity(file)
        stored, words = read_gguf(file, self.config, self.stored, self.dtype, where)
        return Checkpoint(
            reference,
            self.path,
            self.config,
            stored,
            where,
            parts=(*self.parts, str(file)),
            seen={**self.seen, **({file: seen} if seen else {})},
            quantization=Quantization(words, len(stored), self.dtype),
        )

    def adapted(self, reference: str, adapter: Adapter, seen: Mapping[Path, Identity]) -> Checkpoint:
        """This checkpoint with a LoRA adapter merged into it, tensor by tensor as they are read. `seen`: the adapter's
        folder before it was read.

        Raises:
            InputError: the adapter does not fit.
        """
        fitted = FittedAdapter(adapter, self)
        kept = {n: info for n, info in self.stored.items() if fitted.unties or not (self.tied and is_head(n))}
        settings: dict[str, Any] = {"tie_word_embeddings": False} if fitted.unties else {}
        if fitted.vocabulary is not None:
            settings["vocab_size"] = fitted.vocabulary
        return Checkpoint(
            reference,
            self.path,
            config=with_text_config(self.config, settings),
            stored={**kept, **{name: change.info for name, change in fitted.changes.items()}},
            where=adapter.where,
            parts=(*self.parts, adapter.resolved),
            adapter=adapter,
            changes=fitted.changes,
            seen={**self.seen, **seen},
            quantization=self.quantization,
        )

    @property
    def layers(self) -> int:
        """The number of layers of the layer stack."""
        return self.stack.layers

    @cached_property
    def dtype(self) -> str:
        """The dtype that most of its elements have."""
        counts: Counter[str] = Counter()
        for info in self.tensors.values():
            counts[info.dtype] += info.elements
        return counts.most_common(1)[0][0]

    @cached_property
    def tied(self) -> bool:
        """Whether the output head shares the token embeddings: as configured, else if no head is stored."""
        for config in (self.config, text_config(self.config)):
            if isinstance(config.get("tie_word_embeddings"), bool):
                return bool(config["tie_word_embeddings"])
        return not any(is_head(name) for name in self.stored)

    @cached_property
    def embedding(self) -> str | None:
        """The name of the token embedding matrix."""
        return next((name for name in self.tensors if is_embedding(name)), None)

    def adapted_to(self, base: Checkpoint) -> bool:
        """Whether it is `base` with a LoRA adapter."""
        return self._adapter is not None and self.parts[:-1] == base.parts

    def is_computed(self, name: str) -> bool:
        """Whether an adapter computes the tensor when it is read; else it is stored as in `tensors`."""
        return name in self._changes

    def change(self, name: str) -> Change | None:
        """How an adapter computes the tensor; None if it does not."""
        return self._changes.get(name)

    def read(self, name: str) -> torch.Tensor:
        """One tensor as it is stored, or dequantized, in new memory. Threads may read at the same time.

        Raises:
            InputError: the file has changed since the checkpoint was opened.
        """
        change = self._changes.get(name)
        return read_tensor(self.stored[name], self.where) if change is None else change.tensor(self.where)

    def fetch(self) -> None:
        """Download what is still on the hub of its files. InputError if that fails."""
        for file in self.files():
            arrive(file, self.where)

    def files(self) -> list[Path]:
        """All files of the checkpoint: weights, configuration, tokenizer, adapter."""
        weights = {file for info in self.stored.values() for file in info.files}
        config = [self.path / CONFIG] if self.config else []
        config += self.quantization.files if self.quantization else ()
        adapter = [] if self._adapter is None else self._adapter.files()
        return [*sorted(weights), *config, *self._tokenizer_files, *adapter]

    def fingerprint(self) -> str:
        """sha256 (hex) over the names and contents of `files()`."""
        self.fetch()
        return fingerprint((file.name, file_digest(file)) for file in self.files())

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders of `parts`; of a file of weights, the file."""
        adapter = [] if self._adapter is None else [self._adapter.folder]
        return (self.path, *(adapter or map(Path, self.parts[1:])))

    def resolved(self) -> str:
        """The checkpoint's reference from anywhere: ``hub id@commit`` or the absolute folder, with the adapter's behind
        a plus sign."""
        return "+".join(self.parts)


def _stored(folder: Path, where: Where | None) -> dict[str, TensorInfo]:
    """The tensors that a model folder stores, at least one."""
    single, index = folder / WEIGHTS, folder / INDEX
    if is_known(single, where):
        stored = header(single, where)
    elif is_there(index, where):
        stored = _sharded(index, where)
    elif any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        stored = _pickled(folder, where)
    else:
        raise InputError(f"{folder} has no {WEIGHTS} and no {INDEX}", "give a model folder", where)
    stored = unwrapped(stored)
    if not stored:
        raise InputError(f"{folder} holds no tensors", "give a model folder", where)
    return stored


def _pickled(folder: Path, where: Where | None) -> dict[str, TensorInfo]:
    """The tensors of a folder that has pickled weights only, where these may be read."""
    check_allowed(str(folder), where=where)
    single, index = folder / PICKLED, folder / PICKLED_INDEX
    if is_there(single, where):
        return read_pickled(single, where)
    if is_there(index, where):
        return _sharded(index, where, lambda files, where: [read_pickled(file, where) for file in files])
    raise InputError(f"{folder} has no {WEIGHTS} and no {PICKLED}, with an index or without", "rename it", where)


def _sharded(
    index: Path, where: Where | None, read: Callable[[list[Path], Where | None], list[dict[str, TensorInfo]]] = headers
) -> dict[str, TensorInfo]:
    """The tensors of the files that an index lists, as `read` finds them."""
    shards = read_object(index, where).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(f, str) for f in shards.values()):
        raise InputError(f"{index} has no weight_map of tensors to files", "copy or download it again", where)
    names = sorted(set(shards.values()))
    for name in names:
        check_name(name, f"shard of {index}", where)
    missing = [f for f in names if not is_known(index.parent / f, where)]
    if missing:
        problem = f"{index.parent} lacks {len(missing)} of its {len(names)} shards, first {missing[0]}"
        raise InputError(problem, "copy or download them again", where)
    held = dict(zip(names, read([index.parent / f for f in names], where), strict=True))
    lost = next((name for name in shards if name not in held[shards[name]]), None)
    if lost is not None:
        problem = f"{index} lists {lost}, which its shard {shards[lost]} does not hold"
        raise InputError(problem, "copy or download the checkpoint again", where)
    return {name: held[shard][name] for name, shard in shards.items()}


def _config(folder: Path, stored: Mapping[str, TensorInfo], where: Where | None) -> dict[str, Any]:
    """config.json. Models of the user's own may have none; a model with token embeddings must have it."""
    file = folder / CONFIG
    if not is_there(file, where):
        if any(map(is_embedding, stored)):
            raise InputError(f"{folder} has no {CONFIG}", "give a whole model folder", where)
        return {}
    return read_config(file, where)


def _check_tensors(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], where: Where | None) -> None:
    """InputError if embeddings or a head are no matrices, or the configuration does not agree with the tensors."""
    flat = next((n for n, i in tensors.items() if (is_embedding(n) or is_head(n)) and len(i.shape) != 2), None)
    if flat is not None:
        problem = f"{folder}: {flat} has the shape {list(tensors[flat].shape)}, and is no matrix"
        raise InputError(problem, "copy or download it again", where)
    if config:
        check_config(config, folder / CONFIG, tensors, where)
