"""Shares a machine among workers: devices, memory, processor threads. Pure functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.errors import InputError, Where
from evomerge.merging.resident.placement import CPU, Device, Limits


@dataclass(frozen=True)
class Share:
    """One worker's part of a machine.

    Attributes:
        device: as `choose_devices` takes it.
        on_device, on_host: how many workers use that device, and the host.
        spare: whether, of several devices, only the first is used if the model fits there.
    """

    device: str
    on_device: int = 1
    on_host: int = 1
    spare: bool = False

    def of(self, device: Device) -> Device:
        """The worker's part of a device's or the host's memory."""
        parts = self.on_host if device.name == CPU else self.on_device
        return replace(device, free=device.free // parts, total=device.total // parts)

    def within(self, limits: Limits) -> Limits:
        """The worker's part of the limits of all workers together (of a device: of all that use it)."""
        device = None if limits.device is None else limits.device // self.on_device
        return Limits(device, None if limits.host is None else limits.host // self.on_host)


def deal(devices: Sequence[str], workers: int, spare: bool = False) -> list[Share]:
    """Returns the share of each worker. Worker i gets device i modulo their number; with twice as many devices as
    workers or more, each gets that many in a row, between which its model is cut (with `spare`, if it has to be)."""
    each = max(1, len(devices) // workers)
    blocks = [tuple(devices[at : at + each]) for at in range(0, len(devices) - each + 1, each)]
    chosen = [blocks[i % len(blocks)] for i in range(workers)]
    return [Share(",".join(block), chosen.count(block), workers, spare) for block in chosen]


def describe(shares: Sequence[Share]) -> str:
    """Says how many workers are on which device, for people."""
    counts = {share.device: share.on_device for share in shares}
    return f"{len(shares)} ({'; '.join(f'{count} on {device}' for device, count in counts.items())})"


def threads(workers: int, cores: int, limit: str | None = None) -> int:
    """Returns the number of processor threads of each worker: its part of the machine's `cores`, or of the `limit` of
    the study (OMP_NUM_THREADS). With more threads than cores they wait for each other, and everything takes many times
    as long."""
    total = int(limit) if limit is not None and limit.isdecimal() and int(limit) > 0 else cores
    return max(1, total // workers)


def environment(workers: int, present: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a worker: this process's, with its number of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads(workers, cores, present.get("OMP_NUM_THREADS"))
    return {**present, "OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


def check_workers(workers: int | None) -> None:
    """Raises InputError where the number of workers is none."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers score nothing", "give at least 1", Where("--workers"))


def resumed_device(launched: str, before: int | None, workers: int | None) -> str:
    """Returns the devices of a resumed run for which none were named: the launch's if there are as many workers as
    `before` (None: on other machines), else all of that kind."""
    return launched if launched == CPU or (before is not None and workers == before) else "auto"
