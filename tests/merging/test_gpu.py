"""What a GPU computes is what the processor computes: masks and copies bit for bit, merges to the last place.

Marked `gpu`, and not part of the default run. `pytest -m gpu -n 0 tests/merging/test_gpu.py` where there is one;
`--gpu-device cpu` rehearses them without.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.evaluator.device import choose_device, place_models
from evomerge.evaluator.shares import Share
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.kernels.compiled import Compiled, compile_
from evomerge.merging.kernels.digest import digest
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs, mask_ints
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident import materialize, sharding
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.materialize import Resident, as_it_is
from evomerge.merging.resident.placement import HOST, Placement
from evomerge.merging.resident.slopes import Pull
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS, load
from evomerge.testing.methods import arguments

pytestmark = pytest.mark.gpu

MERGED = sorted(name for name in METHODS if name != "passthrough")
DIFFERENTIABLE = sorted(name for name in MERGED if METHODS[name].differentiable)
SIZES = (4096, 5003, 70_001)
DRAW = Draw(5, "model.layers.0.mlp.up_proj.weight")
KINDS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "largest": ("ties", torch.bfloat16, {"density": 0.4}),
    "between": ("breadcrumbs", torch.float16, {"density": 0.5, "gamma": 0.1}),
    "drawn": ("dare_linear", torch.float32, {"density": 0.6, "normalize": True}),
    "masked": ("della", torch.bfloat16, {"density": 0.5}),
}


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> str:
    name = str(request.config.getoption("--gpu-device"))
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here; --gpu-device cpu rehearses")
    return choose_device(name)


@pytest.fixture
def compiler(device: str) -> None:
    """Kernels can be compiled here."""
    tool = os.environ.get("CXX", "g++") if device == "cpu" else os.environ.get("CC", "gcc")
    if shutil.which(tool) is None or (device != "cpu" and importlib.util.find_spec("triton") is None):
        pytest.skip(f"no compiler: {tool}{'' if device == 'cpu' else ' and triton'}")


def tensors(count: int, dtype: torch.dtype, number: int = 3) -> tuple[list[Tensor], Tensor]:
    """Fine-tunes and their base."""
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(count, generator=generator)
    return [(base + 0.05 * torch.randn(count, generator=generator)).to(dtype) for _ in range(number)], base.to(dtype)


def units(found: Tensor, expected: Tensor, base: Tensor) -> float:
    """How far two merges are apart at most, in units in the last place of the largest of them and the base."""
    a, b, c = (t.detach().cpu().double() for t in (found, expected, base))
    largest = torch.stack([a.abs(), b.abs(), c.abs()]).amax(dim=0).clamp_min(torch.finfo(expected.dtype).tiny)
    unit = torch.exp2(torch.floor(torch.log2(largest))) * torch.finfo(expected.dtype).eps
    return float(((a - b).abs() / unit).max())


def test_a_unit_is_one_of_the_last_place() -> None:
    numbers = torch.tensor([1.0, -0.3, 0.0, 1e-3], dtype=torch.bfloat16)
    nothing = torch.zeros_like(numbers)
    assert units(numbers, numbers, nothing) == 0
    raised = (numbers.view(torch.int16) + torch.tensor([0, 2, 0, 0], dtype=torch.int16)).view(torch.bfloat16)
    assert units(raised, numbers, nothing) == 2
    # Where the result nearly cancels, the unit is the base's
    assert units(raised, numbers, torch.ones_like(numbers)) < 1


# Masks


@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_random_masks_are_the_processor_s(density: float, device: str) -> None:
    like = torch.empty(300, 701)
    for source in range(3):
        expected = DRAW.mask(source, density, like)
        assert torch.equal(DRAW.mask(source, density, like.to(device)).cpu(), expected)
        assert float(expected.float().mean()) == pytest.approx(density, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_magnitude_masks_are_the_processor_s(dtype: torch.dtype, device: str) -> None:
    """Of 16 bits many are equal at the threshold: those of lower index are kept, wherever it is computed."""
    for count in SIZES:
        merged, base = tensors(count, dtype)
        there = Inputs([t.to(device) for t in merged], base.to(device))
        here = Inputs(merged, base)
        for keep in (1, count // 10, count // 2, count - 1):
            for i in range(3):
                found, expected = there.cut(i, keep), here.cut(i, keep)
                assert (found.value, found.position) == (expected.value, expected.position)


# Merges


def recipe(models: dict[str, Path], method: str, dtype: str) -> Recipe:
    declared = METHODS[method]
    names = [str(models[s]) for s in ("a", "b", "c")[: int(min(3, declared.sources[1]))]]
    # Above that of nearswap all is the source
    values = {"weight": 0.41, "density": 0.37, "t": 0.003 if method == "nearswap" else 0.3, "lambda": 1.1}

    def of(scope: str) -> dict[str, Any]:
        return {p.name: values[p.name] for p in declared.parameters if p.scope == scope and p.name in values}

    listed = [str(models["base"])] if declared.base == "endpoint" else []
    inputs = tuple(Input(name, parameters=of("source")) for name in (*names, *listed))
    base = None if declared.base == "ordinary" else str(models["base"])
    seed = 11 if declared.stochastic else 0
    return Recipe((Document(method, (Slice(inputs),), base, of("tensor"), out_dtype=dtype, seed=seed),))


def resident(models: dict[str, Path], dtype: str, device: str, bank: SourceBank | None = None) -> Resident:
    return Resident(Checkpoint.open(str(models["base"])), bank or SourceBank(), dtype, device)


def placed(models: dict[str, Path], dtype: str, device: str, share: Share | None = None) -> Placement:
    opened = {str(path): Checkpoint.open(str(path)) for path in models.values()}
    planned = plan(as_it_is(str(models["base"]), dtype), lambda reference, where: opened[reference])
    return place_models(planned, dtype, opened, device, None, share)


def bank_on(models: dict[str, Path], dtype: str, device: str) -> SourceBank:
    """A bank whose models are where the planner puts them: on the device."""
    placement = placed(models, dtype, device)
    assert set(placement.homes.values()) == {HOST if device == "cpu" else device}
    return SourceBank(placement=placement)


@pytest.mark.parametrize("method", MERGED)
def test_a_candidate_is_the_checkpoint_that_is_merged_there(
    method: str, models_bf16: dict[str, Path], tmp_path: Path, device: str
) -> None:
    """One digest, be the sources on the device or copied over chunk by chunk; and the processor's values."""
    merged = recipe(models_bf16, method, "bfloat16")
    model = resident(models_bf16, "bfloat16", device, bank_on(models_bf16, "bfloat16", device))
    found = model.materialize(merged)
    assert found == resident(models_bf16, "bfloat16", device).materialize(merged)
    assert found == checkpoint_digest(merge(merged, tmp_path / "out", device=device))
    bank = SourceBank()
    base = str(models_bf16["base"])
    parameters = model.model.state_dict()
    for name, job in plan(merged, bank.open).jobs.items():
        assert str(parameters[name].device) == device
        assert units(parameters[name], execute(job, bank), bank.tensor(base, name)) <= (0 if device == "cpu" else 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_as_it_is_has_the_processor_s_digest(
    dtype: str, models: dict[str, Path], models_bf16: dict[str, Path], device: str
) -> None:
    family = models if dtype == "float32" else models_bf16
    model = resident(family, dtype, device)
    for name in ("a", "base"):
        assert model.load(str(family[name])) == checkpoint_digest(family[name])


# Slopes


@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_slopes_of_coefficients_are_the_processor_s(method: str, models: dict[str, Path], device: str) -> None:
    bank = SourceBank()
    merged = plan(recipe(models, method, "float32"), bank.open)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"):
        job, found = merged.jobs[name], []
        gradient = torch.randn(job.shape, generator=torch.Generator().manual_seed(1))
        for place in (device, "cpu"):
            pull = Pull(job, bank, torch.device(place))
            pull.add(gradient.to(place))
            found.append([slope for slopes in pull.slopes().values() for slope in slopes])
        assert any(found[1])
        assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4 * max(map(abs, found[1])))


def test_slopes_of_a_whole_model_are_the_processor_s(models: dict[str, Path], device: str) -> None:
    tokens, found = torch.arange(24).remainder(9).reshape(2, 12), []
    for place in (device, "cpu"):
        model = resident(models, "float32", place)
        model.materialize(recipe(models, "ties", "float32"))
        pulls = model.pulls()
        with pulls.open():
            logits = model.model(tokens.to(place)).logits[:, :-1].flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten().to(place)).backward()
        found.append([v for own in pulls.slopes().values() for part in own.values() for v in part])
    assert len(found[0]) == len(found[1])
    assert found[0] == pytest.approx(found[1], rel=1e-2, abs=1e-3 * max(map(abs, found[1])))


# Shares of one card


def test_a_model_that_is_cut_in_two_is_the_whole_one(
    models: dict[str, Path], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card has two names, so that the model is cut between them, and activations go from one to the other. A
    processor has one: there all is put where it is."""
    merged, alone = recipe(models, "ties", "float32"), resident(models, "float32", device)
    room, names = {device: 10**9, device.partition(":")[0]: 10**9}, set()
    if device == "cpu":
        room = {"one": 10**9, "other": 10**9}
    whole = sharding.device_map

    def seen(model: Any, cut: Any) -> dict[str, str]:
        found = whole(model, cut)
        names.update(found.values())
        return dict.fromkeys(found, "cpu") if device == "cpu" else found

    monkeypatch.setattr(sharding, "device_map", seen)
    cut = Resident(Checkpoint.open(str(models["base"])), SourceBank(), "float32", room)
    assert names == set(room)
    if device == "cpu":
        # The rest asks the devices themselves
        assert cut.digest() == checkpoint_digest(models["base"])
        return
    assert cut.materialize(merged) == alone.materialize(merged)
    tokens = torch.arange(1, 19)[None].to(device)
    with torch.no_grad():
        assert torch.allclose(cut.model(tokens).logits.to(device), alone.model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_two_workers_share_one_card(models: dict[str, Path], device: str) -> None:
    """Each plans its half, both are there at the same time, and make the same candidates."""
    halves = [placed(models, "float32", device, Share(device, on_device=2, on_host=2)) for _ in range(2)]
    whole = placed(models, "float32", device)
    assert all(half.totals[device] == whole.totals[device] // 2 for half in halves)
    workers = [resident(models, "float32", device, SourceBank(placement=half)) for half in halves]
    for method in ("ties", "dare_ties"):
        merged = recipe(models, method, "float32")
        alone = resident(models, "float32", device).materialize(merged)
        assert [worker.materialize(merged) for worker in workers] == [alone, alone]


# Compiled kernels, last: to compile them takes longer than all before


class Ready:
    """Every kernel is compiled before its first use."""

    def __init__(self) -> None:
        self.find = functools.lru_cache(None)(compile_)

    def spent(self, signature: Any, seconds: float) -> None:
        pass


READY: Any = Ready()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_give_plain_torch_s_values(kind: str, device: str) -> None:
    """On a processor its bits; on a GPU its division may round otherwise."""
    name, dtype, values = KINDS[kind]
    for count in SIZES:
        merged, base = tensors(count, dtype)
        inputs = Inputs([t.to(device) for t in merged], base.to(device), draw=DRAW)
        blend = load(METHODS[name].function)(inputs, **arguments(name, 3, weight=[0.7, 0.5, -0.3], **values))
        found = [torch.full((count,), 7.0, dtype=dtype, device=device) for _ in range(2)]
        for runner, out in zip((Runner(READY), Runner()), found, strict=True):
            runner.write(blend, out, dtype)
        assert not torch.equal(found[1].cpu(), base)
        assert units(*found, base) <= (0 if device == "cpu" else 1)


@pytest.mark.usefixtures("compiler")
def test_compiled_masks_and_fingerprints_are_equal(device: str) -> None:
    """The norms of what is kept tell masks apart; both are sums of whole numbers."""
    for count in SIZES:
        merged, base = tensors(count, torch.bfloat16)
        ints, scales = mask_ints(DRAW, [0.2, 0.5, 0.9]), [[2.0**20] * 3]
        kernel = Kernel("drawn_norms", (("work", torch.bfloat16),))
        here = Blend(kernel, base.to(device), [t.to(device) for t in merged], scales, ints)
        found = [r.reduce(here, torch.bfloat16, device) for r in (Runner(READY), Runner())]
        assert found == [Runner().reduce(Blend(kernel, base, merged, scales, ints), torch.bfloat16)] * 2
        named = [("t", merged[0].to(device))]
        assert digest(named, Runner(READY)) == digest(named) == digest([("t", merged[0])])


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
@pytest.mark.usefixtures("compiler")
def test_a_candidate_keeps_its_values_once_kernels_are_compiled(
    method: str, models_bf16: dict[str, Path], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize, "Compiled", lambda: Compiled(worth=0))
    model = resident(models_bf16, "bfloat16", device, bank_on(models_bf16, "bfloat16", device))
    merged = recipe(models_bf16, method, "bfloat16")
    model.materialize(merged)
    plain = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    model.compiled.wait()
    digests = [model.materialize(merged) for _ in range(2)]
    assert digests[0] == digests[1]
    bank, base = SourceBank(), str(models_bf16["base"])
    for name, tensor in model.model.state_dict().items():
        assert units(tensor, plain[name], bank.tensor(base, name)) <= (0 if device == "cpu" else 1)
