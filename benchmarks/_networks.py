"""The networks that `benchmarks/align.py` trains: three small ones on scikit-learn's digits, and a Llama of two layers
on Python's own documentation strings."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT = 48
"""Characters of a text that the Llama reads at once."""
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,()_\n"


class Mlp(nn.Module):
    """Two hidden layers; no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(images.flatten(1)))
        out: Tensor = self.fc3(F.relu(self.fc2(hidden)))
        return out


class Cnn(nn.Module):
    """Three convolutions with batch norm, and a matrix that reads what they flatten to."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.conv3, self.bn3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = F.relu(self.bn3(self.conv3(hidden)))
        out: Tensor = self.fc(hidden.flatten(1))
        return out


class Block(nn.Module):
    """Two convolutions beside a shortcut, with torchvision's names."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(hidden + (images if self.downsample is None else self.downsample(images)))


class ResNet(nn.Module):
    """Three stages of two blocks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        out: Tensor = self.fc(hidden.mean((2, 3)))
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {"MLP": Mlp, "CNN": Cnn, "ResNet": ResNet}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 1, 8, 8] and labels, for training and for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target[order])
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def train_network(make: Callable[[], nn.Module], seed: int, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Trains a network from its own start, on the images in its own order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(images) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=draw)
        for rows in order.split(100):
            if len(rows) == 100:
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def texts(most: int = 400_000) -> Tensor:
    """The documentation strings of Python's own library, as numbers of characters."""
    found: list[str] = []
    size = 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for text in _strings(file):
            kept = "".join(c for c in text.lower() if c in _CHARACTERS)
            found.append(kept)
            size += len(kept)
        if size > most:
            break
    return torch.tensor([_CHARACTERS.index(c) for c in "\n".join(found)])


def _strings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def llama() -> Any:
    """An untrained Llama with grouped queries: eight heads that share four of keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_CHARACTERS), hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None, dtype="float32",
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def train_llama(seed: int, text: Tensor, steps: int) -> Any:
    """Trains a Llama from its own start, on pieces of the text drawn in its own order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = llama()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        text_loss(model, pieces(text, 32, draw)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def pieces(text: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Pieces of a text, drawn at random [count, CONTEXT]."""
    starts = torch.randint(len(text) - CONTEXT, (count,), generator=draw)
    return text[starts[:, None] + torch.arange(CONTEXT)]


def text_loss(model: Any, tokens: Tensor) -> Tensor:
    """The mean loss of a character, in nats."""
    logits = model(tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
