"""Which device a study runs on."""

from __future__ import annotations

from evomerge.errors import InputError, Where


def choose_device(name: str) -> str:
    """The device to use; "auto" takes the first GPU, else the CPU. InputError where there is no such device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise InputError(f"no device {name!r} here", f"use auto, {' or '.join(there)}", Where("--device")) from None
    return str(device)
