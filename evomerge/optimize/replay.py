"""Resume: an optimizer's state is a function of its seed and the recorded trials."""

from __future__ import annotations

from collections.abc import Iterable

from evomerge.errors import InputError
from evomerge.optimize.base import Optimizer, difference
from evomerge.types import Genome, Outcome


def replay(optimizer: Optimizer, history: Iterable[tuple[Genome, Outcome]]) -> None:
    """Brings a fresh `optimizer` to where it stood after `history`, the optimizer's own trials in the order asked.

    Each genome is asked for and compared with the recorded one, so that a study never goes on, unnoticed, as
    another one. A trial that was in flight is asked again next, and comes out the same.
    """
    for number, (genome, outcome) in enumerate(history):
        if optimizer.exhausted is not None:
            raise _another_run(number, f"a genome is recorded where none is left to propose ({optimizer.exhausted})")
        asked = optimizer.ask()
        if asked != genome:
            change = f"another genome is recorded than is proposed now ({difference(genome, asked)})"
            raise _another_run(number, change)
        optimizer.tell(asked, outcome)


def _another_run(number: int, change: str) -> InputError:
    return InputError(
        f"the run cannot be continued exactly: for trial {number} of its optimizer, {change}",
        "resume with the space, seed, options and versions of numpy, cma and optuna that the run was "
        "started with (environment.json names them), or start a new run",
    )
