"""Matching: what was permuted is found again, each assignment is the best there is, and nothing depends on chance."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from evomerge.merging.permutation.activation_matching import activation_matching, record
from evomerge.merging.permutation.families import read_specification, specification_for
from evomerge.merging.permutation.repair import repair
from evomerge.merging.permutation.straight_through import straight_through
from evomerge.merging.permutation.symmetries import AxisPart, Group, Symmetries
from evomerge.merging.permutation.weight_matching import weight_matching
from evomerge.merging.permutation.weights import Likeness, permuted_weights

State = dict[str, Tensor]


def mlp(seed: int, width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def symmetries_of(state: State) -> Symmetries:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return specification_for(shapes, {}).over(shapes, {})


def detached(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def inner(symmetries: Symmetries, one: State, other: State) -> float:
    return sum(float((one[name].double() * other[name].double()).sum()) for name in symmetries.axes)


@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.05]))
@settings(max_examples=20, deadline=None)
def test_planted_permutations_are_found(seed: int, noise: float) -> None:
    state = detached(mlp(seed))
    symmetries = symmetries_of(state)
    draw = torch.Generator().manual_seed(seed)
    planted = permuted_weights(symmetries, state, symmetries.random(seed))
    noisy = {name: tensor + noise * torch.randn(tensor.shape, generator=draw) for name, tensor in planted.items()}
    found = weight_matching(symmetries, state, noisy, seed=seed).orders
    back = permuted_weights(symmetries, planted, found)
    assert all(torch.equal(back[name], state[name]) for name in state)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_matching_never_loses_and_is_a_permutation(seed: int) -> None:
    one, other = detached(mlp(seed)), detached(mlp(seed + 1))
    symmetries = symmetries_of(one)
    matching = weight_matching(symmetries, one, other, seed=seed)
    assert all(sorted(order) == list(range(16)) for order in matching.orders.values())
    moved = permuted_weights(symmetries, other, matching.orders)
    assert inner(symmetries, one, moved) >= inner(symmetries, one, other) - 1e-6
    assert matching.value == pytest.approx(inner(symmetries, one, moved), rel=1e-4)
    again = weight_matching(symmetries, one, other, seed=seed)
    assert all((again.orders[name] == order).all() for name, order in matching.orders.items())
    more = weight_matching(symmetries, one, other, seed=seed, restarts=4)
    assert more.value >= matching.value


@given(units=st.integers(1, 3), members=st.integers(1, 3), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_best_order_of_units_with_members_is_the_best_of_all(units: int, members: int, seed: int) -> None:
    group, draw = Group(units, members), np.random.default_rng(seed)
    whole = draw.normal(size=(units, units))
    parts = draw.normal(size=(units * members, units * members)) if members > 1 else whole
    likeness = Likeness(whole, parts)
    best = likeness.best(group)
    orders = []
    for outer in permutations(range(units)):
        inside = [[]]  # type: ignore[var-annotated]
        for unit in outer:
            of_unit = [[unit * members + i for i in order] for order in permutations(range(members))]
            inside = [before + own for before in inside for own in of_unit]
        orders += inside
    values = [likeness.value(group, np.array(order)) for order in orders]
    assert likeness.value(group, best) == pytest.approx(max(values))


def test_activations_find_planted_permutations() -> None:
    model, other = mlp(0), mlp(0)
    state = detached(model)
    symmetries = symmetries_of(state)
    planted = permuted_weights(symmetries, state, symmetries.random(5))
    other.load_state_dict(planted)
    batches = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).split(50)
    records = [record(symmetries, m, batches) for m in (model, other)]
    assert all(len(kept) == 200 for kept in records[0].values())
    matching = activation_matching(symmetries, records[0], records[1])
    back = permuted_weights(symmetries, planted, matching.orders)
    # Units that are silent on all inputs may be exchanged: the weights of those that are not are equal
    loud = records[0]["2.weight", 1].std(0) > 0
    assert torch.equal(back["0.weight"][loud], state["0.weight"][loud])


def test_groups_without_records_are_matched_by_weights() -> None:
    state = detached(mlp(0))
    symmetries = symmetries_of(state)
    planted = permuted_weights(symmetries, state, symmetries.random(5))
    assert all((o == np.arange(16)).all() for o in activation_matching(symmetries, {}, {}).orders.values())
    orders = activation_matching(symmetries, {}, {}, (state, planted)).orders
    back = permuted_weights(symmetries, planted, orders)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_straight_through_estimator_lowers_the_loss_half_way() -> None:
    """Two networks trained on one task: permutations that the loss has chosen are at least as good as those to start
    from."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 6, generator=draw)
    wanted = (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] > 1).long()
    models = [mlp(seed) for seed in (1, 2)]
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), wanted).backward()
            optimizer.step()
    one, other = map(detached, models)
    symmetries = symmetries_of(one)

    def loss(state: State) -> Tensor:
        return F.cross_entropy(functional_call(models[0], state, (inputs,)), wanted)

    def half_way(orders: dict[str, np.ndarray]) -> float:
        moved = permuted_weights(symmetries, other, orders)
        return float(loss({name: (one[name] + moved[name]) / 2 for name in one}))

    matched = weight_matching(symmetries, one, other).orders
    learned = straight_through(symmetries, one, other, loss, steps=40, rate=1e-2, start=matched)
    assert learned.losses[0] == pytest.approx(half_way(matched), rel=1e-4)
    assert half_way(learned.matching.orders) == pytest.approx(min(learned.losses), rel=1e-4)
    assert min(learned.losses) < learned.losses[0] < half_way(symmetries.identity())


def test_repair_takes_the_statistics_of_the_model_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean.fill_(7.0)  # type: ignore[union-attr]
    model.eval()
    batches = torch.randn(4, 50, 4, generator=torch.Generator().manual_seed(0))
    assert repair(model, batches) == 1
    with torch.no_grad():
        hidden = model[0](batches)
    assert torch.allclose(norm.running_mean, hidden.mean((0, 1)), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, hidden.var(1).mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert (norm.momentum, norm.training, model.training) == (0.1, False, False)
    assert repair(nn.Linear(2, 2), batches) == 0


def test_statistics_move_with_their_units_and_do_not_count() -> None:
    part = ((AxisPart("h", False, np.arange(3)[:, None]),),)
    symmetries = Symmetries({"h": Group(3)}, {"w": part, "n.running_mean": part})
    one = {"w": torch.tensor([1.0, 2.0, 3.0]), "n.running_mean": torch.tensor([900.0, 0.0, 0.0])}
    other = {"w": torch.tensor([3.0, 1.0, 2.0]), "n.running_mean": torch.tensor([900.0, 1.0, 2.0])}
    orders = weight_matching(symmetries, one, other).orders
    moved = permuted_weights(symmetries, other, orders)
    assert moved["w"].tolist() == [1.0, 2.0, 3.0]
    assert moved["n.running_mean"].tolist() == [1.0, 2.0, 900.0]


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[3] / "docs/align.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names: dict[str, Any] = {}
        exec(compile(code, "docs/align.md", "exec"), names)
    assert sorted(names["matched"].orders["0 units"]) == list(range(32))


def test_the_specification_of_the_page_fits(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/align.md").read_text()
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if "groups:" in block)
    (tmp_path / "own.yaml").write_text(text)
    shapes = {
        "embed.weight": (9, 6), "layers.0.q.weight": (16, 6), "layers.0.k.weight": (8, 6), "layers.0.v.weight": (8, 6),
        "layers.0.o.weight": (6, 16), "fc.weight": (3, 24), "fc.bias": (3,), "qkv.weight": (32, 6),
    }  # fmt: skip
    symmetries = read_specification(tmp_path / "own.yaml").over(shapes, {})
    assert symmetries.groups == {"stream": Group(6), "heads": Group(4, 2)}
    assert [part.entries.shape for part in symmetries.axes["qkv.weight"][0]] == [(8, 2), (4, 2), (4, 2)]
