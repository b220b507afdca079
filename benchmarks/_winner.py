"""What a row of benchmarks/search.py found: its winner on the holdout split."""

from __future__ import annotations

from collections.abc import Sequence

from _checkpoints import Floored

from evomerge.optimize.ordering import rank_key
from evomerge.study.finalists import choose, screened
from evomerge.types import Genome, Outcome

TOP = 5

Scored = tuple[Genome, Outcome]


def winner(trials: Sequence[Scored], models: Floored, ours: bool) -> Scored | None:
    """The winner of these trials with its outcome on the holdout split; None where there is none.

    With `ours`, as a study of evomerge names it: the first of its finalists that passes every floor. Else the best
    feasible one there of the five best merges by the search split, floors first.
    """
    genomes = [genome for genome, _ in trials if genome not in models.parents]
    if ours:
        return next((pair for pair in _held(_finalists(genomes, models), models) if pair[1].feasible), None)
    top = sorted(trials, key=lambda trial: rank_key(trial[1]))
    held = _held([genome for genome, _ in top if genome not in models.parents][:TOP], models)
    return min((pair for pair in held if pair[1].feasible), key=lambda pair: rank_key(pair[1]), default=None)


def _held(genomes: Sequence[Genome], models: Floored) -> list[Scored]:
    return [(genome, models.outcome(genome, "holdout")) for genome in genomes]


def _finalists(genomes: Sequence[Genome], models: Floored) -> list[Genome]:
    space = models.checkpoints.space
    able = screened([models.trial(number, genome) for number, genome in enumerate(genomes)], models.floors)
    scored = [models.scored_items(space.recipe(trial.genome)) for trial in able]
    base = models.scored_items(models.checkpoints.parents["base"])

    def mean(scores: dict[str, float]) -> float:
        return sum(scores.values()) / len(scores)

    chosen = choose(able, scored, base, models.noise, models.floors, mean).chosen
    return [finalist.trial.genome for finalist in chosen]
