"""Reads a recipe's `tokenizer` block or `tokenizer_source` (mergekit 0.1.5, `mergekit.tokenizer.config`)."""

from __future__ import annotations

from evomerge.files.nodes import Node
from evomerge.recipe.keys import ROW, TOKEN, TOKENIZER
from evomerge.recipe.recipe import TokenizerPolicy, TokenRule
from evomerge.recipe.values import is_set, reference

_MOST_PADDING = 65_536
"""Rows. Kernels want multiples of 8 to 512."""


def tokenizer_policy(parts: dict[str, Node]) -> TokenizerPolicy | None:
    """The tokenizer policy in a document's keys, or None. Raises InputError."""
    block, source = parts.get("tokenizer"), parts.get("tokenizer_source")
    if block is None or block.value is None:
        return (
            None if source is None or source.value is None else TokenizerPolicy(reference(source), where=source.where)
        )
    if is_set(source):
        block.fail("stands beside tokenizer_source", "keep one of the two")
    inner = block.declared(TOKENIZER)
    tokens = inner["tokens"].mapping() if is_set(inner.get("tokens")) else {}
    return TokenizerPolicy(
        source=reference(inner["source"]) if is_set(inner.get("source")) else "union",
        tokens=tuple(_rule(token, node) for token, node in tokens.items()),
        pad_to_multiple_of=_multiple(inner.get("pad_to_multiple_of")),
        where=block.where,
    )


def _multiple(node: Node | None) -> int | None:
    if node is None or node.value is None:
        return None
    multiple = node.integer(1)
    if multiple > _MOST_PADDING:
        node.fail(f"{multiple:,} adds up to as many rows to the vocabulary", f"give at most {_MOST_PADDING:,}")
    return multiple


def _rule(token: str, node: Node) -> TokenRule:
    if not token:
        node.fail("an empty text is no token", "name a token")
    parts = node.declared(TOKEN)
    force = parts["force"].boolean() if is_set(parts.get("force")) else False
    source = parts.get("source")
    if source is None or source.value is None:
        if force:
            node.fail("is forced without a source", "add source: a model, or {kind: zero}")
        return TokenRule(token, where=node.where)
    kind = source.value.get("kind") if isinstance(source.value, dict) else None
    if kind is None:
        return TokenRule(token, reference(source), force=force, where=node.where)
    if kind.one_of(("zero", "model_token"), "kind") == "zero":
        source.mapping(["kind"], ())
        return TokenRule(token, zero=True, force=force, where=node.where)
    return TokenRule(token, *_row(source), force=force, where=node.where)


def _row(node: Node) -> tuple[str, str | int]:
    """The model of a rule, and its token (by text or id)."""
    parts = node.declared(ROW)
    named = [key for key in ("token", "token_id") if is_set(parts.get(key))]
    if len(named) != 1:
        node.fail("needs exactly one of token and token_id", "say which row of the model is meant")
    row = parts["token"].text() if named == ["token"] else parts["token_id"].integer(0)
    return reference(parts["model"]), row
