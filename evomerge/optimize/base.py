"""Ask and tell: what the search loop knows of an optimizer, and what all optimizers here share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

import numpy as np

from evomerge.types import Dimension, Genome, Outcome, Value

GenomeId = tuple[Value, ...]

AGAIN = "scored again, as scores are noisy"
"""Why a genome is proposed that is known, whose recipe is scored once more all the same (`Optimizer.why`)."""

_AT_ONCE = 256
"""The most genomes that are out at a time, asynchronously."""

_WALK = 200
"""The most steps from a genome that was proposed before to one that was not."""


@dataclass(frozen=True)
class Start:
    """What is known before a search.

    Attributes:
        genome: where to begin; the dimensions' initial values where it is None.
        landmarks: genomes of models that everybody would try first, by label (`space.landmarks`).
        known: what is known of genomes that need not be proposed: those of the references.
    """

    genome: Genome | None = None
    landmarks: Mapping[str, Genome] = field(default_factory=dict)
    known: Sequence[tuple[Genome, Outcome]] = ()


class Optimizer(Protocol):
    """Proposes genomes, some of them at a time, and learns from their outcomes: in the order asked, or, where it was
    built `asynchronous`, in any order.

    It is a pure function of its dimensions, options, seed and the outcomes told: it neither reads nor moves a
    global random generator, so that telling a fresh one the recorded outcomes restores it (`replay`).
    """

    @property
    def open(self) -> int:
        """How many more genomes can be asked before one is told."""
        ...

    @property
    def exhausted(self) -> str | None:
        """Why nothing is left to propose, in words: the search ends, and `open` is 0. None while there is more."""
        ...

    @property
    def rivals(self) -> int:
        """How many of the genomes told last compete with those that are asked now."""
        ...

    @property
    def places(self) -> int:
        """How many of them all, the best, make a difference to what is proposed next."""
        ...

    @property
    def why(self) -> str:
        """Why the genome that is asked next is proposed, where that is not to find a better one; else nothing."""
        ...

    @property
    def slopes(self) -> bool:
        """Whether the outcome of the genome that is asked next is to come with slopes."""
        ...

    def ask(self) -> Genome:
        """The next genome to evaluate; the first is made of the dimensions' initial values, unless landmarks name
        better ones."""
        ...

    def recall(self, genome: Genome) -> None:
        """Asks for a genome that was asked in the same place before. ValueError where another one would be proposed."""
        ...

    def tell(self, genome: Genome, outcome: Outcome) -> None:
        """The outcome of the first genome that was asked and not told; asynchronously, of any of them."""
        ...


class Sequential(ABC):
    """Keeps the order of calls and the history. An optimizer has one genome out at a time unless it says otherwise;
    asynchronously, as many as are asked."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        start: Start | None = None,
        asynchronous: bool = False,
        objectives: int = 1,
        hands: int = 1,
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
        self.hands = hands
        self.history: list[tuple[Genome, Outcome]] = []
        self._choices = [dimension for dimension in self.dimensions if len(dimension.choices) > 1]
        self._genome_count = _genome_count(self.dimensions)
        self._scored = {identity(genome) for genome, _ in self.start.known}
        self._asked: list[Genome] = []

    @property
    def open(self) -> int:
        return 0 if self.exhausted is not None else self._room()

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
    def rivals(self) -> int:
        return 0

    @property
    def places(self) -> int:
        return 1

    @property
    def why(self) -> str:
        return ""

    @property
    def slopes(self) -> bool:
        return False

    @property
    def count(self) -> int:
        """How many genomes were asked so far."""
        return len(self.history) + len(self._asked)

    def ask(self) -> Genome:
        if self.exhausted is not None:
            raise RuntimeError(f"ask() was called, but nothing is left to propose: {self.exhausted}")
        if self.open < 1:
            raise RuntimeError("ask() was called too often; tell() the outcome of the genome asked first")
        self._asked.append(self._propose())
        return dict(self._asked[-1])

    def recall(self, genome: Genome) -> None:
        if self.exhausted is not None:
            raise ValueError(f"a genome is recorded where none is left to propose ({self.exhausted})")
        self._recall(genome)

    def _recall(self, genome: Genome) -> None:
        asked = self.ask()
        if asked != genome:
            raise ValueError(f"another genome is recorded than is proposed now ({difference(genome, asked)})")

    def tell(self, genome: Genome, outcome: Outcome) -> None:
        if not self._asked:
            raise RuntimeError("tell() was called without calling ask()")
        place = self._asked.index(genome) if self.asynchronous and genome in self._asked else 0
        if genome != self._asked[place]:
            raise RuntimeError(f"tell() got another genome than was asked; {difference(self._asked[0], genome)}")
        self.history.append((self._asked.pop(place), outcome))
        self._scored.add(identity(genome))
        self._learn(outcome)

    def _room(self) -> int:
        """How many more genomes can be out, where something is left to propose."""
        return _AT_ONCE - len(self._asked) if self.asynchronous else 1 - len(self._asked)

    @abstractmethod
    def _propose(self) -> Genome:
        """The next genome, tidy, with its keys in the order of the dimensions."""

    def _learn(self, outcome: Outcome) -> None:  # noqa: B027  (to learn only from the history is legitimate)
        """Takes in the outcome of the last genome of the history."""

    def _initial(self) -> Genome:
        genome = self.start.genome or {}
        return {d.key: d.tidy(genome.get(d.key, d.init)) for d in self.dimensions}

    def _novel(self, genome: Genome, proposed: Container[GenomeId], generator: np.random.Generator) -> Genome:
        """`genome`, or where that was proposed before, one nearby that was not: genes take another option at
        random, one after the other, until it is new; where hardly any is left, any of them, and `genome` where none is.
        Numbers practically never repeat, so that this is for spaces of choices only."""
        if self._genome_count is None or identity(genome) not in proposed:
            return genome
        found = dict(genome)
        for _ in range(_WALK if self._choices else 0):
            dimension = self._choices[generator.integers(len(self._choices))]
            others = [option for option in dimension.choices if option != found[dimension.key]]
            found[dimension.key] = others[generator.integers(len(others))]
            if identity(found) not in proposed:
                return found
        options = [d.choices or (genome[d.key],) for d in self.dimensions]
        left = (values for values in product(*options) if values not in proposed)
        return dict(zip(genome, next(left, identity(genome)), strict=True))

    def _generator(self, *stream: int) -> np.random.Generator:
        """A private generator; each `stream` has its own, a function of it and the seed."""
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
    """ValueError where a recorded genome is none of these dimensions."""
    for key in genome.keys() ^ {d.key for d in dimensions}:
        raise ValueError(f"only one of them has {key}")
    for d in dimensions:
        value = genome[d.key]
        if value not in d.choices if d.choices else not (isinstance(value, float) and d.low <= value <= d.high):
            raise ValueError(f"{d.key}: {value!r} is recorded, which the space does not have")


def difference(expected: Genome, found: Genome) -> str:
    """The first gene in which two genomes differ, in words."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key not in expected or key not in found:
            return f"only one of them has {key}"
        if expected[key] != found[key]:
            return f"{key}: expected {expected[key]!r}, got {found[key]!r}"
    return "they are equal"
