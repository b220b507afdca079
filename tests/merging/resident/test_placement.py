"""What lives where: planned from numbers alone, for machines that need not be here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.structure import Stack
from evomerge.errors import InputError
from evomerge.merging.resident.bank import Slabs, SourceBank
from evomerge.merging.resident.placement import FILE, HOST, Device, Limits, ModelSizes, Rates, place, spread

GB = 10**9
LAYERS = 8
NO_LIMITS = Limits()
STACK = Stack("model.layers", LAYERS)
RATES = Rates(device=2000e9, link=20e9, host=40e9)
TIGHT = "cuda:0 16.0 GB of 11.0 GB, 6.0 GB of them for evaluation (may not suffice); host memory 44.2 GB of 100.0 GB"
NAMES = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up.weight" for i in range(LAYERS)), "lm_head.weight"]


@dataclass
class Header:
    """A checkpoint of which only the headers matter: ten tensors of one shape."""

    name: str
    gigabytes: float = 10.0
    computed: tuple[str, ...] = ()
    tensors: dict[str, TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        shape = (int(self.gigabytes * GB / len(NAMES) / 2),)
        self.tensors = {n: TensorInfo(shape, "bfloat16", Path(self.name), i) for i, n in enumerate(NAMES)}

    def resolved(self) -> str:
        return self.name

    def is_computed(self, name: str) -> bool:
        return name in self.computed


def gpu(free: float, number: int = 0) -> Device:
    return Device(f"cuda:{number}", int(free * GB), int(free * GB))


def plan(devices, host=100.0, limits=NO_LIMITS, sources=3, size=10.0, **options):
    checkpoints = {name: Header(name, size) for name in ["base", "a", "b", "c"][: sources + 1]}
    sizes = {name: info.bytes for name, info in checkpoints["base"].tensors.items()}
    model = ModelSizes(sizes, max(i.elements for i in checkpoints["base"].tensors.values()), STACK)
    memory = Device("cpu", int(host * GB), int(host * GB))
    return place(model, checkpoints, devices or [memory], memory, RATES, limits, **options)


def at(placement, where):
    return sum(places.get(where, 0) for places in placement.weights.values()) / GB


def test_everything_on_a_device_that_has_room():
    placement = plan([gpu(80)])
    assert at(placement, "cuda:0") == pytest.approx(40)
    assert placement.peaks["cuda:0"] / GB == pytest.approx(10 + 40 + 16)  # the model, all sources, the reserve
    assert placement.totals["cuda:0"] == 80 * GB
    assert set(placement.homes.values()) == {"cuda:0"}


def test_what_has_no_room_goes_to_pinned_memory_then_stays_in_files():
    placement = plan([gpu(40)], host=20.0)
    assert 21 <= at(placement, "cuda:0") <= 22  # 40 less the model and a fifth
    assert 15 <= at(placement, HOST) <= 16  # 20 less 1 and the tables
    assert at(placement, "cuda:0") + at(placement, HOST) + at(placement, FILE) == pytest.approx(40)
    assert all(peak <= placement.totals[name] for name, peak in placement.peaks.items())
    # The base is asked for first
    assert placement.weights["base"] == {"cuda:0": 10 * GB}
    assert "pinned host memory" in placement.facts()["weights"]


def test_on_the_cpu_memory_is_the_device():
    placement = plan([], host=50.0)
    assert placement.room == {"cpu": 50 * GB}
    assert at(placement, HOST) + at(placement, FILE) == pytest.approx(40)
    assert 30 <= at(placement, HOST) <= 31  # 50 less the model, three of the largest tensor, and the tables
    assert "pinned" not in placement.facts()["weights"]
    assert plan([], host=100.0).peaks["cpu"] > 50 * GB


@pytest.mark.parametrize(
    ("devices", "limits", "where", "most"),
    [
        ([gpu(80)], Limits(device=5 * GB), "cuda:0", 5),
        ([gpu(80)], Limits(device=5 * GB, host=7 * GB), HOST, 7),
        ([], Limits(host=12 * GB), HOST, 12),
    ],
)
def test_memory_bounds_the_sources(devices, limits, where, most):
    assert most - 1 < at(plan(devices, limits=limits), where) <= most


def test_factors_of_bands_take_room_from_the_sources():
    plain, factored = plan(None, host=60.0), plan(None, host=60.0, factors=20 * GB)
    assert plain.peaks["cpu"] <= 60 * GB
    assert factored.peaks["cpu"] <= 60 * GB
    assert sum(w.get(FILE, 0) for w in plain.weights.values()) < sum(w.get(FILE, 0) for w in factored.weights.values())
    assert plan(None, factors=5 * GB).peaks["cpu"] == plan(None).peaks["cpu"] + 5 * GB


def test_what_a_candidate_takes():
    fast, linked, read = plan([gpu(80)]), plan([gpu(80)], limits=Limits(device=1)), plan([gpu(80)], host=1.0)
    assert fast.seconds == pytest.approx(2 * 60e9 / RATES.device + 1e-3)
    assert linked.seconds == pytest.approx(40e9 / RATES.link)
    assert read.seconds == fast.seconds
    assert fast.moved == linked.moved == 60 * GB
    files = plan([gpu(80)], limits=Limits(device=1, host=1))
    assert files.seconds == pytest.approx(40e9 / RATES.link + 40e9 / RATES.file)
    assert plan([], host=100.0).seconds == pytest.approx(8 * 60e9 / RATES.host + 1e-3)


def test_a_model_that_does_not_fit():
    with pytest.raises(InputError, match=r"--device: the model takes 10.0 GB of memory, and 8.0 GB are free on cuda:0"):
        plan([gpu(8)])
    with pytest.raises(
        InputError, match=r"the model takes 10.0 GB of memory, and 8.0 GB are free; use a smaller dtype"
    ):
        plan([], host=8.0)
    with pytest.raises(InputError, match=r"its part of the model's 10.0 GB takes .* cuda:0"):
        plan([gpu(4), gpu(4, 1)])


def test_a_reserve_that_does_not_fit_is_told():
    assert plan([gpu(11)]).facts()["peak memory"] == TIGHT


def test_auto_uses_one_gpu_where_that_holds_the_model_and_all_otherwise():
    assert set(plan([gpu(9), gpu(30, 1)], first_that_fits=True).room) == {"cuda:1"}
    cut = plan([gpu(10), gpu(10, 1)], first_that_fits=True)
    assert set(cut.room) == {"cuda:0", "cuda:1"}
    assert cut.resident["cuda:0"] == cut.resident["cuda:1"] == 5 * GB
    assert set(plan([gpu(80), gpu(80, 1)]).room) == {"cuda:0", "cuda:1"}  # told to use both


def test_sources_live_with_their_parameters():
    placement = plan([gpu(60), gpu(60, 1)])
    checkpoint = Header("a")
    homes = [placement.home(checkpoint, name) for name in NAMES]
    assert homes == ["cuda:0"] * 5 + ["cuda:1"] * 5
    assert placement.home(Header("another"), NAMES[0]) == FILE


@given(
    st.lists(st.integers(0, 50), min_size=LAYERS + 2, max_size=LAYERS + 2),
    st.lists(st.integers(1, 99), min_size=1, max_size=4),
)
def test_a_model_is_cut_into_runs(sizes, rooms):
    room = {f"cuda:{i}": r for i, r in enumerate(rooms)}
    found = spread(dict(zip(NAMES, sizes, strict=True)), STACK, room)
    order = [found["before"], *(found[i] for i in range(LAYERS)), found["after"]]
    assert order == sorted(order)
    assert set(order) <= set(room)
    # No device gets more than its share and the two tensors at its ends
    for name, free in room.items():
        got = sum(s for s, device in zip(sizes, order, strict=True) if device == name)
        assert got <= free / sum(rooms) * sum(sizes) + max(sizes) + 1e-6


def test_an_adapter_shares_with_its_base_what_it_does_not_change():
    base = Header("base")
    adapted = Header("base+lora", computed=(NAMES[3],))
    adapted.tensors = dict(base.tensors)
    sizes = {name: info.bytes for name, info in base.tensors.items()}
    memory = Device("cpu", 100 * GB, 100 * GB)
    both = {"base": base, "lora": adapted}
    placement = place(ModelSizes(sizes, 1, STACK), both, [gpu(80)], memory, RATES)
    assert placement.weights["lora"] == {"cuda:0": GB}
    # What is computed when it is read is computed once, however little room there is
    tight = place(ModelSizes(sizes, 1, STACK), both, [gpu(80)], memory, RATES, Limits(device=1, host=1))
    assert tight.home(adapted, NAMES[3]) == HOST
    assert tight.home(adapted, NAMES[4]) == FILE


# The bank


class Planned:
    """A placement that says the same of every tensor."""

    pinned = False

    def __init__(self, home):
        self.home = lambda checkpoint, name: home


@pytest.mark.parametrize("home", [FILE, HOST, "cpu"])
def test_the_bank_follows_the_plan(home, models):
    bank, sizes = SourceBank(placement=Planned(home)), []
    checkpoint = Checkpoint.open(str(models["a"]))
    bank.load(str(models["a"]), progress=sizes.append)
    for name, info in checkpoint.tensors.items():
        tensor = bank.tensor(str(models["a"]), name)
        assert torch.equal(tensor, checkpoint.read(name))
        assert tensor.dtype == getattr(torch, info.dtype)
    whole = sum(i.bytes for i in checkpoint.tensors.values())
    assert sum(sizes) == whole
    assert bank.bytes() == (0 if home == FILE else whole)  # what stays in its file is read for each use


def test_a_full_device_is_an_input_error(models, monkeypatch):
    bank = SourceBank(placement=Planned("cuda:3"))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(InputError, match=r"--memory: cuda:3 ran out of memory after 0.0 GB"):
        bank.load(str(models["a"]))


@given(st.lists(st.sampled_from([(), (0,), (1,), (3, 5), (100,), (17, 31), (4000,)]), max_size=12))
def test_slabs_hold_copies_side_by_side(shapes):
    slabs = Slabs(slab=4096, pin=False)
    stored = [torch.randn(shape).to(torch.bfloat16) for shape in shapes]
    kept = [slabs.add(tensor) for tensor in stored]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(stored, kept, strict=True))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.numel()}
    small = [2 * math.prod(s) for s in shapes if 2 * math.prod(s) <= 4096]
    assert sum(n for n in storages.values() if n == 4096) <= 4096 + 2 * (sum(small) + 512 * len(small))
