"""A checkpoint on disk: its configuration, its tensors' headers, and the tensors themselves when asked for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import hub
from evomerge.checkpoints.headers import FLOATS, TensorInfo, read_header
from evomerge.checkpoints.structure import (
    Stack,
    configured_layers,
    find_stack,
    is_derived,
    is_embedding,
    is_head,
    text_config,
)
from evomerge.errors import InputError, Where, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorInfo", "locate"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_fingerprints: dict[tuple[Any, ...], str] = {}


class Checkpoint:
    """A model folder. Opening it reads headers only.

    Attributes:
        reference: as the user wrote it.
        path: the folder.
        config: config.json.
        tensors: every tensor that a model of this kind reads, by name, in the order of their names. A stored head
            that the configuration ties to the embeddings, and buffers that the model computes itself, are left out.
        stack: the layer stack.
    """

    def __init__(
        self,
        reference: str,
        path: Path,
        config: dict[str, Any],
        stored: dict[str, TensorInfo],
        where: Where | None = None,
        commit: str | None = None,
    ) -> None:
        self.reference, self.path, self.config, self.where = reference, path, config, where
        self._commit, self._open_files = commit, dict[Path, Any]()
        self.stored = dict(sorted(stored.items()))
        self.tensors = {
            name: info
            for name, info in self.stored.items()
            if not (self.tied and is_head(name)) and not is_derived(name, info.shape)
        }
        stack = find_stack(self.tensors, configured_layers(config))
        if stack is None:
            told = configured_layers(config)
            problem = f"{path}: no numbered stack of {told} layers among its tensors"
            raise InputError(problem, "check num_hidden_layers in its config.json", where)
        self.stack: Stack = stack

    @classmethod
    def open(cls, ref: str, where: Where | None = None) -> Checkpoint:
        """Open a folder or a hub id (``name[@revision]``). Relative folders are looked for from the current folder,
        then from the folder of the file that `where` names.

        Raises:
            InputError: there is no such checkpoint, or it cannot be merged; the message tells why.
        """
        folder = locate(ref, where)
        commit = None
        if folder is None:
            folder, commit = hub.fetch(*hub.split_revision(ref), where=where, meant=_meant(ref, where))
        stored = _stored(folder, where)
        config = _read_json(folder / "config.json", where)
        _refuse_quantized(folder, config, stored, where)
        return cls(ref, folder, config, stored, where, commit)

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
        """Whether the output head shares the token embeddings (the configuration's word, else no head is stored)."""
        for config in (self.config, text_config(self.config)):
            if isinstance(config.get("tie_word_embeddings"), bool):
                return bool(config["tie_word_embeddings"])
        return not any(is_head(name) for name in self.stored)

    @cached_property
    def embedding(self) -> str | None:
        """The name of the token embedding matrix."""
        return next((name for name in self.tensors if is_embedding(name)), None)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as it is stored, read now."""
        from safetensors import safe_open

        file = self.stored[name].file
        if file not in self._open_files:
            self._open_files[file] = safe_open(file, framework="pt")
        tensor: torch.Tensor = self._open_files[file].get_tensor(name)
        return tensor

    def files(self) -> list[Path]:
        """The files that make the checkpoint what it is: weights, configuration, tokenizer."""
        weights = {info.file for info in self.stored.values()}
        others = [self.path / n for n in ("config.json", *TOKENIZER_FILES) if (self.path / n).is_file()]
        return [*sorted(weights), *others]

    def fingerprint(self) -> str:
        """sha256 (hex) over the names and contents of `files()`; remembered while they do not change."""
        files = self.files()
        key = tuple((f, s.st_size, s.st_mtime_ns) for f in files for s in (f.stat(),))
        if key not in _fingerprints:
            whole = hashlib.sha256()
            for file in files:
                with file.open("rb") as stream:
                    whole.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
            _fingerprints[key] = whole.hexdigest()
        return _fingerprints[key]

    def resolved(self) -> str:
        """A reference that means this checkpoint from anywhere: ``hub id@commit``, or the absolute folder."""
        return f"{hub.split_revision(self.reference)[0]}@{self._commit}" if self._commit else str(self.path)


def locate(ref: str, where: Where | None = None) -> Path | None:
    """The absolute folder that a reference names, or None for a hub id.

    Raises:
        InputError: it is neither a folder nor a possible hub id, or it names a LoRA adapter.
    """
    written, home = Path(ref).expanduser(), _home(where)
    for folder in dict.fromkeys((written, home / written)):
        if folder.is_dir():
            return folder.resolve()
        if folder.exists():
            raise InputError(f"{ref} is a file, not a model folder", "give the folder that holds config.json", where)
    if "+" in ref:
        mend = "merge the adapter into its base first (peft: merge_and_unload, save_pretrained)"
        raise InputError(f"{ref}: model+adapter references are not supported in this version", mend, where)
    name, meant = hub.split_revision(ref)[0], _meant(ref, where)
    if not hub.looks_like_hub_id(name) or ("/" not in name and meant):
        mend = f"did you mean {meant}?" if meant else "give a model folder or a hub id"
        raise InputError(f"there is no folder {ref}", mend, where)
    return None


def _home(where: Where | None) -> Path:
    """The folder of the file that `where` names; the current one where it names none."""
    return Path(where.file).resolve().parent if where and where.file else Path()


def _meant(ref: str, where: Where | None) -> str:
    """The folder beside the missing one whose name is nearest, or nothing."""
    written = Path(ref).expanduser()
    for folder in ((_home(where) / written).parent, written.parent):
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        close = nearest(written.name, names)
        if close:
            return str(written.with_name(close))
    return ""


def _stored(folder: Path, where: Where | None) -> dict[str, TensorInfo]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return read_header(single, where)
    if index.is_file():
        return _sharded(index, where)
    if (folder / "adapter_config.json").is_file():
        mend = "merge it into its base first (peft: merge_and_unload, save_pretrained)"
        raise InputError(f"{folder} is a LoRA adapter; adapters are not supported in this version", mend, where)
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        mend = "convert it with from_pretrained(...).save_pretrained(...), which writes safetensors"
        raise InputError(f"{folder} holds pickled weights, which can run code when read", mend, where)
    raise InputError(f"{folder} has no {WEIGHTS} and no {INDEX}", "give a model folder", where)


def _sharded(index: Path, where: Where | None) -> dict[str, TensorInfo]:
    shards = _read_json(index, where).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(f, str) for f in shards.values()):
        raise InputError(f"{index} has no weight_map", "copy or download it again", where)
    names = sorted(set(shards.values()))
    missing = [f for f in names if Path(f).name != f or not (index.parent / f).is_file()]
    if missing:
        problem = f"{index.parent} lacks {len(missing)} of its {len(names)} shards, first {missing[0]}"
        raise InputError(problem, "copy or download them again", where)
    found = {name: info for f in names for name, info in read_header(index.parent / f, where).items()}
    lost = sorted(set(shards) - set(found))
    if lost:
        problem = f"{index} lists {lost[0]}, which its shard {shards[lost[0]]} does not hold"
        raise InputError(problem, "copy or download the checkpoint again", where)
    return {name: found[name] for name in shards}


def _read_json(file: Path, where: Where | None) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file.parent} has no {file.name}", "give a whole model folder", where)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error})", "copy or download it again", where) from None
    if not isinstance(data, dict):
        raise InputError(f"{file} is not a JSON object", "copy or download it again", where)
    return data


def _refuse_quantized(folder: Path, config: dict[str, Any], stored: dict[str, TensorInfo], where: Where | None) -> None:
    mend = "dequantize it to a float dtype first, or merge the unquantized model"
    if config.get("quantization_config") or text_config(config).get("quantization_config"):
        raise InputError(f"{folder} is quantized (quantization_config in config.json)", mend, where)
    for name, info in stored.items():
        packed = info.dtype not in FLOATS and name.endswith("weight")
        if packed or info.dtype.startswith("float8"):
            raise InputError(f"{folder} is quantized ({name} is {info.dtype})", mend, where)
