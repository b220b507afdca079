"""What must hold before weights are merged: one architecture, equal shapes, one vocabulary, finite values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.structure import is_head
from evomerge.checkpoints.tokenizer import vocabulary
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch

_SHOWN = 3


def check_family(base: Checkpoint, sources: Mapping[str, Checkpoint], where: Callable[[str], Where | None]) -> None:
    """All sources can be merged with the base, tensor by tensor. `where` tells where a source's name stands.

    Raises:
        InputError: another architecture, missing tensors, or shapes that differ; names the first of them.
    """
    for name, source in sources.items():
        _check_architecture(base, source, name, where(name))
        _check_names(base, source, name, where(name))
        _check_shapes(base, source, name, where(name))


def _check_architecture(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    ours, theirs = base.config.get("model_type"), source.config.get("model_type")
    if ours != theirs:
        problem = f"{name} is a {theirs} model, the base is a {ours} model"
        raise InputError(problem, "merge fine-tunes of one base", where)
    if base.layers != source.layers:
        problem = f"{name} has {source.layers} layers, the base has {base.layers}"
        raise InputError(problem, "merge fine-tunes of one base", where)


def _check_names(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    if base.tied != source.tied:
        words = {True: "ties its output head to its embeddings", False: "has a head of its own"}
        problem = f"{name} {words[source.tied]}, the base {words[base.tied]}"
        raise InputError(problem, "save both tied or both untied", where)
    lacking = [t for t in base.tensors if t not in source.tensors and not is_head(t)]
    extra = [t for t in source.tensors if t not in base.tensors and not is_head(t)]
    if lacking:
        raise InputError(f"{name} lacks {_first(lacking)} of the base", "merge fine-tunes of one base", where)
    if extra:
        raise InputError(f"{name} has {_first(extra)}, which the base lacks", "merge fine-tunes of one base", where)


def _check_shapes(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    differing = [t for t, i in base.tensors.items() if t in source.tensors and source.tensors[t].shape != i.shape]
    if not differing:
        return
    shown = [
        f"{t} is {list(source.tensors[t].shape)}, in the base {list(base.tensors[t].shape)}" for t in differing[:_SHOWN]
    ]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    vocabularies = all(t == base.embedding or is_head(t) for t in differing)
    mend = "merge fine-tunes of one base"
    if vocabularies:
        mend = "its vocabulary was extended; resize it to the base's (resize_token_embeddings) and save it again"
    raise InputError(f"{name}: {'; '.join(shown)}{more}", mend, where)


def check_tokenizers(
    base: Checkpoint, sources: Mapping[str, Checkpoint], policy: str, where: Callable[[str], Where | None]
) -> None:
    """The tokenizers allow `policy`: "base", "union" or a source's name. This version keeps every row of the
    embeddings where it is, so all vocabularies must be equal, or none be known.

    Raises:
        InputError: unknown policy, or a vocabulary that differs; tells how many tokens, and the first of them.
    """
    if policy not in ("base", "union", *sources):
        mend = f"use base, union or one of: {', '.join(sources)}"
        raise InputError(f"tokenizer {policy!r} is no policy and no source", mend, where("tokenizer"))
    ours = vocabulary(base)
    for name, source in sources.items():
        theirs = vocabulary(source)
        if ours is None or theirs is None or ours == theirs:
            continue
        difference = _vocabulary_difference(ours, theirs)
        if policy == "base":
            mend = "merge models that share the base's tokenizer"
            raise InputError(f"{name}'s tokenizer is not the base's: {difference}", mend, where(name))
        problem = f"tokenizer: {policy} would move rows of the embeddings: {name}'s vocabulary has {difference}"
        raise InputError(problem, "this version merges models of equal vocabularies only", where("tokenizer"))


def _vocabulary_difference(base: Mapping[str, int], source: Mapping[str, int]) -> str:
    added = sorted((t for t in source if t not in base), key=lambda t: source[t])
    dropped = sorted((t for t in base if t not in source), key=lambda t: base[t])
    moved = sorted((t for t in base if t in source and source[t] != base[t]), key=lambda t: base[t])
    parts = [f"{len(ts)} {word} ({_quoted(ts)})" for ts, word in ((added, "added"), (dropped, "missing")) if ts]
    if moved:
        t = moved[0]
        parts.append(f"{len(moved)} with other ids (first {t!r}: {source[t]} for {base[t]})")
    return ", ".join(parts)


def _quoted(tokens: list[str]) -> str:
    return ", ".join(repr(t) for t in tokens[:_SHOWN]) + (", ..." if len(tokens) > _SHOWN else "")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_finite(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """InputError, naming the tensor, where it holds NaN or Inf."""
    if not tensor.is_floating_point():
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        problem = f"{checkpoint.path}: {name} holds {bad} values that are NaN or Inf"
        raise InputError(problem, "the checkpoint is broken; use another one", checkpoint.where)


def check_head(checkpoint: Checkpoint, embedding: torch.Tensor) -> None:
    """InputError where a model that ties its head to its embeddings stores another head all the same: which of the two
    it was trained with cannot be told."""
    for name in checkpoint.stored:
        if name not in checkpoint.tensors and is_head(name) and not checkpoint.tensor(name).equal(embedding):
            problem = f"{checkpoint.path} ties its head to its embeddings, but stores a {name} that differs from them"
            raise InputError(problem, "set tie_word_embeddings in its config.json to false", checkpoint.where)
