"""The same tensors as mergekit 0.1.5, whose outputs for these recipes lie beside the checkout.

The bfloat16 cases: mergekit rounds after every step, evomerge once. Where base and delta nearly cancel, that
difference is many units in the last place of the small result, so a unit is counted at the larger of base and result.
mergekit breaks ties at the trim threshold by an unstable sort, so elements that equal a threshold are left out; where
weighted deltas nearly cancel, its rounding may elect the other sign.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.merge.arithmetic import delta, total_magnitude
from evomerge.merge.bank import SourceBank, torch_dtype
from evomerge.merge.execute import execute
from evomerge.merge.jobs import Job, Read
from evomerge.merge.plan import plan
from evomerge.merge.stream import merge
from evomerge.recipe.mergekit import read_recipe

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs are not here")

EXACT = [
    "linear", "linear_gradient_filter", "linear_nonorm", "slerp", "slerp_filter_gradient", "task_arithmetic",
    "task_arithmetic_norm_lambda", "ties", "ties_layer_gradient", "ties_nonorm_rescale_lambda", "slices_two_groups",
    "multi_stage", "passthrough_stack", "tied",
]  # fmt: skip
ROUNDED = ["linear_bf16", "slerp_bf16", "task_arithmetic_bf16", "ties_bf16"]


@pytest.fixture(autouse=True)
def beside_the_models(monkeypatch):
    monkeypatch.chdir(PARITY / "models")


def run(case):
    """(jobs, our tensors, mergekit's tensors, bank)"""
    bank = SourceBank()
    jobs = plan(read_recipe(PARITY / "cases" / f"{case}.yml"), bank.open).jobs
    expected = load_file(PARITY / "expected" / f"{case}.safetensors")
    found = {name: execute(job, bank) for name, job in jobs.items()}
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
    return jobs, found, expected, bank


@pytest.mark.parametrize("case", EXACT)
def test_float32_agrees_to_one_millionth(case):
    _, found, expected, _ = run(case)
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-6 * float(tensor.abs().max()), name


def read(operand, job, bank):
    assert isinstance(operand, Read)
    return bank.tensor(operand.model, operand.tensor).to(torch_dtype(job.work))


def at_a_threshold(job: Job, bank: SourceBank) -> torch.Tensor:
    """Elements whose delta is as large as the smallest that is kept: several may be, and only some of them fit."""
    base = read(job.base, job, bank)
    found = torch.zeros(job.shape, dtype=torch.bool)
    for operand, density in zip(job.inputs, job.parameters["density"], strict=True):
        size = delta(read(operand, job, bank), base).abs()
        k = max(1, int(density * size.numel()))
        found |= size == size.flatten().sort(descending=True).values[k - 1]
    return found


@pytest.mark.parametrize("case", ROUNDED)
def test_bfloat16_agrees_to_two_units_in_the_last_place(case):
    jobs, found, expected, bank = run(case)
    for name, tensor in expected.items():
        job, theirs = jobs[name], tensor.float()
        scale = theirs.abs()
        if job.base is not None:
            scale = torch.maximum(scale, read(job.base, job, bank).float().abs())
        unit = torch.exp2(torch.floor(torch.log2(scale.clamp_min(1e-30))) - 7)
        far = (found[name].float() - theirs).abs() > 2 * unit
        if "density" in job.parameters:
            far &= ~at_a_threshold(job, bank)
        assert float(far.float().mean()) <= 0.01, name


@pytest.mark.parametrize("case", ["dare_linear", "dare_ties"])
def test_random_masks_keep_the_share_and_the_norm(case):
    jobs, found, expected, bank = run(case)
    for name, job in jobs.items():
        base = read(job.base, job, bank)
        densities, count = job.parameters["density"], base.numel()
        for i, (operand, density) in enumerate(zip(job.inputs, densities, strict=True)):
            alone = replace(
                job, inputs=(operand,), parameters={**job.parameters, "weight": (1.0,), "density": (density,)}
            )
            moved = execute(alone, bank) - base
            whole = delta(read(operand, job, bank), base)
            share = float((moved != 0).float().mean())
            assert abs(share - density) <= 4 * math.sqrt(density * (1 - density) / count), (name, i)
            assert total_magnitude(moved) == pytest.approx(total_magnitude(whole), rel=1e-4)
            signs = moved.sign() * whole.sign()
            assert float(signs.min()) >= 0
        if case == "dare_linear":  # an element stays where all sources drop it, here as in mergekit
            stays = math.prod(1 - d for d in densities)
            error = 4 * math.sqrt(stays * (1 - stays) / count)
            for tensor in (found[name], expected[name]):
                assert abs(float((tensor == base).float().mean()) - stays) <= error + 1 / count, name


def test_the_merged_folder_holds_the_same(tmp_path):
    folder = merge(PARITY / "cases" / "slices_two_groups.yml", tmp_path / "out")
    expected = load_file(PARITY / "expected" / "slices_two_groups.safetensors")
    written = load_file(folder / "model.safetensors")
    assert all(torch.allclose(written[n], t, rtol=0, atol=1e-6) for n, t in expected.items())
