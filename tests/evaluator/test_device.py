"""Devices, memory and their limits; nothing here needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.evaluator.device import choose_devices, host_memory, number_of_workers, parse_memory, rates
from evomerge.merging.resident.placement import Limits
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer

Study = Callable[..., Path]


class Notes(Observer):
    def __init__(self) -> None:
        self.noted: list[str] = []
        self.done = 0.0

    def note(self, message: str) -> None:
        self.noted.append(message)

    def progress(self, message: str, done: float) -> None:
        self.done = done


@pytest.mark.parametrize(
    ("text", "on_cpu", "limits"),
    [
        (None, True, Limits()),
        ("20GB", True, Limits(host=20 * 10**9)),
        ("20GB", False, Limits(device=20 * 10**9)),
        ("device=500MB, host=1.5GB", False, Limits(device=5 * 10**8, host=15 * 10**8)),
        ("host=64G", True, Limits(host=64 * 10**9)),
    ],
)
def test_limits(text: str | None, on_cpu: bool, limits: Limits) -> None:
    assert parse_memory(text)(on_cpu) == limits


@pytest.mark.parametrize("text", ["much", "gpu=3GB", "host=", "host=3GB,host=4GB", "device=3GB,", "-3GB", "0"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"^--memory: "):
        parse_memory(text)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu,cuda:99", "cuda:98,cuda:99", "", "meta"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(InputError, match=r"^--device: no device"):
        choose_devices(name)


def test_the_cpu_is_no_part_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_devices("cpu,cpu") == ["cpu"]
    monkeypatch.setattr("evomerge.evaluator.device.choose_device", str)  # all are there
    with pytest.raises(InputError, match="a model is not cut between cpu and others"):
        choose_devices("cpu,cuda:0")


def test_memory_within_a_control_group(tmp_path: Path) -> None:
    whole = host_memory(tmp_path)
    assert 0 < whole.free <= whole.total
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path).total == whole.total
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert host_memory(tmp_path).free == 1_000_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2000000\nother 3\n")
    assert host_memory(tmp_path).free == 3_000_000
    assert host_memory(tmp_path).total == 5_000_000


def test_rates_are_those_of_some_computer() -> None:
    assert 1e8 < rates("cpu").host < 1e13


def test_a_dry_run_tells_where_the_weights_will_live(tiny_study: Study) -> None:
    facts = dry_run(tiny_study(), device="cpu")
    assert facts["weights"].startswith("resident model ")
    for name in ("base", "one", "two"):
        assert f"; {name} " in facts["weights"]
    assert "in files" not in facts["weights"]
    assert " of " in facts["peak memory"]
    assert "moved" in facts["merge of a candidate"]
    assert "in files" in dry_run(tiny_study(), device="cpu", memory="host=1KB")["weights"]


def test_a_search_tells_it_first_and_a_resumed_one_keeps_its_limit(tiny_study: Study) -> None:
    view = Notes()
    evomerge.search(tiny_study(), trials=5, device="cpu", memory="1KB", observer=view)
    assert [n.split(":")[0] for n in view.noted] == ["weights", "peak memory", "merge of a candidate", "items"]
    assert "in files" in view.noted[0]
    assert view.done == 1.0
    for options, mapped in (({}, True), ({"memory": "1GB"}, False), ({"device": "cpu"}, False)):
        view = Notes()
        evomerge.resume("space", observer=view, **options)  # type: ignore[arg-type]
        assert ("in files" in view.noted[0]) == mapped


def test_where_the_weights_live_changes_no_score(tiny_study: Study) -> None:
    space = tiny_study()
    digests = []
    for run, memory in (("a", None), ("b", "host=4KB")):
        result = evomerge.search(space, run=run, trials=6, device="cpu", memory=memory)
        digests.append([t.digest for t in result.search.trials])
    assert digests[0] == digests[1]
    assert all(digests[0])


def test_limits_of_a_device_that_takes_no_part(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    command = ["search", "space.yaml", "--device", "cpu", "--memory", "device=3GB"]
    assert main(command) == 2
    assert "error: --memory: --memory bounds a device's memory" in capsys.readouterr().err
    assert main(["search", "space.yaml", "--memory", "lots", "--dry-run"]) == 2
    assert main(["evaluate", "models/one", "--fitness", "fitness.yaml", "--memory", "lots"]) == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("workers", "ray", "count"),
    [(None, None, 1), ("auto", None, 1), (3, None, 3), (None, "local", None), ("auto", "local", None), (3, "local", 3)],
)
def test_the_number_of_workers(workers: Any, ray: str | None, count: int | None) -> None:
    assert number_of_workers(workers, "cpu", ray) == count


def test_no_workers_are_an_error() -> None:
    with pytest.raises(InputError, match="--workers: 0 workers score nothing; give at least 1"):
        number_of_workers(0, "cpu", None)
