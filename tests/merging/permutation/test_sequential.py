"""Chains of layers without a configuration: their order is read from names and shapes, or they are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from evomerge.errors import InputError
from evomerge.merging.permutation.families import specification_for
from evomerge.merging.permutation.weights import permuted_weights


def conv(first: int, second: int) -> nn.Conv2d:
    return nn.Conv2d(first, second, 3, padding=1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(1, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv(6, 6), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))
        out: torch.Tensor = self.fc(hidden.flatten(1))
        return out


class Words(nn.Module):
    """Layers whose names are in another order than they are."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.inner, self.answer = nn.Linear(16, 12), nn.Linear(12, 9), nn.Linear(9, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.answer(self.inner(self.reading(images.flatten(1)).relu()).relu())
        return out


class Block(nn.Module):
    """Of a residual network, with torchvision's names, or with a `shortcut`."""

    def __init__(self, before: int, width: int, name: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(before, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
        for layer in (self.conv1, self.conv2):
            layer.bias = None
        self.side = name if before != width else ""
        if self.side:
            self.add_module(name, nn.Sequential(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = getattr(self, self.side)(images) if self.side else images
        return torch.relu(side + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))


class ResNet(nn.Module):
    def __init__(self, stages: int, side: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(1, 6), nn.BatchNorm2d(6)
        self.conv1.bias = None
        widths = [6, 6, 8, 10, 12][: stages + 1]
        self.stages = stages
        for i, (before, width) in enumerate(pairwise(widths), start=1):
            blocks = nn.Sequential(Block(before, width, side), Block(width, width, side))
            self.add_module(f"layer{i}", blocks)
        self.fc = nn.Linear(widths[-1], 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(images)))
        for i in range(self.stages):
            hidden = getattr(self, f"layer{i + 1}")(hidden)
        out: torch.Tensor = self.fc(hidden.mean((2, 3)))
        return out


NETWORKS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    ),
    "layer norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 12), nn.LayerNorm(12), nn.ReLU(),
        nn.Linear(12, 4),
    ),
    "norm of the inputs": lambda: nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    ),
    "one slope for all": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.PReLU(), nn.Linear(12, 4)),
    "batch norm": lambda: nn.Sequential(
        conv(1, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 4),
    ),
    "named": Named,
    "words": Words,
    "three stages": lambda: ResNet(3, "downsample"),
    "four stages": lambda: ResNet(4, "downsample"),
    "shortcuts": lambda: ResNet(3, "shortcut"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_computes_what_it_did(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]()
        images = torch.randn(5, 1, 4, 4)
        for _ in range(3):
            model(torch.randn(16, 1, 4, 4))  # so that statistics differ from channel to channel
    model.eval()
    before = model(images)
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    symmetries = specification_for(shapes, {}).over(shapes, {})
    layers, stages = sum(len(shape) > 1 for shape in shapes.values()), getattr(model, "stages", 0)
    assert len(symmetries.groups) == (3 * stages if stages else layers - 1)  # two blocks a stage, and its stream
    moved = permuted_weights(symmetries, state, symmetries.random(1))
    assert any(not torch.equal(moved[name], state[name]) for name in state)
    model.load_state_dict(moved)
    assert (model(images) - before).abs().max() < 1e-5


def _without_statistics() -> dict[str, tuple[int, ...]]:
    """A ResNet with group norm in place of batch norm."""
    state = ResNet(3, "downsample").state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if "running" not in name}


GROUP_NORM = {
    "0.weight": (8, 1, 3, 3), "1.weight": (8,), "1.bias": (8,), "3.weight": (8, 8, 3, 3), "5.weight": (2, 32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a.weight": (8, 8), "b.weight": (8, 8)}, "more than one order"),
        ({"0.weight": (8, 4), "2.weight": (3, 9)}, "form no chain"),
        ({"0.weight": (8, 4)}, "no hidden units"),
        ({"block.0.weight": (8, 8), "block.1.weight": (8, 8)}, "no plain chain"),
        ({"1.weight": (8, 4), "2.weight": (8, 8), "3.weight": (2, 8), "norm.weight": (8,)}, "norm.weight fits 2"),
        ({"fc1.weight": (8, 8), "fc2.weight": (2, 8), "norm1.weight": (8,)}, "stands before one"),
        ({"fc1.weight": (8, 8), "fc2.weight": (2, 8), "norm.weight": (8,), "norm.running_var": (8,)}, "before one"),
        ({"w1.weight": (8, 4), "w2.weight": (4, 8), "w3.weight": (8, 4)}, "no plain chain"),  # a gated MLP
        ({"c1.weight": (8, 1, 3, 3), "se.fc1.weight": (2, 8, 1, 1), "se.fc2.weight": (8, 2, 1, 1)}, "no plain chain"),
        ({"conv1.weight": (8, 1, 3, 3), "deconv2.weight": (8, 8, 3, 3)}, "no plain chain"),  # [in, out, 3, 3]
        (GROUP_NORM, "keep their order"),
        (_without_statistics(), "keep their order"),
    ],
)
def test_what_is_not_clear_is_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        specification_for(shapes, {})
