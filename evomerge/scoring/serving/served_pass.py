"""A task's items that are asked of an engine."""

from __future__ import annotations

from typing import Any

from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.candidate import Candidate
from evomerge.scoring.tasks.library import TaskSet
from evomerge.scoring.tasks.passes import TaskPass


class ServedPass(TaskPass):
    """Asks an engine about a task's items. The resident model is asked for what an engine cannot give: slopes."""

    def __init__(self, fitness: FitnessSpec, spec: SliceSpec, tasks: TaskSet, lm: Any, served: Any) -> None:
        """`lm`: the `ResidentLM`; `served`: the `ServedLM`, by which the items are asked."""
        super().__init__(fitness, spec, tasks, lm)
        self.asked = served

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that the model has become."""
        self.asked.engine.become(candidate.recipe, candidate.digest)
