"""The same tensors as mergekit 0.1.5, whose outputs for these recipes lie beside the checkout.

The bfloat16 cases: mergekit rounds after every step, evomerge once. A unit in the last place is counted at the result;
for methods that add deltas to a base at the larger of result and base, because where the two nearly cancel,
mergekit's roundings are many units of the small result. Such methods get their weights rounded to bfloat16 here, as
mergekit keeps them. Of delta elements that equal a trim threshold mergekit keeps those that an unstable sort puts
first: there its result may be the one with such an element kept or the one with it dropped.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evomerge.merging.disk.stream import merge
from evomerge.merging.kernels.arithmetic import delta
from evomerge.merging.kernels.elementwise import consensus
from evomerge.merging.plan.jobs import MergeJob, Read
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import execute
from evomerge.recipe.mergekit import read_recipe
from evomerge.registry import METHODS

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs are not here")

EXACT = [
    "linear", "linear_gradient_filter", "linear_nonorm", "slerp", "slerp_filter_gradient", "nuslerp", "nuslerp_base",
    "nuslerp_row_wise", "multislerp", "multislerp_nobase", "karcher", "task_arithmetic", "task_arithmetic_norm_lambda",
    "ties", "ties_layer_gradient", "ties_nonorm_rescale_lambda", "breadcrumbs", "breadcrumbs_ties", "model_stock",
    "model_stock_filter_wise", "sce", "ram", "ramplus_tl", "arcee_fusion", "nearswap", "passthrough_stack",
    "slices_two_groups", "multi_stage", "tied", "lora_source", "tokenizer_base", "tokenizer_model", "tokenizer_union",
]  # fmt: skip
ROUNDED = ["linear_bf16", "slerp_bf16", "task_arithmetic_bf16", "ties_bf16", "breadcrumbs_ties_bf16"]
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


@pytest.fixture(autouse=True)
def beside_the_models(monkeypatch):
    monkeypatch.chdir(PARITY / "models")


def planned(case):
    """(jobs, mergekit's tensors, bank)"""
    bank = SourceBank()
    jobs = plan(read_recipe(PARITY / "cases" / f"{case}.yml"), bank.open).jobs
    expected = load_file(PARITY / "expected" / f"{case}.safetensors")
    assert set(jobs) == set(expected)
    return jobs, expected, bank


def run(job: MergeJob, bank: SourceBank, expected: Tensor) -> Tensor:
    found = execute(job, bank)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return found


def read(operand, job, bank):
    assert isinstance(operand, Read)
    return bank.tensor(operand.model, operand.tensor).to(torch_dtype(job.work))


def deltas(job, bank):
    base = read(job.base, job, bank)
    return [delta(read(operand, job, bank), base) for operand in job.inputs]


def test_every_case_is_compared():
    assert sorted(EXACT + ROUNDED + RANDOM) == sorted(case.stem for case in (PARITY / "cases").glob("*.yml"))


@pytest.mark.parametrize("case", EXACT)
def test_float32_agrees_to_one_millionth(case):
    jobs, expected, bank = planned(case)
    for name, tensor in expected.items():
        error = (run(jobs[name], bank, tensor) - tensor).abs()
        if jobs[name].method == "arcee_fusion":
            error[either(jobs[name], bank, tensor)] = 0
        assert float(error.max()) <= 1e-6 * float(tensor.abs().max()), name


def either(job: MergeJob, bank: SourceBank, expected: Tensor) -> Tensor:
    """The elements whose importance is the threshold but for rounding, where the expected value is one of the two: the
    divergence of similar rows is a small sum of large terms, and how those are rounded depends on the processor."""
    base, other = (read(operand, job, bank) for operand in (job.base, *job.inputs))
    rows = [model.double().reshape(-1, model.shape[-1]).softmax(dim=-1) + 1e-8 for model in (other, base)]
    divergence = (rows[0] * (rows[0] / rows[1]).log()).sum(dim=-1, keepdim=True)
    importance = ((other - base).double().abs().reshape(-1, base.shape[-1]) * divergence).reshape(base.shape)
    q1, median, q3 = importance.flatten().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    threshold = median + 1.5 * (q3 - q1)
    rounding = 2 * torch.finfo(torch.float32).eps / float(divergence.min())
    open_ = (importance - threshold).abs() <= rounding * threshold
    assert float(open_.double().mean()) < 0.01
    return open_ & ((expected == base) | (expected == other))


@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_agrees_to_two_units_in_the_last_place(case):
    jobs, expected, bank = planned(case)
    for name, tensor in expected.items():
        job = with_stored_weights(jobs[name])
        limit, theirs = 2 * unit(job, bank, tensor), tensor.float()
        far = (run(job, bank, tensor).float() - theirs).abs() > limit
        if "density" in job.parameters:
            possible, open_ = outcomes(job, bank)
            far &= ~(open_ & ((possible - theirs).abs() <= limit).any(dim=0))
        assert float(far.float().mean()) <= 0.005, name


def adds_deltas(job: MergeJob) -> bool:
    return METHODS[job.method].base == "subtracted"


def with_stored_weights(job: MergeJob) -> MergeJob:
    """mergekit keeps the weights of deltas in the deltas' dtype."""
    if not adds_deltas(job):
        return job
    weight = torch.tensor(job.parameters["weight"]).to(torch_dtype(job.work)).tolist()
    return replace(job, parameters={**job.parameters, "weight": tuple(weight)})


def unit(job: MergeJob, bank: SourceBank, expected: Tensor) -> Tensor:
    """A bfloat16's unit in the last place, for each element."""
    scale = expected.float().abs()
    if adds_deltas(job):
        scale = torch.maximum(scale, read(job.base, job, bank).float().abs())
    return torch.exp2(torch.floor(torch.log2(scale.clamp_min(1e-30))) - 7)


def ranks(job: MergeJob, i: int, count: int) -> tuple[int, int]:
    """The ranks, from the largest magnitude, between which delta `i` is kept."""
    target = int(job.parameters["density"][i] * count)
    if job.method == "ties":
        return 0, target
    below = max(0, count - target - int(job.parameters["gamma"][i] * count))
    return count - below - target, count - below


def outcomes(job: MergeJob, bank: SourceBank) -> tuple[Tensor, Tensor]:
    """All merges that keep or drop the elements at the sources' thresholds, stacked; and whether an element has more
    than one."""
    base, parameters, surely, perhaps = read(job.base, job, bank).float(), job.parameters, [], []
    changes = deltas(job, bank)
    for i, change in enumerate(changes):
        size = change.abs()
        first, last = ranks(job, i, size.numel())
        ordered = size.flatten().sort(descending=True).values
        lower, upper = ordered[last - 1], ordered[first - 1] if first else torch.inf
        surely.append((size > lower) & (size < upper))
        perhaps.append((size == lower) | (size == upper))
    found = []
    for taken in product((False, True), repeat=len(changes)):
        kept = [s | (p & t) for s, p, t in zip(surely, perhaps, taken, strict=True)]
        weighted = [c * k * w for c, k, w in zip(changes, kept, parameters["weight"], strict=True)]
        weights = [torch.tensor(w) for w in parameters["weight"]]
        found.append(consensus(base, weighted, weights, torch.tensor(1.0), True, parameters["normalize"]))
    return torch.stack(found), torch.stack(perhaps).any(dim=0)


@pytest.mark.parametrize("case", RANDOM)
def test_random_masks_keep_the_share_and_the_norm(case):
    jobs, _, bank = planned(case)
    for name, job in jobs.items():
        base = read(job.base, job, bank)
        for i, whole in enumerate(deltas(job, bank)):
            moved = execute(alone(job, i), bank) - base
            kept, chance, large = moved != 0, chances(job, i, whole), whole.abs() > whole.abs().median()
            for part in (torch.ones_like(large), large, ~large):
                assert likely(kept[part], chance[part]), (name, i)
            assert float(moved.double().abs().sum()) == pytest.approx(float(whole.double().abs().sum()), rel=1e-4)
            assert float((moved.sign() * whole.sign()).min()) >= 0


@pytest.mark.parametrize("case", RANDOM)
def test_random_merges_move_what_mergekit_moves(case):
    """An element stays where all sources drop it, and moves as one of their weighted deltas would. Where the sum of
    weights divides, a negative weight alone cancels out."""
    jobs, expected, bank = planned(case)
    for name, job in jobs.items():
        base, changes = read(job.base, job, bank), deltas(job, bank)
        stays = torch.stack([1 - chances(job, i, change) for i, change in enumerate(changes)]).prod(dim=0)
        signs = [c.sign() for c in changes]
        pulls = [s if w >= 0 else -s for s, w in zip(signs, job.parameters["weight"], strict=True)]
        pull = torch.stack([*pulls, *(signs if job.parameters["normalize"] else [])])
        for tensor in (run(job, bank, expected[name]), expected[name]):
            moved = (tensor - base).sign()
            assert bool(((moved == 0) | (moved == pull).any(dim=0)).all()), name
            assert likely(moved == 0, stays), name


def alone(job: MergeJob, i: int) -> MergeJob:
    """The merge of source `i` at weight 1."""
    own = {key: (value[i],) if isinstance(value, tuple) else value for key, value in job.parameters.items()}
    return replace(job, inputs=(job.inputs[i],), parameters={**own, "weight": (1.0,)})


def chances(job: MergeJob, i: int, change: Tensor) -> Tensor:
    """The probability with which each element is kept: DARE's are equal, DELLA's rise with the rank in the row."""
    density = job.parameters["density"][i]
    if "epsilon" not in job.parameters:
        return torch.full_like(change, density)
    epsilon, rows = job.parameters["epsilon"][i], change.abs().reshape(-1, change.shape[-1])
    rank = rows.argsort(dim=1, stable=True).argsort(dim=1) / (rows.shape[1] - 1)
    return (density - epsilon + 2 * epsilon * rank).reshape(change.shape)


def likely(happened: Tensor, chance: Tensor) -> bool:
    """Whether as many happened as the probabilities let expect: within 4 standard errors, and one element."""
    expected, variance = chance.double().sum(), (chance * (1 - chance)).double().sum()
    return abs(float(happened.sum() - expected)) <= 4 * float(variance.sqrt()) + 1


def test_the_merged_folder_holds_the_same(tmp_path):
    folder = merge(PARITY / "cases" / "slices_two_groups.yml", tmp_path / "out")
    expected = load_file(PARITY / "expected" / "slices_two_groups.safetensors")
    written = load_file(folder / "model.safetensors")
    assert all(torch.allclose(written[n], t, rtol=0, atol=1e-6) for n, t in expected.items())
