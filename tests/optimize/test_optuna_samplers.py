import logging
import time

import optuna
import pytest

from evomerge.optimize.optuna_samplers import Random, Tpe
from evomerge.types import Dimension, Outcome

CHOICES = [Dimension(f"method[{i}]", choices=("a", "b", "c"), init="b") for i in range(4)]


@pytest.mark.parametrize("sampler", [Tpe, Random])
def test_optunas_log_is_left_as_it_was(sampler, capfd) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optimizer = sampler([Dimension("w")], 0)
    for _ in range(15):
        optimizer.tell(optimizer.ask().genome, Outcome(failed=True))
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logging.INFO


@pytest.mark.parametrize("sampler", [Tpe, Random])
def test_choices_alone_are_not_proposed_twice(sampler) -> None:
    optimizer = sampler(CHOICES, 0)
    for _ in range(81):
        genome = optimizer.ask().genome
        optimizer.tell(genome, Outcome(feasible=True, objective=float(genome["method[0]"] == "a"), shortfall=0.0))
    asked = [tuple(genome.values()) for genome, _ in optimizer.history]
    assert len(set(asked)) == 81


def test_tpe_sees_feasibility_first() -> None:
    """A high objective out of the floors' reach must not attract."""
    optimizer = Tpe([Dimension("w", init=0.1)], 0)
    for _ in range(60):
        genome = optimizer.ask().genome
        w = float(genome["w"])
        optimizer.tell(genome, Outcome(feasible=w < 0.3, objective=w, shortfall=max(0.0, w - 0.3)))
    late = [float(genome["w"]) for genome, _ in optimizer.history[30:]]
    assert sum(w < 0.4 for w in late) > 20


def test_an_ask_is_quick() -> None:
    optimizer = Tpe([Dimension(f"w[{i}]") for i in range(30)], 0)
    random = Random([Dimension(f"w[{i}]") for i in range(30)], 0)
    for _ in range(300):
        genome = random.ask().genome
        outcome = Outcome(feasible=True, objective=float(genome["w[0]"]), shortfall=0.0)
        random.tell(genome, outcome)
    optimizer.history = random.history  # all of its state
    started = time.perf_counter()
    optimizer.ask()
    assert time.perf_counter() - started < 1.0  # 0.04 s on an idle core
