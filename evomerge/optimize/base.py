"""Ask and tell: what a search knows of an optimizer, and the parts that all optimizers here share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from typing import Protocol

import numpy as np

from evomerge.space.reference_genomes import ReferenceGenome
from evomerge.types import Dimension, Genome, Outcome, Value

GenomeId = tuple[Value, ...]

_MOST_IN_FLIGHT = 256
"""The most genomes that are asked and not told, asynchronously; more where more can be scored at a time."""

_MOST_STEPS = 200
"""The most steps from a genome that was proposed before to one that was not."""


class Reason(StrEnum):
    """Why a genome is proposed."""

    SEARCH = "search"
    """To find a better one."""
    REFERENCE = "reference"
    """It is a reference genome (`space.reference_genomes`) of a warm start."""
    SOUP = "soup"
    """It is a mixture of a greedy soup."""
    GRADIENT_STEP = "gradient step"
    """It is the next step along the gradient."""
    RE_EVALUATION = "re-evaluation"
    """It is known. Its recipe is scored once more, as scores are noisy."""


@dataclass(frozen=True)
class Proposal:
    """A genome to evaluate.

    Attributes:
        genome: the genome.
        reason: why it is proposed.
        needs_gradient: whether its outcome has to come with gradients (`Outcome.slopes`).
        label: the reason in words, for people only; empty where it is proposed to find a better one.
    """

    genome: Genome
    reason: Reason = Reason.SEARCH
    needs_gradient: bool = False
    label: str = ""


@dataclass(frozen=True)
class Generation:
    """Where an optimizer stands in its current generation.

    Attributes:
        askable: how many more genomes can be asked before one is told; 0 once nothing is left to propose.
        told: how many of the genomes told last compete with the ones that are asked now.
        parents: how many of a generation's genomes, the best ones, change what is proposed next.
    """

    askable: int
    told: int
    parents: int


@dataclass(frozen=True)
class Start:
    """What is known before a search.

    Attributes:
        genome: where to begin; None: at the dimensions' initial values.
        references: genomes of models that everybody would try first, by label.
        known: genomes with known outcomes, which need not be proposed: the ones of the references.
    """

    genome: Genome | None = None
    references: Mapping[str, ReferenceGenome] = field(default_factory=dict)
    known: Sequence[tuple[Genome, Outcome]] = ()


class Optimizer(Protocol):
    """Proposes genomes and learns from their outcomes. Several genomes can be asked before one is told. Outcomes are
    told in the order asked, or, where the optimizer was built `asynchronous`, in any order.

    It is a pure function of its dimensions, options, seed and the outcomes told: it neither reads nor moves a
    global random generator, so that telling a fresh one the recorded outcomes restores it (`replay`).
    """

    @property
    def generation(self) -> Generation:
        """Where it stands: how many genomes can be asked now, and which ones compete."""
        ...

    @property
    def exhausted(self) -> str | None:
        """Why nothing is left to propose, in words: the search ends. None while there is more."""
        ...

    def ask(self) -> Proposal:
        """The next genome to evaluate. The first one has the initial values, unless reference genomes are better."""
        ...

    def recall(self, genome: Genome) -> Proposal:
        """Asks for a genome that was asked in the same place before. ValueError where another one would be proposed."""
        ...

    def tell(self, genome: Genome, outcome: Outcome) -> None:
        """The outcome of the first genome that was asked and not told; asynchronously, of any of them."""
        ...


class Sequential(ABC):
    """Keeps the order of calls and the history. One genome is in flight at a time, unless a subclass says otherwise;
    asynchronously, as many as are asked."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        start: Start | None = None,
        asynchronous: bool = False,
        objectives: int = 1,
        num_workers: int = 1,
    ) -> None:
        keys = [dimension.key for dimension in dimensions]
        if not keys:
            raise ValueError("there is nothing to search: no dimension was given")
        if len(set(keys)) < len(keys):
            raise ValueError(f"a dimension's key occurs twice in {', '.join(keys)}")
        if seed < 0:
            raise ValueError(f"seed: expected a whole number from 0, got {seed}")
        self.dimensions = tuple(dimensions)
        self.seed = seed
        self.start = start or Start()
        self.asynchronous = asynchronous
        self.objectives = objectives
        self.num_workers = num_workers
        self.history: list[tuple[Genome, Outcome]] = []
        self._choices = [dimension for dimension in self.dimensions if len(dimension.choices) > 1]
        self._genome_count = _genome_count(self.dimensions)
        self._scored = {identity(genome) for genome, _ in self.start.known}
        self._asked: list[Genome] = []

    @property
    def generation(self) -> Generation:
        askable = 0 if self.exhausted is not None else self._askable()
        return Generation(askable, self._n_told(), self._n_parents())

    @property
    def exhausted(self) -> str | None:
        if self._genome_count is None or len(self._scored) < self._genome_count:
            return None
        return (
            f"all {self._genome_count} genomes of the space are scored"
            if self._genome_count > 1
            else "the space has one genome"
        )

    @property
    def count(self) -> int:
        """How many genomes were asked so far."""
        return len(self.history) + len(self._asked)

    def ask(self) -> Proposal:
        if self.exhausted is not None:
            raise RuntimeError(f"ask() was called, but nothing is left to propose: {self.exhausted}")
        if self._askable() < 1:
            raise RuntimeError("ask() was called too often; tell() the outcome of the genome asked first")
        return self._take(self._propose())

    def recall(self, genome: Genome) -> Proposal:
        if self.exhausted is not None:
            raise ValueError(f"a genome is recorded where none is left to propose ({self.exhausted})")
        return self._recall(genome)

    def _recall(self, genome: Genome) -> Proposal:
        proposal = self.ask()
        if proposal.genome != genome:
            difference = first_difference(genome, proposal.genome)
            raise ValueError(f"another genome is recorded than is proposed now ({difference})")
        return proposal

    def _take(self, genome: Genome) -> Proposal:
        """Notes a genome as asked."""
        proposal = self._proposal(dict(genome))
        self._asked.append(dict(genome))
        return proposal

    def tell(self, genome: Genome, outcome: Outcome) -> None:
        if not self._asked:
            raise RuntimeError("tell() was called without calling ask()")
        place = self._asked.index(genome) if self.asynchronous and genome in self._asked else 0
        if genome != self._asked[place]:
            difference = first_difference(self._asked[0], genome)
            raise RuntimeError(f"tell() got another genome than was asked; {difference}")
        self.history.append((self._asked.pop(place), outcome))
        self._scored.add(identity(genome))
        self._learn(outcome)

    # For subclasses.

    def _askable(self) -> int:
        """How many more genomes can be asked now, where something is left to propose."""
        most = max(_MOST_IN_FLIGHT, self.num_workers) if self.asynchronous else 1
        return most - len(self._asked)

    def _n_told(self) -> int:
        """`Generation.told`."""
        return 0

    def _n_parents(self) -> int:
        """`Generation.parents`."""
        return 1

    @abstractmethod
    def _propose(self) -> Genome:
        """The next genome, tidy, with its keys in the order of the dimensions."""

    def _proposal(self, genome: Genome) -> Proposal:
        """The next genome with the reason for it."""
        return Proposal(genome)

    def _learn(self, outcome: Outcome) -> None:  # noqa: B027  (to learn only from the history is legitimate)
        """Takes in the outcome of the last genome of the history."""

    def _initial(self) -> Genome:
        genome = self.start.genome or {}
        return {d.key: d.tidy(genome.get(d.key, d.init)) for d in self.dimensions}

    def _novel(self, genome: Genome, proposed: Container[GenomeId], generator: np.random.Generator) -> Genome:
        """`genome`, or, where it was proposed before, one nearby that was not.

        Choices take another option at random, one after the other, until the genome is new; after too many steps it is
        any new one, and `genome` where none is left. Numbers practically never repeat: this is for spaces of choices.
        """
        if self._genome_count is None or identity(genome) not in proposed:
            return genome
        nearby = dict(genome)
        for _ in range(_MOST_STEPS if self._choices else 0):
            dimension = self._choices[generator.integers(len(self._choices))]
            others = [option for option in dimension.choices if option != nearby[dimension.key]]
            nearby[dimension.key] = others[generator.integers(len(others))]
            if identity(nearby) not in proposed:
                return nearby
        options = [d.choices or (genome[d.key],) for d in self.dimensions]
        left = (values for values in product(*options) if values not in proposed)
        return dict(zip(genome, next(left, identity(genome)), strict=True))

    def _generator(self, *stream: int) -> np.random.Generator:
        """A private generator. Each `stream` has its own, a function of it and the seed."""
        return np.random.default_rng([self.seed, *stream])


def _genome_count(dimensions: Sequence[Dimension]) -> int | None:
    """How many genomes there are; None where a number is searched."""
    if any(not d.choices and d.low < d.high for d in dimensions):
        return None
    return math.prod(len(d.choices) or 1 for d in dimensions)


def identity(genome: Genome) -> GenomeId:
    """A hashable stand-in for a genome, among genomes of the same dimensions."""
    return tuple(genome.values())


def check(dimensions: Sequence[Dimension], genome: Genome) -> None:
    """ValueError where a recorded genome does not belong to these dimensions."""
    for key in genome.keys() ^ {d.key for d in dimensions}:
        raise ValueError(f"only one of them has {key}")
    for d in dimensions:
        value = genome[d.key]
        if value not in d.choices if d.choices else not (isinstance(value, float) and d.low <= value <= d.high):
            raise ValueError(f"{d.key}: {value!r} is recorded, which the space does not have")


def first_difference(expected: Genome, actual: Genome) -> str:
    """The first gene in which two genomes differ, in words."""
    for key in [*expected, *(key for key in actual if key not in expected)]:
        if key not in expected or key not in actual:
            return f"only one of them has {key}"
        if expected[key] != actual[key]:
            return f"{key}: expected {expected[key]!r}, got {actual[key]!r}"
    return "they are equal"
