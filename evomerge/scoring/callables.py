"""Slices scored by a Python function of the user's: ``python: module:function``, with the items of a JSONL file."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, TrialError, Where
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.mixture import Mixture
from evomerge.scoring.preflight import check_callable
from evomerge.scoring.splits import SIDES, Deal, deal_all, item_key, labels
from evomerge.scoring.statistics import weighted_mean_stderr
from evomerge.scoring.suite import out_of_memory
from evomerge.types import ItemScore, SliceScore, SplitName

log = logging.getLogger(__name__)

Scorer = Callable[[Any, Any, list[dict[str, Any]]], Sequence[float]]
"""``(model, tokenizer, items) -> one score per item``."""


class CallablePass:
    """A scorer with its items, loaded and dealt once. Two slices with the same data file share its deal, so that
    no item is on the search side of one and on the holdout side of the other."""

    def __init__(self, fitness: FitnessSpec, piece: SliceSpec, model: Any, tokenizer: Any) -> None:
        check_callable(piece)
        assert piece.data is not None  # check_callable saw them
        assert piece.script is not None
        self.piece, self._model, self._tokenizer = piece, model, tokenizer
        self._score, self._script = load_scorer(piece.script, piece), piece.script
        self._items = read_items(piece.data)
        keys = [item_key(item) for item in self._items]
        self._labels = labels(keys)
        self._task = piece.data.name
        self.deal: Deal = deal_all({self._task: keys}, fitness.split_seed, fitness.search, piece.items)

    @property
    def sign(self) -> int:
        return -1 if self.piece.direction == "lower" else 1

    @property
    def mixture(self) -> Mixture:
        """A callable's score is the mean of its items'."""
        return Mixture(self.sign)

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, in the order in which they are reported."""
        return tuple(self._labels[i] for i in self.deal.indices(split, self._task))

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> None:
        """Nothing: a scorer makes its own prompts."""

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """Call the scorer on a split's items (of them, those in `names`) with the weights the model has now.
        TrialError where it fails or its answer is unusable."""
        import torch

        chosen = self.deal.indices(split, self._task)
        indices = [i for i in chosen if names is None or self._labels[i] in names]
        with torch.no_grad():
            scores = self._call([copy.deepcopy(self._items[i]) for i in indices])
        field = self.piece.cluster
        clusters = [None if field is None else str(self._items[i].get(field)) for i in indices]
        about = zip(indices, scores, clusters, strict=True)
        return self.total([ItemScore(self._labels[i], score, 1.0, score, c) for i, score, c in about])

    def total(self, items: Sequence[ItemScore]) -> SliceScore:
        """The score of items that were scored at once or in pieces."""
        scores = [float(item.raw) for item in items]
        error = weighted_mean_stderr(scores, clusters=[item.cluster for item in items])
        return SliceScore(self.sign * math.fsum(scores) / len(scores), error, tuple(items))

    def _call(self, items: list[dict[str, Any]]) -> list[float]:
        name, count = self.piece.python, len(items)
        try:
            answer = self._score(self._model, self._tokenizer, items)
        except Exception as error:
            if out_of_memory(error):
                raise
            log.exception("%s raised", name)
            raise TrialError(f"{name} raised {type(error).__name__}: {error}") from error
        return numbers(answer, count, str(name))

    def digest(self) -> str:
        """sha256 over the scorer's file, the items and the side each was dealt to."""
        code = hashlib.sha256(self._script.read_bytes()).hexdigest()
        parts = [code, [[side, sorted(item.key for item in self.deal.items(side))] for side in SIDES]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def numbers(answer: Any, n: int, name: str) -> list[float]:
    """A scorer's answer as n finite numbers. TrialError, saying what is wrong, where it is something else."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, str | bytes | dict) or not hasattr(answer, "__iter__"):
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


def load_scorer(file: Path, piece: SliceSpec) -> Scorer:
    """The function that a slice names, from its file, which may import its neighbours."""
    private = f"evomerge_fitness_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(private, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} cannot be loaded", "name a Python file", piece.at("python"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        scorer: Scorer = getattr(module, piece.function)
    except Exception as error:
        problem = f"{piece.python} cannot be loaded ({type(error).__name__}: {error})"
        raise InputError(problem, f"mend {file}", piece.at("python")) from error
    finally:
        sys.path.remove(str(file.parent))
    if not callable(scorer):
        raise InputError(f"{piece.python} is not callable", "name a function", piece.at("python"))
    return scorer


def read_items(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. InputError, with the line, where a line is not one."""
    items = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"is not JSON ({error.msg})", "write one object a line", Where(path, number)) from None
            if not isinstance(item, dict):
                raise InputError("is not a JSON object", "write one object a line", Where(path, number))
            items.append(item)
    return items
