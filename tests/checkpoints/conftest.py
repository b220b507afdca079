from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float32 family of tiny checkpoints; read only."""
    return tiny_models.family(tmp_path_factory.mktemp("family"))
