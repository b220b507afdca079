"""Slopes of merges against central differences, for every method that declares some."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.slopes import Pull, _pull
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS
from tests.merging.test_core_space import write_adapter

DIFFERENTIABLE = sorted(name for name, method in METHODS.items() if method.differentiable)
STEP = 1e-6


def recipe(models, method: str, weights, lambda_: float, dtype: str, **parameters) -> Recipe:
    declared = METHODS[method]
    names = {p.name for p in declared.parameters}
    own = [{"weight": w, "density": 0.6, "gamma": 0.1, "epsilon": 0.1, "rank": 0.5} for w in weights]
    sources = ["a"] if declared.sources[1] == 1 else ["a", "b"]
    inputs = [
        Input(str(models[s]), parameters={k: v for k, v in values.items() if k in names})
        for s, values in zip(sources, own, strict=False)
    ]
    shared = {"lambda": lambda_, "t": abs(lambda_) / 3, "isotropy": 0.4, **parameters}
    shared = {k: v for k, v in shared.items() if k in names}
    if method == "linear":
        inputs.append(Input(str(models["base"]), parameters={"weight": 0.3}))
    listed = declared.base == "endpoint"
    inputs = [*inputs, Input(str(models["base"]))] if listed else inputs
    document = Document(method, (Slice(tuple(inputs)),), str(models["base"]), shared, dtype, seed=5)
    return Recipe((document,))


@pytest.fixture(scope="module")
def bank() -> SourceBank:
    return SourceBank()


@pytest.mark.parametrize("method", DIFFERENTIABLE)
@pytest.mark.parametrize("flags", [{}, {"normalize": True, "rescale": True}, {"normalize": False, "rescale": False}])
@settings(max_examples=8, deadline=None)
@given(
    weights=st.tuples(st.floats(0.1, 1.2), st.floats(-0.8, 1.2).filter(lambda w: abs(w) > 0.05)),
    lambda_=st.floats(0.3, 1.4),
    seed=st.integers(0, 2**31),
)
def test_slopes_are_the_central_differences(models_64, bank, method, flags, weights, lambda_, seed) -> None:
    if abs(sum(weights)) < 0.1:
        return
    merge_plan = plan(recipe(models_64, method, weights, lambda_, "float64", **flags), bank.open)
    generator = torch.Generator().manual_seed(seed)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"):
        job = merge_plan.jobs[name]
        if method == "linear" and abs(sum(job.parameters["weight"])) < 0.1:
            return  # with the base's: normalised weights have a pole there
        gradient = torch.randn(job.shape, generator=generator, dtype=torch.float64)
        pull = Pull(job, bank, torch.device("cpu"))
        pull.add(0.25 * gradient)
        pull.add(0.75 * gradient)
        found = pull.slopes()
        assert list(found) == list(METHODS[method].differentiable)

        def loss(changed, gradient=gradient, job=job) -> float:
            return float((execute(replace(job, parameters={**job.parameters, **changed}), bank) * gradient).sum())

        def difference(parameter: str, at: int, loss=loss, job=job) -> float:
            values = job.parameters[parameter]

            def moved(by: float):
                if not isinstance(values, tuple):
                    return values + by
                return tuple(v + by * (i == at) for i, v in enumerate(values))

            return (loss({parameter: moved(STEP)}) - loss({parameter: moved(-STEP)})) / (2 * STEP)

        for parameter, slopes in found.items():
            expected = [difference(parameter, at) for at in range(len(slopes))]
            # Small singular directions turn far with a step: their differences are less exact.
            assert slopes == pytest.approx(expected, rel=1e-4, abs=1e-6 if METHODS[method].spectral else 1e-7)


@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_float32_slopes_are_those_of_float64(models, models_64, bank, method) -> None:
    """What differs in a kernel's float32 are roundings only: the same elements are kept, the same signs elected."""
    found = []
    for family, dtype in ((models, "float32"), (models_64, "float64")):
        job = plan(recipe(family, method, (0.7, 0.4), 0.9, dtype), bank.open).jobs["model.layers.0.mlp.up_proj.weight"]
        gradient = torch.randn(job.shape, generator=torch.Generator().manual_seed(1))
        pull = Pull(job, bank, torch.device("cpu"))
        pull.add(gradient)
        found.append([slope for slopes in pull.slopes().values() for slope in slopes])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4 * max(map(abs, found[1])))


def test_a_pull_starts_again_from_nothing(models, bank) -> None:
    job = plan(recipe(models, "ties", (0.7, 0.4), 0.9, "float32"), bank.open).jobs["model.norm.weight"]
    pull = Pull(job, bank, torch.device("cpu"))
    assert pull.slopes() == {"weight": (0.0, 0.0), "lambda": (0.0,)}
    pull.add(torch.ones(job.shape))
    first = pull.slopes()
    pull.add(torch.ones(job.shape))
    assert pull.slopes() == first != {"weight": (0.0, 0.0), "lambda": (0.0,)}


def _loss(resident: Resident) -> torch.Tensor:
    tokens = torch.arange(12).remainder(9).reshape(2, 6)
    logits = resident.model(tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten())


@pytest.mark.parametrize(
    ("method", "moved"),
    [
        ("task_arithmetic", "weight"),
        ("dare_linear", "weight"),
        ("linear", "weight"),
        # a step in a weight that can be told from float32 rounding lets elements of whole models change sides
        ("ties", "lambda"),
        ("dare_ties", "lambda"),
    ],
)
@pytest.mark.parametrize("family", ["models", "tied_models"])
def test_a_whole_models_slopes_are_the_differences_of_its_loss(request, family, method, moved) -> None:
    """Gradients over layers, tied embeddings: what moves is one number of the recipe, in all tensors."""
    models, models_64 = request.getfixturevalue(family), request.getfixturevalue(f"{family}_64")
    bank = SourceBank()
    double, single = (Resident(Checkpoint.open(str(m["base"])), bank, d) for m, d in
                      ((models_64, "float64"), (models, "float32")))  # fmt: skip

    def at(models, value: float) -> Recipe:
        w, lambda_ = (value, 1.1) if moved == "weight" else (0.7, value)
        return recipe(models, method, ((w, w / 2), 0.4), lambda_, None, normalize=False)

    single.materialize(at(models, 0.8))
    pulls = single.pulls()
    with pulls.open():
        _loss(single).backward()
    slopes = pulls.slopes()
    assert all(p.grad is None and not p.requires_grad for p in single.model.parameters())
    jobs, found = plan(at(models, 0.8), bank.open).jobs, 0.0
    for name, own in slopes.items():
        value = jobs[name].parameters[moved]
        found += own[moved][0] * (value[0] if isinstance(value, tuple) else value) / 0.8
    ends = []
    for step in (2e-3, -2e-3):  # norms are taken in float32, whatever the dtype
        double.materialize(at(models_64, 0.8 + step))
        with torch.no_grad():
            ends.append(float(_loss(double)))
    assert found == pytest.approx((ends[0] - ends[1]) / 4e-3, rel=1e-3)


def test_only_wanted_tensors_take_part(models) -> None:
    resident = Resident(Checkpoint.open(str(models["base"])), SourceBank(), "float32")
    resident.materialize(recipe(models, "task_arithmetic", (0.7, 0.4), 0.9, "float32"))
    pulls, seen = resident.pulls(), []
    with pulls.open({"model.norm.weight"}):
        seen = [n for n, p in resident.model.named_parameters() if p.requires_grad]
        _loss(resident).backward()
    slopes = pulls.slopes()
    assert seen == ["model.norm.weight"]
    assert any(slopes["model.norm.weight"]["weight"])
    assert not any(slopes["model.layers.0.mlp.up_proj.weight"]["weight"])


@pytest.mark.parametrize("method", ["task_arithmetic", "isotropy"])
def test_slopes_through_core_space(tmp_path, method) -> None:
    """A matrix W + U C V^T, whose cores are merged: against differences of the merged matrix."""
    base = tiny_models.write(tmp_path / "base", tiny_models.base_tensors())
    sources = [f"{base}+{write_adapter(tmp_path / str(i), ['up_proj'], 2, 10 * i)}" for i in range(2)]
    family, bank = dict(zip("ab", sources, strict=True)) | {"base": base}, SourceBank()

    def job(weights):
        made = recipe(family, method, weights, 0.9, "float32")
        made = Recipe((replace(made.output, core=True),))
        return plan(made, bank.open).jobs["model.layers.0.mlp.up_proj.weight"]

    gradient = torch.randn(job((0.7, 0.4)).shape, generator=torch.Generator().manual_seed(2))
    pull = _pull(job((0.7, 0.4)), bank, torch.device("cpu"))
    pull.add(gradient)

    def loss(weights):
        return float((execute(job(weights), bank) * gradient).sum(dtype=torch.float64))

    for at, slope in enumerate(pull.slopes()["weight"]):
        ends = [loss(tuple(w + by * (i == at) for i, w in enumerate((0.7, 0.4)))) for by in (1e-2, -1e-2)]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-3, abs=1e-3)
