"""Reads a checkpoint's tokenizer files without loading a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

from evomerge.checkpoints.checkpoint import TOKENIZER_FILES, Checkpoint


def vocabulary(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Token -> id, added tokens included; None if the checkpoint has no tokenizer that can be read."""
    return _vocabulary(checkpoint.tokenizer_path, stamp(checkpoint.tokenizer_path))


def stamp(folder: Path) -> Hashable:
    """A key that changes when the folder's tokenizer files do."""
    files = ((name, folder / name) for name in TOKENIZER_FILES)
    return tuple((name, s.st_size, s.st_mtime_ns) for name, file in files if file.is_file() for s in (file.stat(),))


@lru_cache(maxsize=64)
def _vocabulary(folder: Path, stamp: Hashable) -> dict[str, int] | None:
    if (folder / "tokenizer.json").is_file():
        return _fast_vocabulary(_json(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file():
        added = _json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        return {**_json(folder / "vocab.json"), **added}
    if (folder / "tokenizer.model").is_file():
        return _slow_vocabulary(folder)
    return None


def _fast_vocabulary(data: dict[str, Any]) -> dict[str, int]:
    stored = data.get("model", {}).get("vocab", {})
    # Unigram models list [token, score] in the order of the ids
    vocab = dict(stored) if isinstance(stored, dict) else {entry[0]: i for i, entry in enumerate(stored)}
    return {**vocab, **{t["content"]: t["id"] for t in data.get("added_tokens", [])}}


def _slow_vocabulary(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return dict(tokenizer.get_vocab())


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The checkpoint's default chat template (Jinja), or None."""
    file = checkpoint.tokenizer_path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = checkpoint.tokenizer_path / "tokenizer_config.json"
    template = _json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # named templates
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None
