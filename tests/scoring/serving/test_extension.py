"""What runs inside of vLLM's workers, as far as it needs no vLLM."""

from __future__ import annotations

import torch

from evomerge.scoring.serving.extension import prepare_tied


class Packs:
    """A `quant_method`: its layer computes with a copy of the weight, as vLLM's do on the CPU."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.packed = layer.weight.detach().clone()


def layer(weight: torch.nn.Parameter) -> torch.nn.Module:
    made = torch.nn.Module()
    made.weight, made.quant_method, made.packed = weight, Packs(), None
    return made


def test_a_tied_head_computes_with_the_weight_in_place() -> None:
    shared, own = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    model = torch.nn.ModuleDict({"embeddings": layer(shared), "head": layer(shared), "other": layer(own)})
    prepare_tied(model)
    with torch.no_grad():
        shared.zero_()
    prepare_tied(model)
    assert torch.equal(model["head"].packed, shared)
    assert model["other"].packed is None
