"""Scores slices by a Python function of the user: ``python: module:function``, with the items of a JSONL file."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

from evomerge.errors import TrialError
from evomerge.escape import excerpt, quoted
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.merging.resident.built import BuiltModel
from evomerge.scoring.item_files import cluster_names, deal_items
from evomerge.scoring.preflight import SCORER_TAKES, check_callable
from evomerge.scoring.python.functions import UserFunction, script_digest
from evomerge.scoring.python.untouched import FreshTokenizer, untouched
from evomerge.scoring.splits import SIDES, Deal, item_key, labels
from evomerge.scoring.stats.aggregation import ItemMean, MeanKind
from evomerge.types import Document, ItemScore, SliceScore, SplitName

MOST_CHARACTERS = 2000
"""Of an item that is kept for people."""


class CallablePass:
    """Calls a scorer on its items, which are loaded and dealt once. Slices with the same data file share the deal, so
    that no item is on the search side of one and on the holdout side of another."""

    def __init__(self, fitness: FitnessSpec, spec: SliceSpec, model: Any, tokenizer: Any) -> None:
        """`model`: a transformers model, or a `BuiltModel`, whose model the scorer gets. InputError where the scorer or
        its items cannot be loaded."""
        self._items = check_callable(spec)
        assert spec.python is not None  # check_callable checked both
        assert spec.data is not None
        self.spec, self._model, self._builder = spec, model, fitness.model
        self._tokenizer = FreshTokenizer(tokenizer)  # a scorer's changes must not reach the next slice
        self._score = UserFunction(spec.python, SCORER_TAKES)
        self._labels = labels([item_key(item) for item in self._items])
        named = [] if spec.cluster is None else zip(self._labels, cluster_names(spec, self._items), strict=True)
        self.clusters: dict[str, str] = dict(named)
        self._task = spec.data.name
        self.deal: Deal = deal_items(fitness, spec, self._items)

    @property
    def sign(self) -> int:
        return -1 if self.spec.direction == "lower" else 1

    @property
    def aggregation(self) -> ItemMean:
        return ItemMean(MeanKind(self.sign))

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, in the order in which they are reported."""
        return tuple(self._labels[i] for i in self.deal.indices(split, self._task))

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> None:
        """Does nothing: a scorer makes its own prompts."""

    def documents(self, split: SplitName) -> Iterator[Document]:
        """What people read of the items of a split: the rows of the file."""
        for at in self.deal.indices(split, self._task):
            text = json.dumps(self._items[at], ensure_ascii=False, indent=1, default=str)
            yield Document(self._labels[at], split, at, excerpt(text, MOST_CHARACTERS))

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """Calls the scorer on a split's items (only those in `names`) with the current weights. TrialError where it
        fails, its answer is unusable, or it changed what other slices depend on."""
        indices = [i for i in self.deal.indices(split, self._task) if names is None or self._labels[i] in names]
        scores = self._call([copy.deepcopy(self._items[i]) for i in indices])
        names_and_scores = zip((self._labels[i] for i in indices), scores, strict=True)
        items = [ItemScore(n, score, 1.0, score, self.clusters.get(n)) for n, score in names_and_scores]
        return self.aggregation.score(items)

    def _call(self, items: list[dict[str, Any]]) -> list[float]:
        name, count = self._score.ref.name, len(items)
        model = self._model.model if isinstance(self._model, BuiltModel) else self._model
        with untouched(self._model, name):
            scores: list[float] = self._score(
                model, self._tokenizer.get(), items, read=lambda a: numbers(a, count, name), timeout=self.spec.timeout
            )
        return scores

    def digest(self) -> str:
        """sha256 over the scorer's file, the file that builds the model, the items and the side of each."""
        code = [script_digest(ref) for ref in (self._score.ref, self._builder) if ref is not None]
        parts = [*code, [[side, sorted(item.key for item in self.deal.items(side))] for side in SIDES]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def numbers(answer: Any, n: int, name: str) -> list[float]:
    """Turns a scorer's answer into n finite numbers. TrialError, saying what is wrong, where it is something else."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, str | bytes | dict | set) or not hasattr(answer, "__iter__"):
        raise TrialError(f"{name} returned {type(answer).__name__}, expected one number per item")
    values = list(itertools.islice(answer, n + 1))  # an answer may be endless
    if len(values) != n:
        count = len(answer) if hasattr(answer, "__len__") else "more" if len(values) > n else len(values)
        raise TrialError(f"{name} returned {count} scores for {n} items")
    scores = []
    for index, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise TrialError(f"{name} returned {quoted(value, 80)} for item {index}, not a finite number")
        scores.append(number)
    return scores
