"""The workbench: one resident model, the sources beside it, the tasks built once. A recipe in, scores out."""

from __future__ import annotations

import time
from collections.abc import Callable

from evomerge.merge.bank import SourceBank
from evomerge.merge.materialize import Resident
from evomerge.merge.plan import plan as planned
from evomerge.merge.tokenizers import output_tokenizer
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.suite import Suite
from evomerge.study.measured import Evaluation
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan
from evomerge.types import SplitName


class Workbench:
    """Everything that evaluating a candidate needs, loaded once."""

    def __init__(self, resident: Resident, suite: Suite) -> None:
        self.resident, self.suite = resident, suite

    @classmethod
    def load(cls, plan: Plan, device: str, observer: Observer) -> Workbench:
        """Load sources and tasks. Raises InputError, for NaN in a source among other things."""
        for line in plan.tokens.dropped:
            observer.warn(line)
        for line in plan.tokens.filled:
            observer.phase(line)
        observer.phase("loading the base and its sources")
        bank = SourceBank()
        for checkpoint in plan.checkpoints.values():
            bank.load(bank.add(checkpoint).reference)
        resident = Resident(plan.base, bank, plan.space.models.dtype, device)
        average = plan.space.uniform()
        resident.tokenizer = output_tokenizer(average.output, planned(average, bank.open)).load()
        if plan.space.models.tokenizer is not None:
            resident.materialize(average)  # gives the model the output's vocabulary
        observer.phase("building the tasks")
        suite = Suite.build(plan.fitness, resident.model, resident.tokenizer)
        return cls(resident, suite)

    def evaluate(self, recipe: Recipe, split: SplitName, on_slice: Callable[[str], None]) -> Evaluation:
        """Materialize `recipe` in place and score it. Raises TrialError."""
        started = time.perf_counter()
        digest = self.resident.materialize(recipe)
        merged = time.perf_counter()
        scores = self.suite.score(split, on_slice)
        ended = time.perf_counter()
        return Evaluation(scores, digest, {"materialize": merged - started, "score": ended - merged})
