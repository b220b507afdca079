"""What a row of benchmarks/search.py found: its winner on the holdout split."""

from __future__ import annotations

from collections.abc import Sequence

from _checkpoints import Floored

from evomerge.study.finalists import choose, screened
from evomerge.types import Genome, Outcome

Scored = tuple[Genome, Outcome]


def winner(trials: Sequence[Scored], models: Floored) -> Scored | None:
    """The winner of these trials with its outcome on the holdout split, None where there is none: the first of the
    finalists that passes every floor there, as a study of evomerge names it.

    The same for every row. A row whose five best were all scored, and the best of them taken, would choose by the
    holdout items, and be measured on them."""
    genomes = [genome for genome, _ in trials if genome not in models.parents]
    held = ((genome, models.outcome(genome, "holdout")) for genome in _finalists(genomes, models))
    return next((pair for pair in held if pair[1].feasible), None)


def _finalists(genomes: Sequence[Genome], models: Floored) -> list[Genome]:
    space = models.checkpoints.space
    able = screened([models.trial(number, genome) for number, genome in enumerate(genomes)], models.floors)
    scored = [models.scored_items(space.recipe(trial.genome)) for trial in able]
    base = models.scored_items(models.checkpoints.parents["base"])

    def mean(scores: dict[str, float]) -> float:
        return sum(scores.values()) / len(scores)

    chosen = choose(able, scored, base, models.noise, models.floors, mean).chosen
    return [finalist.trial.genome for finalist in chosen]
