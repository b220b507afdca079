"""What a serving engine may take of the memory that a model and its sources leave."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from evomerge.evaluator import serving
from evomerge.evaluator.serving import engine_facts, engine_memory
from evomerge.merging.resident.placement import CPU, Device, Placement
from evomerge.scoring.serving.choice import Servable

GB = 1 << 30


@dataclass
class Machine:
    """Free gigabytes of the host and of each GPU, all of 80 GB."""

    host: int = 60
    gpus: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(serving, "host_memory", lambda: Device(CPU, made.host * GB, 80 * GB))
    monkeypatch.setattr(serving, "device_memory", lambda name, host: Device(name, made.gpus[name] * GB, 80 * GB))
    return made


def servable(weights: int, sources: int, *devices: str) -> Servable:
    return Servable({}, {}, "bfloat16", devices, (), weights=weights * GB, sources=sources * GB)


def placed(reserve: int, *devices: str) -> Placement:
    reserves = dict.fromkeys(devices, reserve * GB)
    return Placement({}, {}, {}, reserves, {}, {}, 0, 0.0, {})


@pytest.mark.parametrize(
    ("free", "weights", "sources", "share", "keep", "turns"),
    [
        (60, 15, 30, (60 - 4 - 30) / 80, "device", False),
        (40, 15, 30, (40 - 4) / 80, "host", False),
        (40, 15, 70, (40 - 4) / 80, "file", False),
        (20, 15, 30, 20 / 80, "host", True),
    ],
)
def test_on_a_gpu(
    machine: Machine, free: int, weights: int, sources: int, share: float, keep: str, turns: bool
) -> None:
    machine.gpus["cuda:0"] = free
    found = engine_memory(servable(weights, sources, "cuda:0"), placed(4, "cuda:0"))
    assert found is not None
    assert found.share == pytest.approx(share, abs=1e-4)
    assert (found.keep, found.turns) == (keep, turns)


def test_too_little_of_a_gpu(machine: Machine) -> None:
    machine.gpus["cuda:0"] = 16
    assert engine_memory(servable(15, 30, "cuda:0"), placed(4, "cuda:0")) is None


def test_a_model_that_is_cut_between_gpus(machine: Machine) -> None:
    """The fullest decides, and sources are not held on each of them."""
    machine.gpus.update({"cuda:0": 30, "cuda:1": 70})
    found = engine_memory(servable(40, 20, "cuda:0", "cuda:1"), placed(4, "cuda:0", "cuda:1"))
    assert found is not None
    assert found.share == pytest.approx((30 - 4) / 80, abs=1e-4)
    assert found.keep == "host"


@pytest.mark.parametrize(("free", "cache", "keep"), [(60, 4, "host"), (16, 2, "host"), (9, 1.125, "file")])
def test_on_the_processor(machine: Machine, free: int, cache: float, keep: str) -> None:
    machine.host = free
    found = engine_memory(servable(1, 2, CPU), placed(1, CPU))
    assert found is not None
    assert found.share is None
    assert found.cache == int(cache * GB)
    assert found.keep == keep


def test_what_is_said_before_a_search() -> None:
    line = engine_facts(15 * GB, CPU)["engine"]
    assert line.startswith("vLLM: weights 16.1 GB")
    assert "are kept free for it" in line
