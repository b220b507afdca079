"""Merges of adapters against PEFT's `add_weighted_adapter`, on its own model.

PEFT merges A and B apart (`ties`, `dare_linear`), or the changes of whole weights, which it then decomposes
(`ties_svd`, `dare_linear_svd`). Its formulas on changes are the ones here, but that TIES weighs behind the election of
signs, and never divides by weights: with equal weights w it is ours with lambda w.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import merge
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.methods.dare import dare_linear
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

peft = pytest.importorskip("peft", reason="PEFT is not installed (pip install 'evomerge[test]')")
transformers = pytest.importorskip("transformers")

RANKS, TARGETS = (2, 3), ["q_proj", "up_proj"]
NAMES = [f"model.layers.{i}.{p}" for i in range(tiny_models.LAYERS) for p in ("self_attn.q_proj", "mlp.up_proj")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of other ranks that PEFT has saved."""
    place: Path = tmp_path_factory.mktemp("peft")
    tiny_models.write(place / "base", tiny_models.base_tensors())
    for number, rank in enumerate(RANKS):
        torch.manual_seed(number)
        base = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank + number, target_modules=TARGETS, init_lora_weights=False)
        peft.get_peft_model(base, config).save_pretrained(place / f"adapter-{number}")
    return place


def theirs(folder: Path, weights: list[float], **how: Any) -> dict[str, Tensor]:
    """The change of each module by PEFT's merge."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder / "adapter-0", adapter_name="one")
    model.load_adapter(folder / "adapter-1", adapter_name="two")
    model.add_weighted_adapter(["one", "two"], weights, "both", **how)
    layers = dict(model.base_model.model.named_modules())
    return {name: layers[name].get_delta_weight("both").detach() for name in NAMES}


def recipe(folder: Path, method: str, core: bool, sources: list[dict[str, float]], **shared: Any) -> Recipe:
    base = str(folder / "base")
    inputs = [Input(f"{base}+{folder / f'adapter-{i}'}", None, own) for i, own in enumerate(sources)]
    return Recipe((Document(method, (Slice((*inputs, Input(base))),), base, shared, core=core),))


def ours(checkpoint: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """The change of each module in a checkpoint."""
    base = Checkpoint.open(str(folder / "base"))
    return {name: checkpoint.read(f"{name}.weight") - base.read(f"{name}.weight") for name in NAMES}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        assert tensor.abs().max() > 1e-3
        assert torch.allclose(found[name], tensor, atol=2e-5), name


@pytest.mark.parametrize("core", [True, False])
def test_cat(folder: Path, tmp_path: Path, core: bool) -> None:
    """The sum of the changes, in the rank of all adapters together."""
    weights = [{"weight": 0.7}, {"weight": 0.4}]
    wanted = theirs(folder, [0.7, 0.4], combination_type="cat")
    made = recipe(folder, "task_arithmetic", core, weights)
    close(ours(Checkpoint.open(str(merge(made, tmp_path / "whole"))), folder), wanted)
    merge(made, tmp_path / "adapter", as_adapter=True, rank=sum(RANKS))
    close(ours(Checkpoint.open(f"{folder / 'base'}+{tmp_path / 'adapter'}"), folder), wanted)


def test_svd(folder: Path, tmp_path: Path) -> None:
    """The sum of the changes, cut to a rank."""
    wanted = theirs(folder, [0.7, 0.4], combination_type="svd", svd_rank=3)
    made = recipe(folder, "task_arithmetic", False, [{"weight": 0.7}, {"weight": 0.4}])
    merge(made, tmp_path / "adapter", as_adapter=True, rank=3)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 3
    close(ours(Checkpoint.open(f"{folder / 'base'}+{tmp_path / 'adapter'}"), folder), wanted)


@pytest.mark.parametrize("density", [0.5, 0.8])
def test_ties_svd(folder: Path, tmp_path: Path, density: float) -> None:
    wanted = theirs(folder, [0.6, 0.6], combination_type="ties_svd", svd_rank=8, density=density)
    sources = [{"weight": 0.6, "density": density}] * 2
    made = recipe(folder, "ties", False, sources, normalize=True, **{"lambda": 0.6})
    merge(made, tmp_path / "adapter", as_adapter=True, rank=8)
    close(ours(Checkpoint.open(f"{folder / 'base'}+{tmp_path / 'adapter'}"), folder), wanted)


def test_dare_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our masks in place of its own."""
    from peft.utils.merge_utils import dare_linear as peft_dare

    deltas = [torch.randn(12, 20, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    weights, density = [0.7, -0.4], 0.3
    inputs = Inputs(deltas, torch.zeros(12, 20), draw=Draw(5, "some.weight"))
    plain = dare_linear(inputs, weight=[1.0, 0.0], density=[density] * 2, normalize=False, rescale=False, lambda_=1.0)
    other = dare_linear(inputs, weight=[0.0, 1.0], density=[density] * 2, normalize=False, rescale=False, lambda_=1.0)

    def run(blend: Any) -> Tensor:
        out = torch.empty(12, 20)
        Runner().write(blend, out, torch.float32)
        return out

    masks = iter([(run(blend) != 0).float() for blend in (plain, other)])
    assert 0.15 < (run(plain) != 0).float().mean() < 0.45
    monkeypatch.setattr(torch, "bernoulli", lambda _: next(masks))
    wanted = peft_dare(deltas, torch.tensor(weights), density)
    merged = dare_linear(inputs, weight=weights, density=[density] * 2, normalize=False, rescale=False, lambda_=1.0)
    assert torch.allclose(run(merged) / density, wanted, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_adapters_of_other_ranks(folder: Path, tmp_path: Path, method: str) -> None:
    """PEFT, which merges A and B apart by these names, needs one rank; changes have none that matters."""
    with pytest.raises(ValueError, match="same r"):
        theirs(folder, [0.6, 0.6], combination_type=method, density=0.5)
    made = recipe(folder, method, True, [{"weight": 0.6, "density": 0.5}] * 2)
    merge(made, tmp_path / "adapter", as_adapter=True)
    merged = ours(Checkpoint.open(str(merge(made, tmp_path / "whole"))), folder)
    close(ours(Checkpoint.open(f"{folder / 'base'}+{tmp_path / 'adapter'}"), folder), merged)
