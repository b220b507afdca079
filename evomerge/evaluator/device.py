"""Chooses devices, measures their memory, and plans what lives where."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.write import parse_size
from evomerge.errors import InputError, Where
from evomerge.evaluator.shares import Share, check_workers
from evomerge.merging.resident.placement import CPU, Device, Limits, ModelSizes, Placement, Rates, place

if TYPE_CHECKING:
    import torch

    from evomerge.merging.plan.jobs import MergePlan

_FLAG, _LIMIT = Where("--device"), Where("--memory")
_COPIED = 64_000_000  # bytes that are copied to see how fast memory is
_CGROUPS = (  # limit, use, and the part of the use that is given back when needed; of version 2 and 1
    ("memory.max", "memory.current", r"^inactive_file (\d+)"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", r"^total_inactive_file (\d+)"),
)


def choose_device(name: str) -> str:
    """Returns the device to use; "auto" takes the first GPU, else the CPU. InputError where there is no such device."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else CPU
    try:
        device = torch.empty(1, device=torch.device(name))
        device.tolist()  # torch's "meta" takes anything, and holds nothing
        return str(device.device)
    except (RuntimeError, AssertionError):
        there = [CPU, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise InputError(f"no device {name!r} here", f"use auto, {' or '.join(there)}", _FLAG) from None


def choose_devices(name: str) -> list[str]:
    """Returns the devices that a model may be cut between: a list such as "cuda:0,cuda:1"; for "auto" all GPUs.

    Raises:
        InputError: one of them is not there, or cannot share a model.
    """
    import torch

    if name == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or [CPU]
    devices = list(dict.fromkeys(choose_device(part.strip()) for part in name.split(",")))
    other = next((d for d in devices if not d.startswith("cuda")), None)
    if len(devices) > 1 and other is not None:
        raise InputError(f"a model is not cut between {other} and others", "list GPUs only", _FLAG)
    return devices


def listed(name: str) -> list[str]:
    """Returns the devices that several workers share: those of a list, unchecked (each worker checks its own); for
    "auto" all GPUs, else the CPU."""
    if name == "auto":
        return choose_devices(name)
    return list(dict.fromkeys(part.strip() for part in name.split(",")))


def number_of_workers(workers: int | Literal["auto"] | None, device: str, ray: str | None) -> int | None:
    """The number of workers that is meant; None: as many as a cluster has room for. InputError where it is none."""
    if workers is not None and workers != "auto":
        check_workers(workers)
        return workers
    if ray is not None:
        return None
    return len(listed(device)) if workers == "auto" else 1


def parse_memory(text: str | None) -> Callable[[bool], Limits]:
    """Parses ``--memory``: a size limits the device's memory (on the CPU, the host's); ``device=SIZE,host=SIZE`` limits
    either. The result takes whether the study runs on the CPU. Raises InputError."""
    if text is None:
        return lambda on_cpu: Limits()
    if "=" not in text:
        size = parse_size(text, _LIMIT)
        return lambda on_cpu: Limits(host=size) if on_cpu else Limits(device=size)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in ("device", "host") or key in sizes:
            raise InputError(f"{part!r} bounds no memory", "write for example 20GB, or device=20GB,host=64GB", _LIMIT)
        sizes[key] = parse_size(value, _LIMIT)
    return lambda on_cpu: Limits(**sizes)


def place_models(
    planned: MergePlan,
    dtype: str,
    checkpoints: Mapping[str, Checkpoint],
    device: str,
    memory: str | None,
    share: Share | None = None,
    step: int = 0,
    factors: int = 0,
    engine: int = 0,
    unread: Collection[Hashable] = (),
) -> Placement:
    """Plans what lives where in a study of such merges, with a resident model of this dtype.

    Args:
        checkpoints: all that candidates read, by the name to print.
        device: as choose_devices takes it.
        memory: as parse_memory takes it.
        share: the part of devices, host and limits that this is for, where several workers share them.
        step: bytes that a gradient step takes beside the weights.
        factors: bytes of the factors of deltas that merges need.
        engine: bytes that a serving engine takes beside the model, on each device.
        unread: keys of tensors that no candidate reads.

    Raises:
        InputError: there is no such device, the limits are none, or the model does not fit.
    """
    elements = {name: math.prod(job.shape) for name, job in planned.jobs.items()}
    sizes = ModelSizes.of(elements, dtype, planned.stack)
    return place_sizes(sizes, checkpoints, device, memory, share, step, factors, engine, unread)


def place_sizes(
    model: ModelSizes,
    checkpoints: Mapping[str, Checkpoint],
    device: str,
    memory: str | None,
    share: Share | None = None,
    step: int = 0,
    factors: int = 0,
    engine: int = 0,
    unread: Collection[Hashable] = (),
) -> Placement:
    """As place_models, of a resident model whose sizes are known. Raises InputError."""
    limits, share = parse_memory(memory), share or Share(device, spare=device == "auto")
    names, whole = choose_devices(device), host_memory()
    host = share.of(whole)
    devices = [host if name == CPU else share.of(device_memory(name, whole)) for name in names]
    if engine:
        devices = [_less(device, engine) for device in devices]
        host = devices[0] if names == [CPU] else host
    bounds = share.within(limits(names == [CPU]))
    try:
        speed = rates(names[0])
        return place(
            model,
            checkpoints,
            devices,
            host,
            speed,
            bounds,
            first_that_fits=share.spare,
            step=step,
            factors=factors,
            unread=unread,
        )
    except InputError as error:
        if engine:
            error = InputError(f"{error.problem} beside vLLM", f"write engine: resident, or {error.mend}", error.where)
        if share.on_host == 1:
            raise error from None
        problem = f"{error.problem} for each of {share.on_host} workers"
        raise InputError(problem, f"use fewer --workers; else {error.mend}", error.where) from None


def _less(device: Device, taken: int) -> Device:
    """A device with so many bytes less that are free."""
    return replace(device, free=max(0, device.free - taken))


def device_memory(name: str, host: Device) -> Device:
    """Returns a GPU's memory; devices that cannot be asked share the host's."""
    import torch

    if not name.startswith("cuda"):
        return Device(name, host.free, host.total)
    free, total = torch.cuda.mem_get_info(name)
    return Device(name, free, total)


def host_memory(groups: Path = Path("/sys/fs/cgroup")) -> Device:
    """Returns the host's memory: the part that this process may still use, within its control group."""
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    for limit, use, reclaimed in _CGROUPS:
        bound = _number(groups / limit)
        if bound is not None and bound < total:
            stat = groups / Path(limit).parent / "memory.stat"
            match = re.search(reclaimed, stat.read_text(), re.M) if stat.is_file() else None
            used = (_number(groups / use) or 0) - (int(match[1]) if match else 0)
            return Device(CPU, max(0, min(free, bound - used)), bound)
    return Device(CPU, free, total)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def rates(device: str) -> Rates:
    """Measures how fast bytes move here, by copies of 64 MB."""
    import torch

    source, target = torch.ones(2, _COPIED, dtype=torch.uint8)
    host = 2 * _COPIED / _seconds(lambda: target.copy_(source), None)
    if not device.startswith("cuda"):
        return Rates(device=host, link=host, host=host)
    pinned, there, other = source.pin_memory(), source.to(device), target.to(device)
    link = _COPIED / _seconds(lambda: there.copy_(pinned, non_blocking=True), device)
    return Rates(device=2 * _COPIED / _seconds(lambda: other.copy_(there), device), link=link, host=host)


def _seconds(copy: Callable[[], torch.Tensor], device: str | None) -> float:
    """Returns the seconds of the best of three copies, after one that warms up."""
    import torch

    times = []
    for _ in range(4):
        started = time.perf_counter()
        copy()
        if device is not None:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return max(1e-9, min(times[1:]))
