"""How workers share devices, memory and threads; nothing here needs a GPU."""

from __future__ import annotations

import pytest

from evomerge.errors import InputError
from evomerge.evaluator.shares import Share, check_workers, deal, describe, environment, resumed_device, threads
from evomerge.merging.resident.placement import Device, Limits

GPUS = [f"cuda:{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("devices", "workers", "dealt"),
    [
        (["cpu"], 2, ["cpu", "cpu"]),
        (GPUS[:2], 2, ["cuda:0", "cuda:1"]),
        (GPUS[:2], 3, ["cuda:0", "cuda:1", "cuda:0"]),
        (GPUS[:3], 2, ["cuda:0", "cuda:1"]),
        (GPUS[:4], 2, ["cuda:0,cuda:1", "cuda:2,cuda:3"]),
        (GPUS, 3, ["cuda:0,cuda:1", "cuda:2,cuda:3", "cuda:4,cuda:5"]),
        (GPUS, 8, GPUS),
        (["cuda:5"], 4, ["cuda:5"] * 4),
    ],
)
def test_devices_are_dealt(devices: list[str], workers: int, dealt: list[str]) -> None:
    shares = deal(devices, workers)
    assert [share.device for share in shares] == dealt
    assert all(share.on_device == dealt.count(share.device) for share in shares)
    assert all(share.on_host == workers and not share.spare for share in shares)
    assert all(share.spare for share in deal(devices, workers, spare=True))


def test_shares_of_memory_and_of_limits() -> None:
    share = Share("cuda:0", on_device=2, on_host=4)
    assert share.of(Device("cuda:0", 60, 80)) == Device("cuda:0", 30, 40)
    assert share.of(Device("cpu", 60, 80)) == Device("cpu", 15, 20)
    assert share.within(Limits(device=10, host=20)) == Limits(device=5, host=5)
    assert share.within(Limits()) == Limits()
    assert describe([share, share]) == "2 (2 on cuda:0)"


def test_threads_are_never_more_than_cores() -> None:
    assert [threads(n, 8) for n in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    assert threads(2, 64, "6") == 3
    assert threads(2, 64, "many") == 32
    given = environment(2, {"OMP_NUM_THREADS": "6", "HOME": "/x"})
    assert given == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "HOME": "/x"}


def test_a_resumed_run_uses_the_devices_of_its_launch_or_all_of_that_kind() -> None:
    assert resumed_device("cuda:0,cuda:1", 2, 2) == "cuda:0,cuda:1"
    assert resumed_device("cuda:0", 1, 4) == "auto"
    assert resumed_device("cpu", 2, 1) == "cpu"


def test_no_workers_are_an_error() -> None:
    with pytest.raises(InputError, match="--workers: 0 workers score nothing"):
        check_workers(0)
