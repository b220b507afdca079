"""Resume: an optimizer's state is a function of its seed and the recorded trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.errors import InputError
from evomerge.optimize.base import Optimizer
from evomerge.types import Genome, Outcome


@dataclass(frozen=True)
class Asked:
    """One genome of an optimizer's: how many outcomes it had been told when it proposed this one, its outcome (None
    while the trial is in flight), and which outcome, counted from 0, that was to be told."""

    genome: Genome
    told: int
    outcome: Outcome | None = None
    place: int | None = None


def replay(optimizer: Optimizer, history: Iterable[tuple[Genome, Outcome]]) -> None:
    """Brings a fresh `optimizer` to where it stood after `history`, the optimizer's own trials in the order asked,
    each of them told before the next.

    Each genome is asked for and compared with the recorded one, so that a study never goes on, unnoticed, as
    another one. A trial that was in flight is asked again next, and comes out the same.
    """
    replay_interleaved(optimizer, [Asked(genome, at, outcome, at) for at, (genome, outcome) in enumerate(history)])


def replay_interleaved(optimizer: Optimizer, history: Sequence[Asked]) -> None:
    """The same for genomes that were asked before others were told: `history`, in the order asked, says what came when.
    Trials in flight are asked, and not told."""
    ended = sorted((a for a in history if a.outcome is not None), key=_place)
    told = 0
    for number, recorded in enumerate(history):
        told = _tell(optimizer, ended, told, recorded.told)
        recall(optimizer, recorded.genome, number)
    _tell(optimizer, ended, told, len(ended))


def recall(optimizer: Optimizer, genome: Genome, number: int) -> None:
    """Ask for the genome that was asked as the optimizer's `number`-th before. InputError where it is another one."""
    try:
        optimizer.recall(genome)
    except ValueError as error:
        raise InputError(
            f"the run cannot be continued exactly: for trial {number} of its optimizer, {error}",
            "resume with the space, seed, options and versions of numpy, cma and optuna that the run was "
            "started with (environment.json names them), or start a new run",
        ) from None


def _tell(optimizer: Optimizer, ended: Sequence[Asked], told: int, until: int) -> int:
    """Tell the outcomes from the one numbered `told` on, so that `until` are."""
    for recorded in ended[told:until]:
        assert recorded.outcome is not None
        optimizer.tell(recorded.genome, recorded.outcome)
    return max(told, until)


def _place(recorded: Asked) -> int:
    assert recorded.place is not None  # whose outcome is known was told
    return recorded.place
