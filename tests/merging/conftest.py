from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))

import tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float32 family of tiny checkpoints; read only."""
    return tiny_models.family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def models_bf16(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same family in bfloat16."""
    return tiny_models.family(tmp_path_factory.mktemp("family16"), torch.bfloat16)


@pytest.fixture(scope="session")
def models_64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same family in float64, for differences of merges."""
    return tiny_models.family(tmp_path_factory.mktemp("family64"), torch.float64)


@pytest.fixture(scope="session")
def tied_models_64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.family(tmp_path_factory.mktemp("tied64"), torch.float64, tied=True)


@pytest.fixture(scope="session")
def tied_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A family whose head is its embeddings."""
    return tiny_models.family(tmp_path_factory.mktemp("tied"), tied=True)
