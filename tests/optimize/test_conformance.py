"""What every optimizer has to keep, whatever it is: one that stands in `registry.OPTIMIZERS` is tested here."""

import numpy as np
import pytest

from evomerge.optimize.base import Start
from evomerge.optimize.build import build
from evomerge.optimize.declarations import declaration
from evomerge.registry import OPTIMIZERS
from evomerge.testing.optimizers import MIXED, OptimizerConformance, best, drive, genomes, made
from evomerge.types import Dimension

SEARCHING = [name for name in OPTIMIZERS if declaration(name).takes_start]


class TestOptimizers(OptimizerConformance):
    names = tuple(OPTIMIZERS)
    unseeded = ("uniform-soup", "greedy-soup", "path", "coordinate", "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEARCHING if name not in ("random", "qmc", "grid")])
def test_better_than_random_on_a_sphere_with_floors(name: str) -> None:
    sphere = [Dimension(f"weight[{i}]", 0.0, 1.2, 0.4) for i in range(10)]
    trials = 100 if name == "surrogate" else 300
    own, chance = ([best(drive(made(n, sphere, s), trials)) for s in range(2)] for n in (name, "random"))
    assert all(outcome.feasible for outcome in own)
    assert np.median([o.objective for o in own]) > np.median([o.objective for o in chance]) / 1.5


@pytest.mark.parametrize("name", ["surrogate", "tpe", "nsga-ii"])
def test_what_is_known_before_is_learned_from(name: str) -> None:
    known = drive(build("random", MIXED[:2], 9, {}), 24)
    plain, taught = (build(name, MIXED[:2], 0, {}, Start(known=k)) for k in ([], known))
    assert genomes(drive(plain, 30)) != genomes(found := drive(taught, 30))
    assert not {str(genome) for genome in genomes(found)} & {str(genome) for genome in genomes(known)}
