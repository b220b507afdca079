"""What the largest singular directions of a delta cost and lose when they are sampled, against finding all directions.

    python benchmarks/decompositions.py [--size 2048] [--top 64]

Square float32 matrices of known singular values, one thread. "ratio" is the processor time of the full decomposition
over that of the sampled one. "error" is the largest relative error of the singular values, of the first half of the top
and of all of it. "left" is what the top leaves, over the least that so many directions can leave (Frobenius norms).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.merging.kernels.factors import Factors

T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--top", type=int, default=64)
    options = parser.parse_args()
    size, top = options.size, options.top
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64)).Q for _ in range(2))
    place = torch.arange(1, size + 1, dtype=torch.float64)
    spectra = {"j^-1": 1 / place, "j^-0.5": place**-0.5, "0.99^j": 0.99**place}
    print(f"{'s_j':8}{'all, s':>9}{'top, s':>9}{'ratio':>7}{'error, half':>13}{'error':>9}{'left':>9}")
    for name, s in spectra.items():
        delta = (u * s @ v).float()
        _, whole_seconds = timed(lambda delta=delta: Factors.of(delta))
        found, seconds = timed(lambda delta=delta: Factors.of(delta, top))
        errors = ((found.s.double() - s[:top]).abs() / s[:top]).tolist()
        left = norm(delta.double() - (found.u.double() * found.s.double()) @ found.v.double()) / norm(s[top:])
        times = f"{whole_seconds:9.2f}{seconds:9.3f}{whole_seconds / seconds:7.1f}"
        print(f"{name:8}{times}{max(errors[: top // 2]):13.1%}{max(errors):9.1%}{left:9.4f}")
    return 0


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """The result, and the processor time in seconds: the least of three runs."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        result = run()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
