"""The loss barrier between models that were trained independently: of the naive average, and after each alignment.

    python benchmarks/align.py [--seeds 3] [--only MLP CNN ResNet Llama] [--epochs 30] [--steps 1500]

Two networks of a kind from different seeds, on the same data. A barrier is the largest excess of the test loss (nats
per image, or per character) over the straight line between both models' losses, at eleven points. In brackets: with
REPAIR, where there are batch norms: the same weights, with their statistics taken anew on training images. "change" is
the largest change of a log-probability on random inputs by the permutations of weight matching, in float64.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._networks import NETWORKS, digits, pieces, text_loss, texts, train_llama, train_network
from evomerge.examine.path import barrier
from evomerge.merging.permutation.activation_matching import activation_matching, record
from evomerge.merging.permutation.families import symmetries_of
from evomerge.merging.permutation.repair import repair
from evomerge.merging.permutation.straight_through import straight_through
from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weight_matching import weight_matching
from evomerge.merging.permutation.weights import Orders, permuted_weights

POINTS = [i / 10 for i in range(11)]
METHODS = ("naive", "weights", "activations", "straight-through")
State = dict[str, Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*NETWORKS, "Llama"])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--learned", type=int, default=60, help="steps of the straight-through estimator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':8}{'seed':>5}{'loss A':>9}{'loss B':>9}" + "".join(f"{m:>18}" for m in METHODS) + f"{'change':>10}")
    for name in options.only:
        rows: list[dict[str, float]] = []
        for seed in range(options.seeds):
            started = time.perf_counter()
            pair = _Llamas(seed, options.steps) if name == "Llama" else _Images(name, seed, options.epochs)
            row, ends, change = _row(pair, options.learned)
            rows.append(row)
            cells = "".join(f"{_cell(row, method):>18}" for method in METHODS)
            print(f"{name:8}{seed:5}{ends[0]:9.4f}{ends[1]:9.4f}{cells}{change:10.1e}", flush=True)
            print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
        means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        print(f"{name:8}{'mean':>5}{'':18}" + "".join(f"{_cell(means, method):>18}" for method in METHODS))
        for ending, words in (("", "of the naive barrier"), (" repaired", "with REPAIR, of the naive one")):
            scored = [m for m in METHODS if m + ending in means and m + ending != "naive"]
            shares = {m: means[m + ending] / means["naive"] for m in scored}
            if shares:
                print(f"{'':8}{words}: " + ", ".join(f"{m} {share:.1%}" for m, share in shares.items()))
    return 0


def _cell(row: Mapping[str, float], method: str) -> str:
    repaired = row.get(f"{method} repaired")
    return f"{row[method]:.4f}" + ("" if repaired is None else f" ({repaired:.4f})")


def _row(pair: _Pair, learned: int) -> tuple[dict[str, float], tuple[float, float], float]:
    one, other = pair.states
    symmetries = pair.symmetries
    matched = weight_matching(symmetries, one, other, restarts=5).orders
    by_activations = activation_matching(symmetries, *pair.records(), (one, other)).orders
    estimated = straight_through(
        symmetries, one, other, pair.batch_loss(), steps=learned, rate=pair.rate, start=matched
    ).matching.orders
    orders = dict(zip(METHODS, (symmetries.identity(), matched, by_activations, estimated), strict=True))
    row: dict[str, float] = {}
    for method, order in orders.items():
        moved = permuted_weights(symmetries, other, order)
        losses = [pair.loss(_between(one, moved, t)) for t in POINTS]
        row[method] = barrier(list(zip(POINTS, losses, strict=True))).height
        if pair.normed:
            losses = [pair.loss(_between(one, moved, t), repaired=0 < t < 1) for t in POINTS]
            row[f"{method} repaired"] = barrier(list(zip(POINTS, losses, strict=True))).height
    return row, (pair.loss(one), pair.loss(other)), pair.change(matched)


def _between(one: State, other: State, t: float) -> State:
    return {k: (1 - t) * v + t * other[k] if v.is_floating_point() else v for k, v in one.items()}


class _Pair:
    """Two trained models, and how they are scored. `normed`: whether they have batch norms; `rate`: of the
    straight-through estimator."""

    normed = False
    rate = 1e-3

    def __init__(self, models: tuple[Any, Any], config: Mapping[str, Any]) -> None:
        self.models = models
        self.states = [{k: v.detach().clone() for k, v in model.state_dict().items()} for model in models]
        self.symmetries: Symmetries = symmetries_of(self.states[0], config)
        self.scratch = copy.deepcopy(models[0])

    def change(self, orders: Orders) -> float:
        """The largest change of a log-probability on random inputs by permutations of the second model."""
        outputs = []
        for state in (self.states[1], permuted_weights(self.symmetries, self.states[1], orders)):
            model = copy.deepcopy(self.scratch)
            model.load_state_dict(state)
            with torch.no_grad():
                outputs.append(self.answers(model.double().eval()).log_softmax(-1))
        return float((outputs[0] - outputs[1]).abs().max())

    def answers(self, model: Any) -> Tensor:
        raise NotImplementedError

    def loss(self, state: State, repaired: bool = False) -> float:
        raise NotImplementedError

    def records(self) -> tuple[Any, Any]:
        raise NotImplementedError

    def batch_loss(self) -> Callable[[State], Tensor]:
        raise NotImplementedError


class _Images(_Pair):
    def __init__(self, name: str, seed: int, epochs: int) -> None:
        self.images, self.labels, self.test_images, self.test_labels = digits()
        make = NETWORKS[name]
        one, other = (train_network(make, 2 * seed + i, self.images, self.labels, epochs) for i in (0, 1))
        super().__init__((one, other), {})
        self.normed = any(isinstance(m, nn.BatchNorm2d) for m in one.modules())

    def answers(self, model: nn.Module) -> Tensor:
        out: Tensor = model(torch.rand((256, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double())
        return out

    @torch.no_grad()
    def loss(self, state: State, repaired: bool = False) -> float:
        self.scratch.load_state_dict(state)
        if repaired:
            repair(self.scratch, self.images.split(400))
        self.scratch.eval()
        return float(F.cross_entropy(self.scratch(self.test_images), self.test_labels))

    def records(self) -> tuple[Any, Any]:
        one, other = (record(self.symmetries, model, self.images.split(200)) for model in self.models)
        return one, other

    def batch_loss(self) -> Callable[[State], Tensor]:
        images, labels = self.images[:600], self.labels[:600]
        self.scratch.train()  # norms by the batch: as if the statistics were taken anew at each point

        def loss(state: State) -> Tensor:
            self.scratch.train()
            copied = {k: v.clone() if not v.requires_grad else v for k, v in state.items()}
            return F.cross_entropy(functional_call(self.scratch, copied, (images,)), labels)

        return loss


class _Llamas(_Pair):
    def __init__(self, seed: int, steps: int) -> None:
        text = texts()
        self.text, self.test = text[:-40_000], text[-40_000:]
        one, other = (train_llama(2 * seed + i, self.text, steps) for i in (0, 1))
        super().__init__((one, other), one.config.to_dict())
        self.pieces = pieces(self.test, 256, torch.Generator().manual_seed(0))

    def answers(self, model: Any) -> Tensor:
        out: Tensor = model(torch.randint(30, (8, 40), generator=torch.Generator().manual_seed(0))).logits
        return out

    @torch.no_grad()
    def loss(self, state: State, repaired: bool = False) -> float:
        self.scratch.load_state_dict(state)
        return float(text_loss(self.scratch.eval(), self.pieces))

    def records(self) -> tuple[Any, Any]:
        batches = pieces(self.text, 128, torch.Generator().manual_seed(1)).split(32)
        one, other = (record(self.symmetries, model, batches) for model in self.models)
        return one, other

    def batch_loss(self) -> Callable[[State], Tensor]:
        tokens = pieces(self.text, 64, torch.Generator().manual_seed(2))

        def loss(state: State) -> Tensor:
            logits = functional_call(self.scratch, state, (tokens[:, :-1],), {"use_cache": False}).logits
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        return loss


if __name__ == "__main__":
    raise SystemExit(main())
