"""Steps along slopes, and what comes after them."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.build import build
from evomerge.optimize.gradient_start import Bundles, GradientStart, InBundles
from evomerge.optimize.replay import replay
from evomerge.space.reference_genomes import ReferenceGenome, ReferenceKind
from evomerge.types import Dimension, Genome, Outcome, Slopes

SOURCES, LAYERS = ("a", "b"), 6
TENSORS = [f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in ("q", "k", "v")]
FINE = [
    Dimension(f"weight[{s},{t}]", 0.0, 1.0, 0.5, gene="weight", place={"sources": s, "tensors": t})
    for s in SOURCES
    for t in [*TENSORS, "model.norm.weight"]
]
GOAL = np.random.default_rng(0).uniform(0.2, 0.9, len(FINE))
LIMIT = 0.4
"""What the mean of all genes may be at most; the goal's is higher."""


def bowl(genome: Genome, noise: float = 0.0) -> Outcome:
    """A floor that the optimum of the objective misses."""
    values = np.array([float(v) for v in genome.values() if not isinstance(v, str)])
    goal = GOAL[: len(values)]
    objective, margin = -float(((values - goal) ** 2).sum()), LIMIT - float(values.mean())
    slopes = Slopes(
        tuple((-2 * (values - goal)).tolist()), (tuple([-1 / len(values)] * len(values)),), (objective, (margin,))
    )
    return Outcome(False, margin >= 0, objective, max(0.0, -margin), (margin,), slopes=slopes)


BASE = {d.key: 0.0 for d in FINE}
KNOWN = Start(references={"base": ReferenceGenome(BASE, ReferenceKind.BASE)}, known=((BASE, bowl(BASE)),))


def driven(optimizer: Optimizer, trials: int) -> list[tuple[Genome, Outcome]]:
    history = []
    while len(history) < trials and optimizer.exhausted is None:
        proposal = optimizer.ask()
        genome, sloped = proposal.genome, proposal.needs_gradient
        outcome = bowl(genome)
        history.append((genome, outcome if sloped else Outcome(**{**vars(outcome), "slopes": None})))
        optimizer.tell(*history[-1])
    return history


def constrained_optimum() -> float:
    values = GOAL - (GOAL.mean() - LIMIT)  # the same step along the constraint's normal, inside the range here
    return -float(((np.clip(values, 0, 1) - GOAL) ** 2).sum())


def test_the_constrained_optimum_is_found_from_below_its_floor() -> None:
    history = driven(build("gradient", FINE, 0, {"slack": 0.0}, KNOWN), 100)
    assert history[0][0] == BASE  # the best that is known
    best = max((o for _, o in history if o.feasible), key=lambda o: o.objective)
    assert best.objective == pytest.approx(constrained_optimum(), rel=0.05)
    assert best.margins[0] < 0.01


def test_slack_keeps_away_from_the_floor() -> None:
    history = driven(build("gradient", FINE, 0, {"slack": 0.05}, KNOWN), 100)
    assert history[-1][1].margins[0] == pytest.approx(0.05, abs=0.01)


def test_it_ends_when_the_items_for_checking_see_nothing_better() -> None:
    optimizer, steps = build("gradient", FINE, 0, {"patience": 4}, KNOWN), 0
    while optimizer.exhausted is None:
        outcome = bowl(optimizer.ask().genome)
        assert outcome.slopes is not None
        checked = min(steps, 6) - 0.1 * max(0, steps - 6)
        slopes = Slopes(outcome.slopes.objective, outcome.slopes.margins, (checked, (1.0,)))
        optimizer.tell(optimizer._asked[0], Outcome(**{**vars(outcome), "slopes": slopes}))
        steps += 1
    assert steps == 6 + 1 + 4
    assert "nothing better in 4 steps" in (optimizer.exhausted or "")


def test_nothing_has_a_slope_at_the_base_so_it_begins_elsewhere() -> None:
    """As with TIES, which elects no sign where all weights are 0."""
    optimizer = build("gradient", FINE, 0, {}, KNOWN)
    none = tuple([0.0] * len(FINE))
    optimizer.tell(
        optimizer.ask().genome, Outcome(False, True, 0.0, 0.0, (0.1,), slopes=Slopes(none, (none,), (0.0, (0.1,))))
    )
    assert optimizer.ask().genome == {d.key: 0.5 for d in FINE}


def test_a_failed_step_is_tried_at_half_its_length() -> None:
    optimizer = build("gradient", FINE, 0, {}, KNOWN)
    first = optimizer.ask().genome
    optimizer.tell(first, bowl(first))
    second = optimizer.ask().genome
    optimizer.tell(second, Outcome(failed=True))
    third = optimizer.ask().genome
    for key in first:
        assert float(third[key]) - float(first[key]) == pytest.approx(
            (float(second[key]) - float(first[key])) / 2, abs=1e-5
        )


@pytest.mark.parametrize("name", ["surrogate", "cma-es", "tpe"])
def test_a_search_goes_on_around_what_the_gradient_found(name: str) -> None:
    def made() -> Optimizer:
        return build(name, FINE, 0, {"warm_start": "gradient"}, KNOWN)

    optimizer = made()
    assert isinstance(optimizer, GradientStart)
    whole = driven(optimizer, 58)
    steps = sum(outcome.slopes is not None for _, outcome in whole)
    assert 20 < steps < 50
    assert isinstance(optimizer._active, InBundles)
    assert len(optimizer._active.bundles.dimensions) <= 2 * (LAYERS + 1)
    center = max((o for _, o in whole[:steps] if o.feasible), key=lambda o: o.objective)
    after = [o for _, o in whole[steps:]]
    assert any(abs(o.objective - center.objective) < 0.1 for o in after)  # it is around it
    for cut in (0, 5, steps - 1, steps, steps + 1, steps + 5):
        resumed = made()
        replay(resumed, whole[:cut])
        assert [g for g, _ in driven(resumed, 58 - cut)] == [g for g, _ in whole[cut:]], cut


def test_bundles_move_important_genes_together() -> None:
    center = {d.key: 0.3 for d in FINE}
    important = [d.place["sources"] == "a" and ".q." in d.place["tensors"] for d in FINE]
    bundles = Bundles(FINE, center, important)
    assert [d.key for d in bundles.dimensions] == [f"weight of a, layer {i}" for i in range(LAYERS)]
    assert bundles.whole(bundles.start) == center
    moved = bundles.whole({**bundles.start, "weight of a, layer 2": 0.1})
    changed = {key for key in center if moved[key] != center[key]}
    assert changed == {"weight[a,model.layers.2.q.weight]"}
    assert moved["weight[a,model.layers.2.q.weight]"] == pytest.approx(0.4)


def test_bundles_keep_choices_and_tie_layers_where_there_are_many() -> None:
    tensors = [f"layers.{i}.w" for i in range(40)]
    many = [
        Dimension(f"weight[a,{t}]", 0.0, 1.0, 0.5, gene="weight", place={"sources": "a", "tensors": t}) for t in tensors
    ]
    choice = Dimension("method[0]", choices=("ties", "linear"), init="ties", gene="method", place={"layers": "0"})
    bundles = Bundles([*many, choice], {**{d.key: 0.5 for d in many}, "method[0]": "ties"}, [True] * 41)
    assert [d.key for d in bundles.dimensions] == ["weight of a", "method[0]"]
    assert bundles.whole({"weight of a": -0.1, "method[0]": "linear"})["method[0]"] == "linear"
