"""A Python that has mergekit 0.1.5, in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import torch

VERSION = "0.1.5"


def install(folder: Path) -> Path:
    """The interpreter of the environment at `folder`, which is made if it is not there. Its torch is of this version.

    pip's own settings say where from: with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu it takes the build
    without CUDA, which is much smaller.
    """
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"mergekit=={VERSION}", f"torch=={torch.__version__.partition('+')[0]}"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
        complete.touch()
    return python
