"""A space of two or three sources, with the reference genomes that it holds, for optimizers that go by them."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.optimize.base import Optimizer, Start
from evomerge.space.reference_genomes import reference_genomes
from evomerge.types import Dimension, Genome, Outcome


def weights(sources: Sequence[str], groups: int = 1, high: float = 1.2) -> list[Dimension]:
    """A weight per source and layer group."""
    return [
        Dimension(f"weight[{s},{i}]", 0.0, high, 0.5, gene="weight", place={"sources": s, "layers": str(i)})
        for s in sources
        for i in range(groups)
    ]


def start(
    dimensions: Sequence[Dimension], sources: Sequence[str], evaluate=None, methods=("task_arithmetic",)
) -> Start:
    """With `evaluate`, base, sources and average are known, as in a study."""
    references = reference_genomes(dimensions, sources, methods, {})
    scored = [label for label in ("base", *sources, "uniform") if label in references and evaluate]
    genomes = [references[label].genome for label in scored]
    return Start(references=references, known=[(genome, evaluate(genome)) for genome in genomes])


def fine(objective: float) -> Outcome:
    return Outcome(feasible=True, objective=objective, shortfall=0.0)


def drive(optimizer: Optimizer, evaluate, most: int = 1000) -> list[Genome]:
    """Until it ends; every genome is new."""
    asked: list[Genome] = []
    while optimizer.exhausted is None and len(asked) < most:
        batch = [optimizer.ask().genome for _ in range(optimizer.generation.askable)]
        for genome in batch:
            optimizer.tell(genome, evaluate(genome))
        asked += batch
    assert len({tuple(genome.values()) for genome in asked}) == len(asked)
    return asked
