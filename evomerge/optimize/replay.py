"""Resume: an optimizer's state is a function of its seed and the recorded trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.errors import InputError
from evomerge.optimize.base import Optimizer
from evomerge.types import Genome, Outcome


@dataclass(frozen=True)
class Asked:
    """One genome that an optimizer was asked for.

    Attributes:
        genome: the genome.
        n_told: how many outcomes the optimizer had been told when it proposed it.
        outcome: its outcome; None while the trial is in flight.
        place: the number of its outcome, counted from 0, in the order told; None while the trial is in flight.
    """

    genome: Genome
    n_told: int
    outcome: Outcome | None = None
    place: int | None = None


def replay(optimizer: Optimizer, history: Iterable[tuple[Genome, Outcome]]) -> None:
    """Brings a fresh `optimizer` to where it stood after `history`: its own trials in the order asked, each told before
    the next one was asked.

    Each genome is asked for and compared with the recorded one, so that a study never goes on, unnoticed, as
    another one. A trial that was in flight is asked again next, and comes out the same.
    """
    replay_interleaved(optimizer, [Asked(genome, at, outcome, at) for at, (genome, outcome) in enumerate(history)])


def replay_interleaved(optimizer: Optimizer, history: Sequence[Asked]) -> None:
    """The same where genomes were asked before others were told. `history` is in the order asked, and says when
    outcomes were told. Trials in flight are asked, and not told."""
    ended = sorted((a for a in history if a.outcome is not None), key=_place)
    n_told = 0
    for number, recorded in enumerate(history):
        n_told = _tell(optimizer, ended, n_told, recorded.n_told)
        recall(optimizer, recorded.genome, number)
    _tell(optimizer, ended, n_told, len(ended))


def recall(optimizer: Optimizer, genome: Genome, number: int) -> None:
    """Asks for the genome that was asked as the optimizer's `number`-th before. InputError where it proposes another
    one."""
    try:
        optimizer.recall(genome)
    except ValueError as error:
        raise InputError(
            f"the run cannot be continued exactly: for trial {number} of its optimizer, {error}",
            "resume with the space, seed, options and versions of numpy, cma and optuna that the run was "
            "started with (environment.json names them), or start a new run",
        ) from None


def _tell(optimizer: Optimizer, ended: Sequence[Asked], n_told: int, until: int) -> int:
    """Tells the outcomes from number `n_told` on, until `until` are told. Returns how many are."""
    for recorded in ended[n_told:until]:
        assert recorded.outcome is not None
        optimizer.tell(recorded.genome, recorded.outcome)
    return max(n_told, until)


def _place(recorded: Asked) -> int:
    assert recorded.place is not None  # a trial with an outcome was told
    return recorded.place
