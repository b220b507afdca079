"""Plans where the weights live, from headers alone, before anything is loaded. The steps of `place`:

1. Spread the resident model over its devices, in runs of whole layers, in proportion to their free memory (`spread`).
2. room = free - resident model - reserve. The reserve is for activations and caches of the evaluation or, between
   evaluations, for the chunks and whole tensors that methods work on. On the host, also less the tables of trimmed
   sources (`magnitudes`).
3. Give every tensor of the base and the sources, in their order, the fastest home with room: the memory of the device
   that holds the parameter of its name, else host memory (pinned, for a GPU), else its file (`_homes`). On the
   CPU the host is the device.
4. Add up the peaks, and estimate a candidate's time from its bytes (`_seconds`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import SIZES
from evomerge.checkpoints.structure import Place, Stack
from evomerge.errors import InputError, Where

HOST, FILE = "host", "file"
CPU = "cpu"
SLAB = 1 << 30
"""Bytes of a slab of pinned memory. torch rounds a larger allocation up to a power of two."""
_LEAST, _SHARE = 1_000_000_000, 0.2  # the reserve for evaluation: bytes, and share of a GPU
_TABLES = 0.08  # of the bytes of 16-bit sources
_KERNEL, _KERNEL_CPU = 2.0, 8.0  # how many times longer a kernel takes than moving its bytes; on 2 CPU cores 2 to 12
_EACH = 1e-4  # seconds that a tensor takes however small it is


@dataclass(frozen=True)
class Device:
    """The memory of a torch device ("cpu": of the host), in bytes."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Limits:
    """The most bytes of the base and the sources in each device's memory and in the host's. None: no limit."""

    device: int | None = None
    host: int | None = None


@dataclass(frozen=True)
class Rates:
    """Bytes a second: `device` and `host` for reads and writes there, `link` from host to device, `file` from files."""

    device: float
    link: float
    host: float
    file: float = 1e9


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of the resident model's tensors: bytes by name, the elements of the largest; and its layer stack."""

    sizes: Mapping[str, int]
    largest: int
    stack: Stack

    @classmethod
    def of(cls, elements: Mapping[str, int], dtype: str, stack: Stack) -> ModelSizes:
        """The sizes of a model of one dtype. `elements`: of each tensor."""
        sizes = {name: count * SIZES[dtype] for name, count in elements.items()}
        return cls(sizes, max(elements.values(), default=0), stack)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Placement:
    """The place of every tensor, and what that takes.

    Attributes:
        room: the devices of the resident model, and the bytes that each has free for it.
        resident: bytes of the resident model, by device.
        weights: bytes of every model, by place.
        reserves: bytes that are kept free for evaluation, by device.
        peaks: the most bytes in use, by place, with the reserve.
        totals: the bytes of each place.
        moved: bytes that a candidate moves: read from each place, and written on the devices.
        seconds: the time of a candidate's merge, once its kernels are compiled and its tables counted.
        homes: the place of every tensor, by `tensor_key`.
    """

    room: Mapping[str, int]
    resident: Mapping[str, int]
    weights: Mapping[str, Mapping[str, int]]
    reserves: Mapping[str, int]
    peaks: Mapping[str, int]
    totals: Mapping[str, int]
    moved: int
    seconds: float
    homes: Mapping[Hashable, str] = field(repr=False)

    @property
    def pinned(self) -> bool:
        """Whether host memory is pinned: it is read by GPUs."""
        return any(name.startswith("cuda") for name in self.room)

    def home(self, checkpoint: Checkpoint, name: str) -> str:
        """The place of a tensor: a device, `HOST` or `FILE`. A tensor that was not planned stays in its file."""
        return self.homes.get(tensor_key(checkpoint, name), FILE)

    def facts(self) -> dict[str, str]:
        """The plan in words: the place of the weights, the peaks, and the time of a candidate."""
        parts = {"resident model": self.resident, **self.weights}
        weights = [
            f"{name} {', '.join(self._amount(*place) for place in places.items())}" for name, places in parts.items()
        ]
        peaks = [self._peak(place, count, self.totals[place]) for place, count in self.peaks.items()]
        return {
            "weights": "; ".join(weights),
            "peak memory": "; ".join(peaks),
            "merge of a candidate": f"about {self.seconds:.2g} s ({size(self.moved)} moved)",
        }

    def _peak(self, place: str, count: int, total: int) -> str:
        name = "host memory" if place == HOST else self._name(place)
        kept = f", {size(self.reserves[place])} of them for evaluation" if place in self.reserves else ""
        return f"{name} {size(count)} of {size(total)}{kept}" + (" (may not suffice)" if count > total else "")

    def _amount(self, place: str, count: int) -> str:
        return f"{size(count)} {'in' if place in (HOST, FILE, CPU) else 'on'} {self._name(place)}"

    def _name(self, place: str) -> str:
        memory = "pinned host memory" if self.pinned and place == HOST else "memory"
        return "files" if place == FILE else memory if place in (HOST, CPU) else place


def tensor_key(checkpoint: Checkpoint, name: str) -> Hashable:
    """A key that is equal for equal stored bytes: an adapter's model shares the tensors that it does not change."""
    return (checkpoint.resolved(), name) if checkpoint.is_computed(name) else checkpoint.tensors[name]


def spread(sizes: Mapping[str, int], stack: Stack, room: Mapping[str, int]) -> dict[Place, str]:
    """The device of each place in the model: before the layers, each layer, after them. Each device gets one run of
    places, in proportion to its room."""
    places: list[Place] = ["before", *range(stack.layers), "after"]
    bytes_of: dict[Place, int] = dict.fromkeys(places, 0)
    for name, count in sizes.items():
        bytes_of[stack.place(name)] += count
    total, offered = max(1, sum(bytes_of.values())), sum(room.values())
    # A place whose bytes lie from `done` on goes to the device in whose share of the room the middle of it falls:
    # (done + bytes / 2) / total model < (room up to and with the device) / total room
    names, blocks, done = list(room), dict[Place, str](), 0
    ends = [sum(list(room.values())[: i + 1]) for i in range(len(names))]
    for place in places:
        middle = (done + bytes_of[place] / 2) / total * offered
        blocks[place] = next((n for n, end in zip(names, ends, strict=True) if middle < end), names[-1])
        done += bytes_of[place]
    return blocks


def place(
    model: ModelSizes,
    checkpoints: Mapping[str, Checkpoint],
    devices: Sequence[Device],
    host: Device,
    rates: Rates,
    limits: Limits = Limits(),
    *,
    first_that_fits: bool = False,
    step: int = 0,
    factors: int = 0,
    unread: Collection[Hashable] = (),
) -> Placement:
    """Plan the place of every tensor.

    Args:
        model: the resident model.
        checkpoints: all checkpoints that candidates read, by the name to print; the first get the fastest places.
        devices: the devices of the resident model: the CPU alone, or GPUs.
        host: the host's memory.
        rates: how fast bytes move.
        limits: the user's limits.
        first_that_fits: use only the first device that holds the model and the reserve; all if none does.
        step: bytes that a gradient step takes beside the weights, on each device.
        factors: bytes of the factors of deltas that merges need, on the host.
        unread: keys of tensors (`tensor_key`) that no candidate reads: they are given no place.

    Raises:
        InputError: the resident model alone does not fit, or a limit is for memory that has no part in it.
    """
    reserve = {d.name: max(step, _reserve(model, d)) for d in devices}
    if first_that_fits:
        alone = (d for d in devices if model.bytes + reserve[d.name] <= d.free)
        devices = [first] if (first := next(alone, None)) else devices
    blocks = spread(model.sizes, model.stack, {d.name: d.free for d in devices})
    resident = dict.fromkeys((d.name for d in devices), 0)
    for name, count in model.sizes.items():
        resident[blocks[model.stack.place(name)]] += count
    _check_fits(model, devices, resident)
    on_cpu = devices[0].name == CPU
    if on_cpu and limits.device is not None:
        problem = "--memory bounds a device's memory, and the search runs on the CPU"
        raise InputError(problem, "write host=SIZE", Where("--memory"))
    tables = _tables(checkpoints, unread) + factors
    used = {CPU if on_cpu else HOST: tables + (reserve[CPU] if on_cpu else _LEAST)}
    room = (
        {} if on_cpu else {d.name: _room(d.free - resident[d.name] - reserve[d.name], limits.device) for d in devices}
    )
    room[HOST] = _room(host.free - sum(used.values()) - (resident[CPU] if on_cpu else 0), limits.host)
    homes, weights = _homes(checkpoints, blocks, model.stack, room, pinned=not on_cpu, unread=unread)
    stored = {p: sum(w.get(p, 0) for w in weights.values()) for p in (*room, FILE)}
    if on_cpu:
        peaks = {CPU: resident[CPU] + stored[HOST] + used[CPU]}
    else:
        peaks = {d.name: resident[d.name] + stored[d.name] + reserve[d.name] for d in devices}
        peaks[HOST] = stored[HOST] + used[HOST]
    return Placement(
        room={d.name: d.free for d in devices},
        resident=resident,
        weights=weights,
        reserves={d.name: reserve[d.name] for d in devices},
        peaks=peaks,
        totals={**{d.name: d.total for d in devices}, HOST: host.total},
        moved=sum(stored.values()) + 2 * model.bytes,
        seconds=_seconds(model, stored, rates, on_cpu),
        homes=homes,
    )


def everywhere(place: str, checkpoints: Sequence[Checkpoint]) -> Placement:
    """A plan in which all tensors of these checkpoints live in one place, for one that was made elsewhere."""
    homes: dict[Hashable, str] = {tensor_key(c, name): place for c in checkpoints for name in c.tensors}
    return Placement({}, {}, {}, {}, {}, {}, 0, 0.0, homes)


def size(count: int) -> str:
    """A number of bytes in words: 1.5 GB."""
    for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count} bytes"


def _reserve(model: ModelSizes, device: Device) -> int:
    """The bytes to keep free on a device. Evaluation and merging take turns, so it is the larger of both: a share of
    the device, and the three float32 copies of the largest tensor that methods on whole tensors hold."""
    share = 0.0 if device.name == CPU else _SHARE
    return max(_LEAST, int(share * device.total), 3 * 4 * model.largest)


def _tables(checkpoints: Mapping[str, Checkpoint], unread: Collection[Hashable]) -> int:
    """The bytes of all tables of magnitudes."""
    read = (i for c in checkpoints.values() for n, i in c.tensors.items() if tensor_key(c, n) not in unread)
    return int(_TABLES * sum(info.bytes for info in read if info.dtype in ("bfloat16", "float16")))


def _room(free: int, limit: int | None) -> int:
    return max(0, free if limit is None else min(free, limit))


def _check_fits(model: ModelSizes, devices: Sequence[Device], resident: Mapping[str, int]) -> None:
    """InputError if a device is too small for its part of the model."""
    for device in devices:
        if resident[device.name] > device.free:
            part = "the model" if len(devices) == 1 else f"its part of the model's {size(model.bytes)}"
            where = "" if device.name == CPU else f" on {device.name}"
            problem = f"{part} takes {size(resident[device.name])} of memory, and {size(device.free)} are free{where}"
            mend = "use a smaller dtype (dtype: bfloat16)"
            mend += ", or a machine with more memory" if device.name == CPU else ", more GPUs, or --device cpu"
            raise InputError(problem, mend, Where("--device"))


def _homes(
    checkpoints: Mapping[str, Checkpoint],
    blocks: Mapping[Place, str],
    stack: Stack,
    room: dict[str, int],
    pinned: bool,
    unread: Collection[Hashable],
) -> tuple[dict[Hashable, str], dict[str, dict[str, int]]]:
    """The home of every tensor, and the bytes of every model by place."""
    left, homes = dict(room), dict[Hashable, str]()
    weights: dict[str, dict[str, int]] = {name: {} for name in checkpoints}
    every = [(name, c, tensor) for name, c in checkpoints.items() for tensor in c.tensors]
    # Tensors that an adapter computes when they are read come first: they cannot stay in files
    for name, checkpoint, tensor in sorted(every, key=lambda item: not item[1].is_computed(item[2])):
        key = tensor_key(checkpoint, tensor)
        if key in homes or key in unread:
            continue
        count = checkpoint.tensors[tensor].bytes
        taken = {HOST: _pinned_bytes(count) if pinned else count}
        choices = [p for p in (blocks.get(stack.place(tensor), FILE), HOST) if p in left]
        home = next((p for p in choices if taken.get(p, count) <= left[p]), None)
        if home is None:
            home = HOST if checkpoint.is_computed(tensor) else FILE
        if home in left:
            left[home] -= taken.get(home, count)
        homes[key] = home
        weights[name][home] = weights[name].get(home, 0) + taken.get(home, count)
    return homes, {name: places or {FILE: 0} for name, places in weights.items()}


def _pinned_bytes(count: int) -> int:
    """The bytes of pinned memory that a tensor takes (`bank.Slabs`)."""
    return count if count <= SLAB else 1 << (count - 1).bit_length()


def _seconds(model: ModelSizes, stored: Mapping[str, int], rates: Rates, on_cpu: bool) -> float:
    """The time of a candidate's merge: max(kernels, link) + files.

    kernels = factor (bytes of the sources + 2 bytes of the model) / rate + a constant for each tensor: a model is
    written once, and read once for its digest. Bytes come over the link while the last chunk is merged.
    """
    all_bytes = sum(stored.values()) + 2 * model.bytes
    moving = _KERNEL_CPU / rates.host if on_cpu else _KERNEL / rates.device
    merged = moving * all_bytes + _EACH * len(model.sizes)
    link = 0.0 if on_cpu else (stored[HOST] + stored[FILE]) / rates.link
    return max(merged, link) + stored[FILE] / rates.file
