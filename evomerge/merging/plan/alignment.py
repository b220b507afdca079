"""Brings the embeddings and heads of models with different vocabularies to the output's vocabulary (mergekit 0.1.5,
`tokenizer.build` and `tokenizer.embed`).

A model keeps its row of every token that it has. For a token that it lacks (or that a rule forces) the row is the first
of these that applies: the recipe's rule for the token; the row of the only model that has the token; zeros, if none has
it; the base's row; the mean of the rows of all models that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from evomerge.checkpoints.vocabulary import Added, Vocabulary, extended, union, without_unused
from evomerge.errors import InputError, Where
from evomerge.merging.plan.jobs import Model, Picked, RebuiltMatrix, TensorRef
from evomerge.recipe.recipe import TokenizerPolicy, TokenRule

_ZERO, _MEAN = -1, -2


@dataclass(frozen=True)
class Owner:
    """One model's matrix and vocabulary; `rows` is the number of its rows that belong to the vocabulary, `axis` the
    dimension that counts them."""

    vocabulary: Vocabulary
    rows: int
    tensor: TensorRef
    axis: int = 0

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.tensor.shape[self.axis]


@dataclass(frozen=True)
class _Rule:
    """A token rule in numbers: the output row, the number of the owner (or `_ZERO`), the owner's row."""

    token: int
    owner: int
    row: int
    force: bool


class Alignment:
    """Rebuilds matrices for the output vocabulary of one document.

    Attributes:
        vocabulary: the output's tokenizer.
        rows: the rows of the output's matrices, padding included.
    """

    def __init__(
        self,
        policy: TokenizerPolicy,
        models: Sequence[Model],
        find: Callable[[str, Where | None], Model],
        find_vocabulary: Callable[[str, Where | None], Vocabulary],
    ) -> None:
        """`models`: all models that the document names, first the base (or the model that leads in its place). Of a
        model that gives only its tokenizer, `find_vocabulary` reads nothing else.

        Raises:
            InputError: a tokenizer that is needed cannot be loaded.
        """
        self._policy, self._find, self._find_vocabulary = policy, find, find_vocabulary
        try:
            base = without_unused(models[0].vocabulary, models[0].rows)
            # A model without a tokenizer has the base's.
            known = {m.reference: m.vocabulary if m.vocabulary.readable else base for m in models}
            self._known = {**known, models[0].reference: base}
            chosen = self._vocabulary(base, models[1:])
            tokens = chosen.tokens
            missing = [rule.token for rule in policy.tokens if rule.token not in tokens]
            self.vocabulary = extended(chosen, [Added(token) for token in missing])
        except InputError as error:
            raise InputError(error.problem, error.mend, error.where or policy.where) from error
        multiple = policy.pad_to_multiple_of or 1
        self.rows = -(-self.vocabulary.rows // multiple) * multiple

    def _vocabulary(self, base: Vocabulary, others: Sequence[Model]) -> Vocabulary:
        if self._policy.source == "base":
            return base
        if self._policy.source == "union":
            return union(base, tuple((self._known[m.reference], m.rows) for m in others))
        return self._find_vocabulary(self._policy.source, self._policy.where)

    def tensors(self, axis: int, models: Sequence[Model], stored: Sequence[TensorRef], base: Model | None,
                dtype: str | None) -> list[TensorRef]:  # fmt: skip
        """The matrices that an output tensor is merged from, rebuilt if that changes them. `axis`: the dimension that
        counts tokens; `dtype`: the document's, in which means are kept.

        Raises:
            InputError: a rule names a model or a row that is not there.
        """
        owners = tuple(
            Owner(self._known[m.reference], min(m.rows, t.shape[axis]), t, axis)
            for m, t in zip(models, stored, strict=True)
        )
        references = [m.reference for m in models]
        leader = references.index(base.reference) if base and base.reference in references else None
        rules = tuple(self._rule(rule, models, owners) for rule in self._policy.tokens if rule.zero or rule.model)
        return list(_align(self.vocabulary, self.rows, owners, base=leader, rules=rules, dtype=dtype))

    def _rule(self, rule: TokenRule, models: Sequence[Model], owners: Sequence[Owner]) -> _Rule:
        token = self.vocabulary.tokens[rule.token]
        if rule.zero:
            return _Rule(token, _ZERO, 0, rule.force)
        assert rule.model is not None
        reference = self._find(rule.model, rule.where).reference
        owner = next((i for i, m in enumerate(models) if m.reference == reference), None)
        if owner is None:
            problem = f"the row of {rule.token!r} comes from {rule.model}, which is not merged there"
            raise InputError(problem, "name a model of the slice", rule.where)
        tokens, rows = owners[owner].vocabulary.tokens, owners[owner].rows
        row = rule.row if isinstance(rule.row, int) else tokens.get(rule.row or rule.token, -1)
        if not 0 <= row < rows:
            missing = f"row {rule.row}" if isinstance(rule.row, int) else f"token {rule.row or rule.token!r}"
            raise InputError(f"{rule.model} has no {missing}", "name one that it has", rule.where)
        return _Rule(token, owner, row, rule.force)


@lru_cache(maxsize=64)
def _align(
    vocabulary: Vocabulary,
    rows: int,
    owners: tuple[Owner, ...],
    base: int | None,
    rules: tuple[_Rule, ...],
    dtype: str | None,
) -> tuple[TensorRef, ...]:
    """One matrix for each owner. Equal arguments mean equal matrices, so they are the key of these."""
    # Step 1: own_rows[k, i] = the row of owner k for output row i, -1 if it lacks the token
    own_rows = torch.stack([_own_rows(vocabulary, rows, o.vocabulary, o.rows) for o in owners])
    # Step 2: the owner and its row for an output row whose token a model lacks: by default, then by the recipe's rules
    source, row = _defaults(own_rows, base)
    forced = torch.zeros(rows, dtype=torch.bool)
    for rule in rules:
        source[rule.token], row[rule.token], forced[rule.token] = rule.owner, rule.row, rule.force
    real = torch.tensor(sorted(vocabulary.tokens.values()), dtype=torch.int64)
    # Step 3: each owner keeps its rows unless a rule forces others; a matrix that this does not change stays as stored
    aligned = []
    for number, owner in enumerate(owners):
        keep = (own_rows[number] >= 0) & ~forced
        unchanged = len(real) == rows == owner.size and bool((own_rows[number] == torch.arange(rows)).all())
        if unchanged and bool(keep.all()):
            aligned.append(owner.tensor)
            continue
        key = (vocabulary, rows, owners, base, rules, dtype, number)
        rebuilt = _rebuilt(
            key,
            owners,
            own_rows,
            source=torch.where(keep, number, source),
            row=torch.where(keep, own_rows[number], row),
            real=None if len(real) == rows else real,
            dtype=dtype,
        )
        aligned.append(TensorRef(rebuilt, rebuilt.shape, rebuilt.dtype))
    return tuple(aligned)


@lru_cache(maxsize=64)
def _own_rows(vocabulary: Vocabulary, rows: int, owner: Vocabulary, count: int) -> torch.Tensor:
    """For each output row the row of the same token in a model of `count` rows, -1 if the model lacks the token."""
    ids, own_rows = owner.tokens, torch.full((rows,), -1, dtype=torch.int64)
    pairs = [(i, ids[t]) for t, i in vocabulary.tokens.items() if ids.get(t, count) < count]
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    own_rows[table[:, 0]] = table[:, 1]
    return own_rows


def _defaults(own_rows: torch.Tensor, base: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """For each output row the owner (or `_ZERO`, `_MEAN`) whose row a model without the token takes, and that row.
    `own_rows` is [owners, output rows]."""
    has = own_rows >= 0
    count = has.sum(dim=0)
    source = torch.full(count.shape, _MEAN, dtype=torch.int64)
    if base is not None:
        source[has[base]] = base
    source = torch.where(count == 1, has.to(torch.int8).argmax(dim=0), source)
    source[count == 0] = _ZERO
    return source, own_rows.gather(0, source.clamp_min(0)[None])[0]


def _rebuilt(
    key: object,
    owners: Sequence[Owner],
    own_rows: torch.Tensor,
    *,
    source: torch.Tensor,
    row: torch.Tensor,
    real: torch.Tensor | None,
    dtype: str | None,
) -> RebuiltMatrix:
    """The matrix whose output row i is row `row[i]` of owner `source[i]`, or zeros, or a mean."""
    copied, averaged = [], []
    means = (source == _MEAN).nonzero().flatten()
    for number, owner in enumerate(owners):
        at = (source == number).nonzero().flatten()
        if len(at):
            copied.append(Picked(owner.tensor.operand, row[at], at))
        has = (own_rows[number][means] >= 0).nonzero().flatten()
        if len(has):
            averaged.append(Picked(owner.tensor.operand, own_rows[number][means[has]], has))
    blended = len(means) > 0 or real is not None
    dtypes = [*(o.tensor.dtype for o in owners), *([dtype] if dtype and blended else [])]
    axis = owners[0].axis
    return RebuiltMatrix(
        key=key,
        shape=_resized(owners[0].tensor.shape, axis, len(source)),
        dtype=promoted(dtypes),
        copied=tuple(copied),
        averaged=tuple(averaged),
        means=means if len(means) else None,
        real=real,
        axis=axis,
    )


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def truncated(stored: Sequence[TensorRef], axis: int = 0) -> list[TensorRef]:
    """Matrices of different vocabularies, all cut to the rows of the smallest: rows behind are lost, and rows that mean
    different tokens are mixed (mergekit 0.1.5, `--unsafe-truncate-embeddings`)."""
    rows = min(t.shape[axis] for t in stored)
    return [t if t.shape[axis] == rows else _truncated(t, axis, rows) for t in stored]


def _truncated(tensor: TensorRef, axis: int, rows: int) -> TensorRef:
    first, shape = torch.arange(rows), _resized(tensor.shape, axis, rows)
    copied = (Picked(tensor.operand, first, first),)
    key = ("truncated", tensor, axis, rows)
    return TensorRef(RebuiltMatrix(key, shape, tensor.dtype, copied, axis=axis), shape, tensor.dtype)


def promoted(dtypes: Sequence[str]) -> str:
    """The dtype that holds all of them, as torch promotes."""
    result: torch.dtype = getattr(torch, dtypes[0])
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, getattr(torch, dtype))
    return str(result).removeprefix("torch.")
