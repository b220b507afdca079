"""Checks checkpoints before they are merged (architecture, shapes, finite values), and reports tokens that change."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.naming import rename_between
from evomerge.checkpoints.layouts.relayout import pieces
from evomerge.checkpoints.layouts.uneven import Fate, fate, listed, roles, told
from evomerge.checkpoints.layouts.unread import unread
from evomerge.checkpoints.structure import is_embedding, is_head, text_config
from evomerge.checkpoints.tokenizer import vocabulary
from evomerge.checkpoints.vocabulary_tensors import vocabulary_axes
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch

_SHOWN = 3
_NORM = re.compile(r"(^|\.)(norm|final_layernorm|ln_f|final_layer_norm|norm_f)\.(weight|bias)$")


def check_family(base: Checkpoint, sources: Mapping[str, Checkpoint], where: Callable[[str], Where | None]) -> None:
    """Check that all sources can be merged with the base, tensor by tensor. `where`: the place of a source's name.

    Raises:
        InputError: another architecture, shapes that differ, or tensors that only one of the models has and that its
            model needs (`checkpoints.layouts.uneven`); names the first of them.
    """
    for name, source in sources.items():
        _check_architecture(base, source, name, where(name))
        _check_names(base, source, name, where(name))
        _check_shapes(base, source, name, where(name))


def check_stackable(models: Mapping[str, Checkpoint], where: Callable[[str], Where | None]) -> None:
    """Check that layers of all models can stand in one stack, whatever the depth of each. The first model is compared
    with the others. `where`: the place of a model's name.

    Raises:
        InputError: another architecture, other numbers of heads, or a layer that is like none of the first model.
    """
    (first, one), *others = models.items()
    kinds = layer_shapes(one)
    for name, other in others:
        _check_settings(first, one, name, other, where(name))
        for layer, shapes in enumerate(layer_shapes(other)):
            if shapes not in kinds:
                problem = f"layer {layer} of {name} is like none of {first}: {_unlike(shapes, kinds[0], first)}"
                raise InputError(problem, "stack layers of models of one architecture and size", where(name))


def layer_shapes(checkpoint: Checkpoint) -> list[dict[str, tuple[int, ...]]]:
    """For each layer the shapes of its tensors, by their names behind the layer's number."""
    layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(checkpoint.layers)]
    for name, info in checkpoint.tensors.items():
        place = checkpoint.stack.place(name)
        if isinstance(place, int):
            layers[place][checkpoint.stack.part(name)] = tuple(info.shape)
    return layers


def _check_settings(first: str, one: Checkpoint, name: str, other: Checkpoint, where: Where | None) -> None:
    for key in ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        ours, theirs = (text_config(c.config).get(key, c.config.get(key)) for c in (one, other))
        if ours != theirs:
            problem = f"{name} has {key} {theirs}, {first} has {ours}"
            raise InputError(problem, "stack layers of models of one architecture and size", where)


def _unlike(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], first: str) -> str:
    part = next(p for p in (*shapes, *expected) if shapes.get(p) != expected.get(p))
    shown = [list(of[part]) if part in of else "not there" for of in (shapes, expected)]
    return f"{part} is {shown[0]}, in layer 0 of {first} {shown[1]}"


def check_configured(checkpoint: Checkpoint, where: Where | None = None) -> None:
    """InputError if the configuration is missing, without which transformers cannot build the model."""
    if not checkpoint.config:
        mend = "give a whole model folder; for other than language models, let `model` of the fitness file build it"
        raise InputError(f"{checkpoint.path} has no config.json", mend, where or checkpoint.where)


def _check_architecture(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    ours, theirs = base.config.get("model_type"), source.config.get("model_type")
    if ours != theirs:
        problem = f"{name} is a {theirs} model, the base is a {ours} model"
        mend = "merge fine-tunes of one base"
        if {ours, text_config(base.config).get("model_type")} & {theirs, text_config(source.config).get("model_type")}:
            mend += (
                "; a language model goes into the language part by a recipe: modules: {text_decoder: {models: [...]}}"
            )
        raise InputError(problem, mend, where)
    if base.layers != source.layers:
        problem = f"{name} has {source.layers} layers, the base has {base.layers}"
        raise InputError(problem, "merge fine-tunes of one base", where)


def tensor_notes(base: Checkpoint, sources: Mapping[str, Checkpoint], *, usual: bool = False) -> list[str]:
    """Lines on what not all models of a search store, and what happens to it (`checkpoints.layouts.uneven`). `usual`:
    embeddings, final norms and heads by their usual names are taken to be read, without asking transformers."""
    kept, left = dict[str, list[str]](), dict[str, list[str]]()
    for name, source in sources.items():
        lacking, extra = _uneven(base, source)
        for tensor, what in {**lacking, **extra}.items():
            group = kept if what == "keep" else left
            group.setdefault(tensor, []).append(name)
    lines = told({t: m for t, m in kept.items() if t not in left}, left, "the base")
    outside = [name for name in base.tensors if not isinstance(base.stack.place(name), int)]
    if usual:
        outside = [name for name in outside if not (is_embedding(name) or is_head(name) or _NORM.search(name))]
    asked = [name for name in outside if name not in kept and name not in left]
    not_read = (unread(base.config, asked) or ()) if asked else ()
    if not_read:
        lines.append(f"{listed(sorted(not_read))}: merged, and not read by transformers")
    mixed = [name for name, source in sources.items() if source.tied != base.tied]
    if mixed:
        words = ("has a head of its own", "ties its head to its embeddings")
        line = f"{' and '.join(mixed)} {words[not base.tied]}, the base {words[base.tied]}"
        lines.append(f"{line}: merged models have a head of their own")
    return lines


def _uneven(base: Checkpoint, source: Checkpoint) -> tuple[dict[str, Fate], dict[str, Fate]]:
    """What happens to the tensors that the source lacks, and to those that the base lacks, under the base's names."""
    names = names_of_base(base, source)
    lacking = [t for t in base.tensors if t not in names and not (is_head(t) and source.tied)]
    extra = [t for t in names if t not in base.tensors and not (is_head(t) and base.tied)]
    named = base.config.get("architectures")
    ours = roles(base.config, named, base.stack, lacking) if lacking else {}
    theirs = roles(source.config, named, source.stack, [names[t][0] for t in extra]) if extra else {}
    return {t: fate(ours[t], ()) for t in lacking}, {t: fate(None, (theirs[names[t][0]],)) for t in extra}


def names_of_base(base: Checkpoint, source: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The source's tensors as the base stores them: the base's name of each -> its own, or one of those that it is made
    of, and its shape."""
    rename = rename_between(source.stack, base.stack, base.tensors)
    found = {rename(name) if rename else name: (name, tuple(info.shape)) for name, info in source.tensors.items()}
    ours = {name: tuple(info.shape) for name, info in base.tensors.items()}
    made = pieces(base.config, ours, {name: shape for name, (_, shape) in found.items()})
    used = {name for parts in made.values() for name in parts.names}
    relaid = {name: (found[p.names[0]][0], found[p.names[0]][1] if p.same else p.out.shape) for name, p in made.items()}
    return {name: own for name, own in found.items() if name not in used} | relaid


def _check_names(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    lacking, extra = ([t for t, what in fates.items() if what == "refuse"] for fates in _uneven(base, source))
    if lacking:
        raise InputError(f"{name} lacks {listed(lacking)} of the base", "merge fine-tunes of one base", where)
    if extra:
        raise InputError(f"{name} has {listed(extra)}, which the base lacks", "merge fine-tunes of one base", where)


def _check_shapes(base: Checkpoint, source: Checkpoint, name: str, where: Where | None) -> None:
    """InputError if shapes differ. Embeddings and heads may have other rows: they are brought to one vocabulary."""
    shapes = {name: shape for name, (_, shape) in names_of_base(base, source).items()}
    unlike = [t for t, i in base.tensors.items() if t in shapes and i.shape != shapes[t]]
    axes = vocabulary_axes(base.config, base.tensors) if unlike else {}
    differing = [t for t in unlike if not _alike(base.tensors[t].shape, shapes[t], axes.get(t))]
    if not differing:
        return
    shown = [f"{t} is {list(shapes[t])}, in the base {list(base.tensors[t].shape)}" for t in differing[:_SHOWN]]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise InputError(f"{name}: {'; '.join(shown)}{more}", "merge fine-tunes of one base", where)


def _alike(ours: tuple[int, ...], theirs: tuple[int, ...], axis: int | None) -> bool:
    """Whether two shapes differ in the dimension `axis` only."""
    if axis is None or len(ours) != len(theirs):
        return False
    return all(n == m for i, (n, m) in enumerate(zip(ours, theirs, strict=True)) if i != axis)


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
