"""All slices of a fitness file, built once and scored for every candidate."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from evomerge.errors import EvomergeError, TrialError
from evomerge.files.objects import FitnessSpec
from evomerge.scoring.guard import undisturbed
from evomerge.scoring.slices import Slice, SliceInfo, SuiteInfo
from evomerge.types import ItemScore, SliceScore, SplitName

T = TypeVar("T")

log = logging.getLogger(__name__)


class Suite:
    """The slices of a fitness file over one resident model. Task objects and requests are built once; `score`
    costs the forward passes and the aggregation."""

    def __init__(self, fitness: FitnessSpec, slices: Mapping[str, Slice], model: Any) -> None:
        self.fitness, self.slices, self._model = fitness, dict(slices), model

    @classmethod
    def build(cls, fitness: FitnessSpec, model: Any, tokenizer: Any, split: SplitName = "search") -> Suite:
        """Load tasks and data, deal the items, resolve the metrics, and prepare the requests of `split`.

        `model` is a transformers causal language model on its device; its weights may change afterwards, and are
        not looked at here. A search's holdout requests are prepared, too; other splits' when they are first scored.
        Raises InputError for whatever is wrong with the fitness file, a task or its data.
        """
        # lm-eval has to be there before the guard can silence its bars.
        importlib.import_module("lm_eval.models.huggingface")
        from evomerge.scoring.build import build_slices

        with undisturbed():
            return cls(fitness, build_slices(fitness, model, tokenizer, split), model)

    @property
    def weights(self) -> dict[str, float]:
        """Slice name -> weight, as the objectives take them."""
        return {name: piece.weight for name, piece in self.slices.items()}

    @property
    def outline(self) -> SuiteInfo:
        groups: dict[int, list[str]] = {}
        for name, piece in self.slices.items():
            groups.setdefault(id(piece.source), []).append(name)
        pieces = {
            s.name: SliceInfo(
                s.name, s.sign, s.metric, s.weight, s.floor, s.mixture, s.source.names("search"), s.no_surrogate
            )
            for s in self.slices.values()
        }
        return SuiteInfo(pieces, tuple(tuple(group) for group in groups.values()))

    def score(
        self,
        split: SplitName = "search",
        on_slice: Callable[[str], None] | None = None,
        chosen: Mapping[str, frozenset[str]] | None = None,
    ) -> dict[str, SliceScore]:
        """Score the model's current weights on every slice; `on_slice` is told each slice's name before it starts.

        With `chosen`, only the slices that it names are asked, each for the items (`ItemScore.item`) that it gives;
        slices of one pool are given the same. The scores are then those of these items.
        Raises TrialError where a slice cannot be scored: out of memory, NaN, an error in a task's code.
        """
        self._model.eval()
        results: dict[tuple[int, frozenset[str] | None], Any] = {}
        scores: dict[str, SliceScore] = {}
        for name, piece in self.slices.items():
            if chosen is not None and not chosen.get(name):
                continue
            if on_slice is not None:
                on_slice(name)
            names = chosen[name] if chosen is not None else None
            scores[name] = self._attempt(piece, partial(_read, piece, split, names, results))
        return scores

    def surrogate(
        self,
        name: str,
        items: frozenset[str],
        backward: bool = False,
        share: float = 1.0,
        checkpointing: bool = False,
    ) -> float:
        """A smooth stand-in for a slice's metric on some items (`ItemScore.item`) of the search split, with the model's
        current weights; lower is better. See `surrogates.Surrogate.value` for its units.

        With `backward`, each micro-batch's part of it, times `share`, is backpropagated as soon as its forward pass is
        done: what hooks on parameters, whose `requires_grad` is the caller's, are given adds up to `share` times the
        gradient. With `checkpointing`, layers keep their inputs only and run a second time: less memory, a third more
        time. Raises TrialError as `score` does, and ValueError where the slice has none (`no_surrogate`).
        """
        piece = self.slices[name]
        if piece.surrogate is None:
            raise ValueError(f"slice {name} has no surrogate: {piece.no_surrogate}")
        self._model.eval()
        if backward:
            return self._attempt(piece, partial(piece.surrogate.backward, items, share, checkpointing))
        return self._attempt(piece, partial(piece.surrogate.value, items))

    def total(self, name: str, items: Mapping[str, ItemScore]) -> SliceScore:
        """The score of a slice whose items were asked in pieces, all of them by now."""
        piece = self.slices[name]
        assert piece.total is not None  # only slices with a mixture are asked in pieces
        return piece.total([items[item] for item in piece.source.names("search")])

    def indices(self, name: str, split: SplitName = "search") -> dict[str, list[int]]:
        """The documents of a slice's split: leaf task -> positions in the task's own order, ascending."""
        deal = self.slices[name].source.deal
        leaves = dict.fromkeys(item.task for item in deal.items(split))
        return {leaf: deal.indices(split, leaf) for leaf in leaves}

    def items_digest(self) -> dict[str, str]:
        """Per slice, a sha256 over its items' content, their dealing, and the task's prompts: a resumed run that
        finds another one would compare scores that are not comparable."""
        return {name: piece.source.digest() for name, piece in self.slices.items()}

    def _attempt(self, piece: Slice, run: Callable[[], T]) -> T:
        """What `run` finds out of a slice. TrialError for whatever goes wrong."""
        try:
            with undisturbed():
                return run()
        except TrialError as error:
            reason = str(error)
        except EvomergeError:
            raise
        except Exception as error:
            if out_of_memory(error):
                reason = f"out of memory at batch_size {self.fitness.batch_size}; give the fitness file a smaller one"
            else:
                log.exception("slice %s cannot be scored", piece.name)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        # Here the failed call's frames, and the tensors in them, are gone.
        _free_memory()
        raise TrialError(f"slice {piece.name}: {reason}")


def _read(
    piece: Slice,
    split: SplitName,
    names: frozenset[str] | None,
    results: dict[tuple[int, frozenset[str] | None], Any],
) -> SliceScore:
    """One slice's score, out of `results` where a slice before it shared the pass."""
    key = id(piece.source), names
    if key not in results:
        results[key] = piece.source.run(split, names)
    return piece.read(results[key])


def out_of_memory(error: BaseException) -> bool:
    """Whether a host or device allocation failed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
