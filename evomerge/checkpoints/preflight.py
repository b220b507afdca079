"""Checks checkpoints before they are merged (architecture, shapes, finite values), and reports tokens that change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.structure import is_head
from evomerge.checkpoints.tokenizer import vocabulary
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch

_SHOWN = 3


def check_family(base: Checkpoint, sources: Mapping[str, Checkpoint], where: Callable[[str], Where | None]) -> None:
    """Check that all sources can be merged with the base, tensor by tensor. `where`: the place of a source's name.

    Raises:
        InputError: another architecture, missing tensors, or shapes that differ; names the first of them.
    """
    for name, source in sources.items():
        _check_architecture(base, source, name, where(name))
        _check_names(base, source, name, where(name))
        _check_shapes(base, source, name, where(name))


def check_configured(checkpoint: Checkpoint, where: Where | None = None) -> None:
    """InputError if the configuration is missing, without which transformers cannot build the model."""
    if not checkpoint.config:
        mend = "give a whole model folder; for other than language models, let `model` of the fitness file build it"
        raise InputError(f"{checkpoint.path} has no config.json", mend, where or checkpoint.where)


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
    """InputError if shapes differ. Embeddings and heads may have other rows: they are brought to one vocabulary."""
    differing = [
        t
        for t, i in base.tensors.items()
        if t in source.tensors and not _alike(t, i.shape, source.tensors[t].shape, base.embedding)
    ]
    if not differing:
        return
    shown = [
        f"{t} is {list(source.tensors[t].shape)}, in the base {list(base.tensors[t].shape)}" for t in differing[:_SHOWN]
    ]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise InputError(f"{name}: {'; '.join(shown)}{more}", "merge fine-tunes of one base", where)


def _alike(name: str, ours: tuple[int, ...], theirs: tuple[int, ...], embedding: str | None) -> bool:
    return ours == theirs or ((name == embedding or is_head(name)) and ours[1:] == theirs[1:])


@dataclass(frozen=True)
class TokenChange:
    """The effect of an output vocabulary on one model: `dropped` tokens that it loses, and `filled` tokens that it
    lacks, for which rows are filled in."""

    model: str
    dropped: tuple[str, ...]
    filled: tuple[str, ...]


@dataclass(frozen=True)
class TokenChanges:
    """The effect of a tokenizer policy on every model of a search, the base first. Without `changes` all vocabularies
    are equal, and no row moves."""

    policy: str
    changes: tuple[TokenChange, ...] = ()

    @property
    def dropped(self) -> list[str]:
        """A line for every model that loses tokens."""
        return [
            f"tokenizer {self.policy}: drops {len(c.dropped)} tokens of {c.model} ({_quoted(c.dropped)})"
            for c in self.changes
            if c.dropped
        ]

    @property
    def filled(self) -> list[str]:
        """A line for every model with rows that are filled in."""
        return [
            f"tokenizer {self.policy}: fills in {len(c.filled)} rows for {c.model}, which lacks {_quoted(c.filled)}"
            for c in self.changes
            if c.filled
        ]


def token_changes(
    base: Checkpoint, sources: Mapping[str, Checkpoint], policy: str, where: Callable[[str], Where | None]
) -> TokenChanges:
    """The effect of `policy` ("base", "union" or a source's name) on every model's tokens. A model whose tokenizer
    cannot be read counts as having the base's.

    Raises:
        InputError: unknown policy.
    """
    if policy not in ("base", "union", *sources):
        mend = f"use base, union or one of: {', '.join(sources)}"
        raise InputError(f"tokenizer {policy!r} is no policy and no source", mend, where("tokenizer"))
    models = {"base": base, **sources}
    ours = _used(base, vocabulary(base) or {})
    tokens_of = {name: _used(c, tokens) if (tokens := vocabulary(c)) else ours for name, c in models.items()}
    union = dict.fromkeys(token for tokens in tokens_of.values() for token in tokens)
    output = union if policy == "union" else tokens_of.get(policy, ours)
    if all(tokens == ours and _rows(models[name]) == _rows(base) for name, tokens in tokens_of.items()):
        return TokenChanges(policy)
    return TokenChanges(policy, tuple(_change(name, tokens, output) for name, tokens in tokens_of.items()))


def _change(name: str, tokens: Collection[str], output: Collection[str]) -> TokenChange:
    return TokenChange(
        model=name,
        dropped=tuple(t for t in tokens if t not in output),
        filled=tuple(t for t in output if t not in tokens),
    )


def _rows(checkpoint: Checkpoint) -> int | None:
    return checkpoint.tensors[checkpoint.embedding].shape[0] if checkpoint.embedding else None


def _used(checkpoint: Checkpoint, tokens: Mapping[str, int]) -> dict[str, int]:
    """The tokens that have a row in the checkpoint's embeddings, in the order of their ids."""
    rows = _rows(checkpoint)
    return dict(sorted(((t, i) for t, i in tokens.items() if rows is None or i < rows), key=lambda pair: pair[1]))


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(repr(t) for t in tokens[:_SHOWN]) + (", ..." if len(tokens) > _SHOWN else "")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_finite(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """InputError if the tensor holds NaN or Inf."""
    # NaN and Inf survive in a sum, which takes a fraction of the time
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        owner = checkpoint.reference if checkpoint.is_computed(name) else checkpoint.path
        problem = f"{owner}: {name} holds {bad} values that are NaN or Inf"
        raise InputError(problem, "the checkpoint is broken; use another one", checkpoint.where)


def check_head(checkpoint: Checkpoint, embedding: torch.Tensor) -> None:
    """InputError if a model that ties its head to its embeddings stores another head all the same: nothing says which
    of the two it was trained with."""
    for name in checkpoint.stored:
        if name not in checkpoint.tensors and is_head(name) and not checkpoint.read(name).equal(embedding):
            problem = f"{checkpoint.path} ties its head to its embeddings, but stores a {name} that differs from them"
            raise InputError(problem, "set tie_word_embeddings in its config.json to false", checkpoint.where)
