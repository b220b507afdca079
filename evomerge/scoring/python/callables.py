"""Scores slices by a Python function of the user: ``python: module:function``, with the items of a JSONL file."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

from evomerge.errors import TrialError
from evomerge.escape import quoted
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.merging.resident.built import BuiltModel
from evomerge.scoring.file_pass import FilePass
from evomerge.scoring.preflight import SCORER_TAKES, check_scorer
from evomerge.scoring.python.functions import UserFunction, script_digest
from evomerge.scoring.python.untouched import FreshTokenizer, untouched
from evomerge.types import SliceScore, SplitName


class CallablePass(FilePass):
    """Calls a scorer on the items of its file."""

    def __init__(self, fitness: FitnessSpec, spec: SliceSpec, model: Any, tokenizer: Any) -> None:
        """`model`: a transformers model, or a `BuiltModel`, whose model the scorer gets. InputError where the scorer or
        its items cannot be loaded."""
        super().__init__(fitness, spec, check_scorer(spec))
        assert spec.python is not None  # the builder chose by it
        self._model, self._builder = model, fitness.model
        self._tokenizer = FreshTokenizer(tokenizer)  # a scorer's changes must not reach the next slice
        self._score = UserFunction(spec.python, SCORER_TAKES)

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """Calls the scorer on a split's items (only those in `names`) with the current weights. TrialError where it
        fails, its answer is unusable, or it changed what other slices depend on."""
        rows = self.rows(split, names)
        scores = self._call([copy.deepcopy(self.items[row]) for row in rows])
        return self.aggregation.score([self.scored(row, score) for row, score in zip(rows, scores, strict=True)])

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
        return self.digest_with([script_digest(ref) for ref in (self._score.ref, self._builder) if ref is not None])


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
