import pytest

from evomerge.errors import InputError
from evomerge.optimize.build import build
from evomerge.optimize.replay import replay
from evomerge.registry import OPTIMIZERS
from evomerge.types import Dimension, Genome, Outcome

DIMENSIONS = [Dimension("w"), Dimension("v")]
PLANNED = ("uniform-soup", "greedy-soup", "path", "coordinate")  # whatever the seed
FINE = Outcome(feasible=True, objective=1.0, shortfall=0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_calls_out_of_order_raise(name: str) -> None:
    optimizer = build(name, DIMENSIONS, 0, {})
    with pytest.raises(RuntimeError, match="without calling ask"):
        optimizer.tell({"w": 0.5, "v": 0.5}, FINE)
    asked = [optimizer.ask().genome for _ in range(optimizer.generation.askable)]
    genome = asked[0]
    with pytest.raises(RuntimeError, match="called too often"):
        optimizer.ask()
    with pytest.raises(RuntimeError, match=r"another genome than was asked; w: expected 0\.5, got 0\.25"):
        optimizer.tell({**genome, "w": 0.25}, FINE)
    for genome in asked:
        optimizer.tell(genome, FINE)
    with pytest.raises(RuntimeError, match="without calling ask"):
        optimizer.tell(genome, FINE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_generation_asked_at_once_is_the_one_asked_one_by_one(name: str) -> None:
    """However many are asked before one is told: what is proposed is the same, and so is who competes with whom."""
    at_once, singly = build(name, DIMENSIONS, 3, {}), build(name, DIMENSIONS, 3, {})
    for _ in range(4):
        start = at_once.generation.told
        asked = [at_once.ask().genome for _ in range(at_once.generation.askable)]
        assert at_once.generation.askable == 0
        assert at_once.generation.told == start
        for number, genome in enumerate(asked):
            outcome = Outcome(feasible=True, objective=-abs(float(genome["w"]) - 0.3), shortfall=0.0)
            assert singly.generation.told == start + number
            assert singly.ask().genome == genome
            singly.tell(genome, outcome)
            at_once.tell(genome, outcome)
        assert at_once.generation.parents >= 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_asked_is_the_callers_to_change(name: str) -> None:
    optimizer = build(name, DIMENSIONS, 0, {})
    genome = optimizer.ask().genome
    kept = dict(genome)
    genome["w"] = 0.9
    optimizer.tell(kept, FINE)


def test_nothing_to_search_and_twice_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="no optimizer 'cmaes'; did you mean 'cma-es'"):
        build("cmaes", DIMENSIONS, 0, {})
    with pytest.raises(ValueError, match="nothing to search"):
        build("random", [], 0, {})
    with pytest.raises(ValueError, match="occurs twice"):
        build("random", [Dimension("w"), Dimension("w")], 0, {})
    with pytest.raises(ValueError, match="seed"):
        build("random", DIMENSIONS, -1, {})


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in PLANNED])
def test_replay_refuses_another_run(name: str) -> None:
    recorded: list[tuple[Genome, Outcome]] = []
    optimizer = build(name, DIMENSIONS, 0, {})
    for _ in range(3):
        recorded.append((optimizer.ask().genome, FINE))
        optimizer.tell(*recorded[-1])
    if name not in ("surrogate", "gradient"):  # which take what is recorded
        with pytest.raises(
            InputError, match=r"cannot be continued exactly: for trial 1 .* \([wv]: expected .* versions of numpy"
        ):
            replay(build(name, DIMENSIONS, 1, {}), recorded)
    with pytest.raises(InputError, match="only one of them has v"):
        replay(build(name, [Dimension("w")], 0, {}), recorded)
