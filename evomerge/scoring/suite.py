"""All slices of a fitness file, built once and scored for every candidate."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from evomerge.errors import EvomergeError, InputError, TrialError, Where
from evomerge.files.objects import FitnessSpec
from evomerge.scoring.candidate import Candidate, TakesCandidate
from evomerge.scoring.guard import ExitCalled, undisturbed
from evomerge.scoring.slices import RESIDENT, ScoredSlice, SuiteInfo
from evomerge.scoring.splits import SIDES
from evomerge.types import Document, SliceScore, SplitName

if TYPE_CHECKING:
    from evomerge.scoring.serving.engine import ServingEngine
    from evomerge.scoring.serving.serving import Serving

T = TypeVar("T")

log = logging.getLogger(__name__)


class Suite:
    """Scores one resident model on the slices of a fitness file. Tasks and requests are built once; `score` costs the
    forward passes and the aggregation."""

    def __init__(
        self,
        fitness: FitnessSpec,
        slices: Mapping[str, ScoredSlice],
        model: Any,
        engine: ServingEngine | None = None,
    ) -> None:
        """`engine`: what answers some of the slices in place of the model."""
        self.fitness, self.slices, self._model, self.engine = fitness, dict(slices), model, engine
        sources = {id(slice_.source): slice_.source for slice_ in self.slices.values()}
        self.takers = [source for source in sources.values() if isinstance(source, TakesCandidate)]
        """The sources that have to be told of each candidate."""
        self.info = _info(self.slices, bool(fitness.traded))

    @classmethod
    def build(
        cls,
        fitness: FitnessSpec,
        model: Any,
        tokenizer: Any,
        split: SplitName = "search",
        serving: Serving | None = None,
    ) -> Suite:
        """Loads tasks and data, deals the items, resolves the metrics, and prepares the requests of `split`.

        With the search split, the holdout's requests are prepared, too; other splits' when they are first scored.

        Args:
            fitness: the fitness file.
            model: a transformers causal language model on its device. Its weights are not read here and may change.
            tokenizer: the model's tokenizer.
            split: the split that will be scored.
            serving: has an engine answer slices that ask for it; it is not started.

        Raises:
            InputError: something is wrong with the fitness file, a task or its data.
        """
        # lm-eval has to be there before the guard can silence its bars.
        importlib.import_module("lm_eval.models.huggingface")
        from evomerge.scoring.build import build_slices
        from evomerge.scoring.serving.serving import Serving

        try:
            with undisturbed():
                serving = serving or Serving()
                slices = build_slices(fitness, model, tokenizer, split, serving)
                return cls(fitness, slices, model, serving.engine)
        except ExitCalled as error:
            raise InputError(f"a task cannot be built: {error}", "mend its code", Where(fitness.file)) from error

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that the model has become."""
        for source in self.takers:
            source.become(candidate)

    def score(
        self,
        split: SplitName = "search",
        on_slice: Callable[[str], None] | None = None,
        items: Mapping[str, frozenset[str]] | None = None,
    ) -> dict[str, SliceScore]:
        """Scores the model's current weights.

        Args:
            split: the items that are scored.
            on_slice: called with each slice's name before it starts.
            items: slice name -> the items (`ItemScore.item`) that are scored. Slices that are not named are left out;
                slices of one pool have the same items. None: all slices, all items of the split.

        Raises:
            TrialError: a slice cannot be scored: out of memory, NaN, an error in a task's code.
        """
        self._model.eval()
        results: dict[tuple[int, frozenset[str] | None], Any] = {}
        scores: dict[str, SliceScore] = {}
        asked = [name for name in self.slices if items is None or items.get(name)]
        # Its slices come first: an engine that gives its memory to the model has to take the candidate again.
        for name in sorted(asked, key=lambda name: self.slices[name].info.engine == RESIDENT):
            if on_slice is not None:
                on_slice(name)
            names = items[name] if items is not None else None
            if self.slices[name].info.engine == RESIDENT:
                self._use_model()
            scores[name] = self._attempt(name, partial(_read, self.slices[name], split, names, results))
        return {name: scores[name] for name in asked}

    def proxy_loss(
        self,
        name: str,
        items: frozenset[str],
        backward: bool = False,
        share: float = 1.0,
        checkpointing: bool = False,
    ) -> float:
        """Computes a slice's proxy loss with the model's current weights; lower is better. `ProxyLoss.value` describes
        its units.

        Args:
            name: the slice.
            items: items (`ItemScore.item`) of its search split.
            backward: also backpropagate. Each micro-batch's part is backpropagated as soon as its forward pass is
                done. The caller sets `requires_grad`; the gradients that hooks on parameters get add up to `share`
                times the gradient of the loss.
            share: what the gradient is multiplied by.
            checkpointing: layers keep their inputs only and run a second time: less memory, a third more time.

        Raises:
            TrialError: as in `score`.
            ValueError: the slice has no proxy loss (`SliceInfo.no_proxy_loss`).
        """
        loss, reason = self.slices[name].proxy_loss, self.slices[name].info.no_proxy_loss
        if loss is None:
            raise ValueError(f"slice {name} has no proxy loss: {reason}")
        self._model.eval()
        self._use_model()
        if backward:
            return self._attempt(name, partial(loss.backward, items, share, checkpointing))
        return self._attempt(name, partial(loss.value, items))

    def lacks_answers(self, name: str) -> bool:
        """Whether a slice's proxy loss needs a source's answers, and has none yet."""
        loss = self.slices[name].proxy_loss
        return loss is not None and loss.lacks_answers

    def learn(self, name: str) -> None:
        """Takes what the model writes with its current weights as the right answers of a slice's proxy loss. TrialError
        as in `score`."""
        loss = self.slices[name].proxy_loss
        assert loss is not None
        self._model.eval()
        self._attempt(name, loss.learn)

    def close(self) -> None:
        """Ends the engine, if there is one."""
        if self.engine is not None:
            self.engine.close()

    def indices(self, name: str, split: SplitName = "search") -> dict[str, list[int]]:
        """Maps each leaf task of a slice to its documents in a split, as positions in the task's order, ascending."""
        deal = self.slices[name].source.deal
        leaves = dict.fromkeys(item.task for item in deal.items(split))
        return {leaf: deal.indices(split, leaf) for leaf in leaves}

    def items_digest(self) -> dict[str, str]:
        """Maps each slice to a sha256 over its items' content, their sides and the task's prompts. Scores of a resumed
        run are comparable only if it is the same."""
        return {name: slice_.source.digest() for name, slice_ in self.slices.items()}

    def documents(self, most: int) -> dict[str, list[Document]]:
        """What people read of the items of both splits, by slice: of at most `most` items, the same share of each
        slice. No weight is read."""
        share = max(1, most // max(1, len(self.slices)))
        with undisturbed():
            return {
                name: [d for split in SIDES for d in islice(slice_.source.documents(split), share // 2)]
                for name, slice_ in self.slices.items()
            }

    def doubts(self) -> list[str]:
        """What tasks probably do otherwise than their authors meant, a line each."""
        return list(dict.fromkeys(line for slice_ in self.slices.values() for line in slice_.info.doubts))

    def _use_model(self) -> None:
        """Has the engine give its memory back, if the model needs it."""
        if self.engine is not None:
            self.engine.rest()

    def _attempt(self, name: str, run: Callable[[], T]) -> T:
        """Runs `run` for the slice `name`. Raises TrialError for any error in it."""
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
                # Below a warning: the traceback goes to the run's log, not to the screen.
                log.info("slice %s cannot be scored", name, exc_info=True)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        # Here the failed call's frames, and the tensors in them, are gone.
        _free_memory()
        raise TrialError(f"slice {name}: {reason}")


def _info(slices: Mapping[str, ScoredSlice], front: bool) -> SuiteInfo:
    pools: dict[int, list[str]] = {}
    for name, slice_ in slices.items():
        pools.setdefault(id(slice_.source), []).append(name)
    infos = {name: slice_.info for name, slice_ in slices.items()}
    return SuiteInfo(infos, tuple(tuple(names) for names in pools.values()), front)


def _read(
    slice_: ScoredSlice,
    split: SplitName,
    names: frozenset[str] | None,
    results: dict[tuple[int, frozenset[str] | None], Any],
) -> SliceScore:
    """Scores one slice, out of `results` where an earlier slice shared the pass."""
    key = id(slice_.source), names
    if key not in results:
        results[key] = slice_.source.run(split, names)
    return slice_.read(results[key])


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation on the host or on a device failed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
