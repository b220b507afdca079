"""The engine of one suite: who is answered by it, and when it runs."""

from __future__ import annotations

from typing import Any

from evomerge.errors import InputError
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.serving.choice import Servable, installed, is_chosen, obstacle
from evomerge.scoring.serving.engine import EngineMemory, ServingEngine
from evomerge.scoring.tasks.library import TaskSet

_CROWDED = "there is too little memory for vLLM beside the model and its sources"
_LONGEST = 32_768
"""Tokens of a sequence, at most, where it is not known what will be asked."""


class Serving:
    """Makes the engine once a slice needs it. Slices share it.

    Attributes:
        engine: None as long as no slice is answered by it.
    """

    def __init__(self, servable: Servable | None = None, memory: EngineMemory | None = None) -> None:
        """`servable`: describes the candidates; None: the resident model answers everything. `memory`: what the engine
        may take; None where that is too little."""
        self._servable, self._memory = servable, memory
        self.engine: ServingEngine | None = None
        self._lms: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """The engine and its version."""
        found = installed()
        return " ".join(found) if found else ""

    def lm(self, fitness: FitnessSpec, spec: SliceSpec, tasks: TaskSet, resident: Any) -> Any:
        """The model class that a slice is asked by, around the engine; None where the resident model answers.

        Raises:
            InputError: the slice asks for the engine, and cannot have it.
        """
        wanted = fitness.engine_of(spec)
        if self._servable is None or wanted == "resident":
            return None
        if not self._serves(self._servable, spec, tasks, resident, wanted == "vllm"):
            return None
        # vLLM takes ten seconds to import.
        from evomerge.scoring.serving.served import ServedLM

        engine = self._made(self._servable)
        if id(resident) not in self._lms:
            self._lms[id(resident)] = ServedLM(engine, resident)
        return self._lms[id(resident)]

    def endpoint(self, spec: SliceSpec) -> ServingEngine:
        """The engine for a program that is given its address. InputError where it cannot be had."""
        if self._servable is None:
            reason = "this command has no engine, whose address the program needs"
        elif self._memory is None:
            reason = _CROWDED
        else:
            reason = obstacle(self._servable)
        if reason or self._servable is None:
            raise InputError(reason, "use {model}, the candidate's folder, in place of {url}", spec.at("command"))
        engine = self._made(self._servable)
        engine.need(min(self._servable.longest, _LONGEST))
        return engine

    def _made(self, servable: Servable) -> ServingEngine:
        assert self._memory is not None
        self.engine = self.engine or ServingEngine(servable, self._memory)
        return self.engine

    def _serves(self, servable: Servable, spec: SliceSpec, tasks: TaskSet, resident: Any, asked: bool) -> bool:
        """Whether the engine answers a slice. InputError where it was asked for in vain."""
        kinds = {task.get_config("output_type") for task in tasks.leaves.values()}
        if not hasattr(resident, "shortcuts"):
            reason = "vLLM is not asked about images here"
        elif resident.backend != "causal":
            reason = "vLLM serves no model with an encoder"
        elif self._memory is None:
            reason = _CROWDED
        elif not asked:
            return kinds == {"generate_until"} and is_chosen(servable)
        else:
            reason = obstacle(servable)
        if asked and reason:
            raise InputError(reason, "write engine: resident", spec.at("engine"))
        return asked
