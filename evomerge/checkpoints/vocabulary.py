"""Builds the vocabulary of a merged model from the tokenizers of its sources (mergekit 0.1.5, `tokenizer.build`).

A `Vocabulary` is a value: two that are equal have the same tokens under the same ids. Tokenizers are loaded with
transformers, once for each folder, and never run code from it.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from evomerge.checkpoints.checkpoint import VOCABULARY_FILES
from evomerge.checkpoints.tokenizer import load_tokenizer, stamp
from evomerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Added:
    """A token that is added to a tokenizer, with the settings that decide its matches in a text."""

    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of `folder`, without its tokens from id `limit` on, with the tokens `added`. `stamp`: a key of the
    state of the folder's files."""

    folder: Path
    limit: int | None = None
    added: tuple[Added, ...] = ()
    stamp: Hashable = None

    @classmethod
    def of(cls, folder: Path) -> Vocabulary:
        """A folder's tokenizer as it is now."""
        return cls(folder, stamp=stamp(folder))

    @property
    def missing(self) -> bool:
        """Whether the folder has no tokenizer at all."""
        return not self.stamp

    @property
    def as_stored(self) -> bool:
        """Whether it is the folder's tokenizer as it is."""
        return self.limit is None and not self.added

    @property
    def tokens(self) -> Mapping[str, int]:
        """Token -> id, in the order of the ids. Raises InputError if the tokenizer cannot be loaded."""
        return _facts(self)[0]

    @property
    def marked(self) -> Mapping[str, Added]:
        """Its added tokens, by text, in the order of their ids."""
        return _facts(self)[1]

    @property
    def rows(self) -> int:
        """The rows of a matrix with a row for every id."""
        return _facts(self)[2]

    @property
    def readable(self) -> bool:
        """Whether the folder has a tokenizer. InputError if it has the files of one that cannot be loaded."""
        try:
            return bool(_facts(self))
        except InputError:
            if any((self.folder / name).is_file() for name in VOCABULARY_FILES):
                raise
            return False

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises InputError if it cannot be loaded, or cannot lose its unused tokens."""
        tokenizer = load_tokenizer(self.folder)
        if self.limit is not None:
            _strip(tokenizer, self.limit, self.folder)
        if self.added:
            from tokenizers import AddedToken

            tokenizer.add_tokens([AddedToken(**vars(token)) for token in self.added])
        return tokenizer


@lru_cache(maxsize=64)
def _facts(vocabulary: Vocabulary) -> tuple[Mapping[str, int], Mapping[str, Added], int]:
    """`Vocabulary.tokens`, `marked` and `rows`."""
    tokenizer = vocabulary.load()
    tokens = dict(sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]))
    marked = {
        t.content: Added(t.content, t.special, t.normalized, t.lstrip, t.rstrip, t.single_word)
        for _, t in sorted(tokenizer.added_tokens_decoder.items())
    }
    return MappingProxyType(tokens), MappingProxyType(marked), max(tokens.values(), default=-1) + 1


@lru_cache(maxsize=64)
def without_unused(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """The vocabulary without tokens that have no row in a model of `rows` rows."""
    tokens = vocabulary.tokens
    if all(i < rows for i in tokens.values()):
        return vocabulary
    added = tuple(token for token in vocabulary.added if tokens[token.content] < rows)
    return replace(vocabulary, limit=rows, added=added)


@lru_cache(maxsize=64)
def union(base: Vocabulary, others: tuple[tuple[Vocabulary, int], ...]) -> Vocabulary:
    """The base's tokens under their ids; then the other tokens of `others`, in their order, by id; then tokens that
    these mark as added. Each of `others` comes with the rows of its model: ids from there on are no tokens."""
    base_tokens, base_marked = base.tokens, base.marked
    marked: dict[str, Added] = {}
    plain: dict[str, None] = {}
    for vocabulary, rows in others:
        tokens = vocabulary.tokens
        plain.update(dict.fromkeys(token for token, i in tokens.items() if i < rows))
        for token, settings in vocabulary.marked.items():
            if tokens[token] < rows:
                marked.setdefault(token, settings)
    new = [Added(t) for t in plain if t not in base_tokens and t not in marked]
    return extended(base, [*new, *(a for t, a in marked.items() if t not in base_marked)])


def extended(vocabulary: Vocabulary, added: Sequence[Added]) -> Vocabulary:
    """The vocabulary with further tokens behind it."""
    return replace(vocabulary, added=(*vocabulary.added, *added)) if added else vocabulary


def _strip(tokenizer: PreTrainedTokenizerBase, limit: int, folder: Path) -> None:
    """Take the tokens from id `limit` on out of a fast tokenizer, and the merges that need them."""
    from tokenizers import Tokenizer

    problem = f"{folder}: its tokenizer has tokens that its model has no row for (ids from {limit} on)"
    if not tokenizer.is_fast:
        raise InputError(problem, "remove them, or save it as a fast tokenizer (tokenizer.json)")
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model, removed = data["model"], {t for t, i in tokenizer.get_vocab().items() if i >= limit}
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < limit]
    inner = removed & set(model["vocab"]) if isinstance(model["vocab"], dict) else len(model["vocab"]) > limit
    if inner:
        if model["type"] != "BPE":
            raise InputError(
                problem, f"remove them; evomerge can do it for BPE tokenizers, this one is {model['type']}"
            )
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in removed}
        model["merges"] = [m for m in model["merges"] if not removed & _tokens_of(m)]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))
    # A special token that is named but not there would be added again on loading.
    for role, token in tokenizer.special_tokens_map.items():
        if token in removed:
            setattr(tokenizer, role, None)
    extra = getattr(tokenizer, "extra_special_tokens", None) or []
    tokenizer.extra_special_tokens = [token for token in extra if str(token) not in removed]


def _tokens_of(merge: str | list[str]) -> set[str]:
    """The two tokens of a BPE merge, and the token that it makes."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return {*parts, "".join(parts)}
