"""Slices scored by a Python function of the user's: ``python: module:function``, with the items of a JSONL file."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from typing import Any

from evomerge.errors import TrialError
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.merging.resident.built import BuiltModel
from evomerge.scoring.item_files import cluster_names, deal_items
from evomerge.scoring.preflight import SCORER_TAKES, check_callable
from evomerge.scoring.python.functions import UserFunction, script_digest
from evomerge.scoring.python.untouched import untouched
from evomerge.scoring.splits import SIDES, Deal, item_key, labels
from evomerge.scoring.stats.aggregation import ItemMean, MeanKind
from evomerge.types import ItemScore, SliceScore, SplitName


class CallablePass:
    """A scorer with its items, loaded and dealt once. Two slices with the same data file share its deal, so that
    no item is on the search side of one and on the holdout side of the other."""

    def __init__(self, fitness: FitnessSpec, piece: SliceSpec, model: Any, tokenizer: Any) -> None:
        """`model` is a transformers model, or a `BuiltModel`, whose model the scorer gets. InputError where the scorer
        or its items cannot be loaded."""
        self._items = check_callable(piece)
        assert piece.python is not None  # check_callable saw them
        assert piece.data is not None
        self.piece, self._model, self._builder = piece, model, fitness.model
        self._tokenizer = copy.deepcopy(tokenizer)  # what a scorer does to it is not the next slice's
        self._score = UserFunction(piece.python, SCORER_TAKES)
        self._labels = labels([item_key(item) for item in self._items])
        named = [] if piece.cluster is None else zip(self._labels, cluster_names(piece, self._items), strict=True)
        self.clusters: dict[str, str] = dict(named)
        self._task = piece.data.name
        self.deal: Deal = deal_items(fitness, piece, self._items)

    @property
    def sign(self) -> int:
        return -1 if self.piece.direction == "lower" else 1

    @property
    def aggregation(self) -> ItemMean:
        return ItemMean(MeanKind(self.sign))

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, in the order in which they are reported."""
        return tuple(self._labels[i] for i in self.deal.indices(split, self._task))

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> None:
        """Nothing: a scorer makes its own prompts."""

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """Call the scorer on a split's items (of them, those in `names`) with the weights the model has now.
        TrialError where it fails, its answer is unusable, or it changed the weights."""
        chosen = self.deal.indices(split, self._task)
        indices = [i for i in chosen if names is None or self._labels[i] in names]
        scores = self._call([copy.deepcopy(self._items[i]) for i in indices])
        names_and_scores = zip((self._labels[i] for i in indices), scores, strict=True)
        items = [ItemScore(n, score, 1.0, score, self.clusters.get(n)) for n, score in names_and_scores]
        return self.aggregation.score(items)

    def _call(self, items: list[dict[str, Any]]) -> list[float]:
        name, count = self._score.ref.name, len(items)
        model = self._model.model if isinstance(self._model, BuiltModel) else self._model
        with untouched(self._model, name):
            scores: list[float] = self._score(model, self._tokenizer, items, read=lambda a: numbers(a, count, name))
        return scores

    def digest(self) -> str:
        """sha256 over the scorer's file, that of what builds the model, the items and the side each was dealt to."""
        code = [script_digest(ref) for ref in (self._score.ref, self._builder) if ref is not None]
        parts = [*code, [[side, sorted(item.key for item in self.deal.items(side))] for side in SIDES]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def numbers(answer: Any, n: int, name: str) -> list[float]:
    """A scorer's answer as n finite numbers. TrialError, saying what is wrong, where it is something else."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, str | bytes | dict | set) or not hasattr(answer, "__iter__"):
        raise TrialError(f"{name} returned {type(answer).__name__}, expected one number per item")
    values = list(answer)
    if len(values) != n:
        raise TrialError(f"{name} returned {len(values)} scores for {n} items")
    scores = []
    for index, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TrialError(f"{name} returned {value!r} for item {index}, not a finite number")
        scores.append(number)
    return scores
