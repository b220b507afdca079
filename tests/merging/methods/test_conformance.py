"""What every merge method must hold to; a new line in the registry is tested by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evomerge.registry import METHODS
from evomerge.testing.methods import MethodConformance


class TestMethods(MethodConformance):
    names = sorted(METHODS)


@pytest.mark.slow
def test_results_do_not_move_with_the_hash_seed() -> None:
    code = (
        "import hashlib; from evomerge.registry import METHODS; from evomerge.testing.methods import run\n"
        "print([hashlib.sha256(run(n, density=0.4).numpy().tobytes()).hexdigest() for n in sorted(METHODS)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(outputs) == 1
