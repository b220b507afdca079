"""The engine's process and what becomes of it, with a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, TrialError
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.serving.choice import Servable
from evomerge.scoring.serving.engine import EngineMemory, ServingEngine
from tests.scoring.serving.fake_vllm import DIE, DIE_ONCE, FAIL, LEAVE, LOSE_WORKER_ONCE, NORMAL, write_fake

MEMORY = EngineMemory(None, 1 << 30)


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in."""
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return write_fake(tmp_path / "packages")


@pytest.fixture(scope="module")
def candidates(tiny_models: Path) -> dict[str, tuple[Recipe, str]]:
    """Two merges, with the digests that the resident model has of them."""
    bank = SourceBank()
    resident = Resident(bank.open(str(tiny_models / "base")), bank, "float32")
    found = {}
    for name, weight in (("half", 0.5), ("whole", 1.0)):
        recipe = parse_recipe(
            f"""
            merge_method: task_arithmetic
            base_model: {tiny_models / "base"}
            models: [{{model: {tiny_models / "one"}, parameters: {{weight: {weight}}}}}]
            dtype: float32
            """
        )
        found[name] = recipe, resident.materialize(recipe)
    return found


@pytest.fixture
def engine(vllm: Path, tiny_models: Path) -> Iterator[ServingEngine]:
    made = engine_of(tiny_models)
    yield made
    made.close()


def engine_of(models: Path, memory: EngineMemory = MEMORY) -> ServingEngine:
    base = Checkpoint.open(str(models / "base"))
    files = {"tokenizer.json": (models / "base" / "tokenizer.json").read_bytes()}
    references = (str(models / "base"), str(models / "one"))
    return ServingEngine(Servable(base.config, files, "float32", ("cpu",), references), memory)


def say(engine: ServingEngine, token: int = NORMAL) -> str:
    (reply,) = engine.ask([[token, 5]], [None])
    return reply.outputs[0].text


def test_answers_follow_the_candidate(
    engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]], vllm: Path
) -> None:
    answers = []
    for name in ("half", "whole", "half"):
        engine.become(*candidates[name])
        answers += [say(engine), say(engine)]
    half, whole = answers[0], answers[2]
    assert answers == [half, half, whole, whole, half, half]
    assert half != whole
    assert (vllm / "calls").read_text().split() == ["reload", "forget"] * 3


def test_it_is_started_as_the_candidates_are(engine: ServingEngine, vllm: Path) -> None:
    engine.need(30)
    engine.need(20)
    engine.start()
    arguments = json.loads((vllm / "arguments.json").read_text())
    assert arguments["dtype"] == "float32"
    assert arguments["load_format"] == "dummy"
    assert arguments["max_model_len"] == 30
    assert arguments["tensor_parallel_size"] == 1
    folder = Path(arguments["model"])
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert not list(folder.glob("*.safetensors"))


def test_other_weights_are_no_answer(engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]]) -> None:
    engine.become(candidates["half"][0], candidates["whole"][1])
    with pytest.raises(TrialError, match="are not those of the resident model"):
        say(engine)
    engine.become(*candidates["half"])
    assert say(engine)


def test_a_source_that_is_gone(
    engine: ServingEngine, tiny_models: Path, candidates: dict[str, tuple[Recipe, str]]
) -> None:
    engine.become(parse_recipe(f"{{models: [{{model: {tiny_models / 'none'}}}], merge_method: passthrough}}"), "0" * 64)
    with pytest.raises(TrialError, match="vLLM cannot take the candidate"):
        say(engine)
    engine.become(*candidates["half"])
    assert say(engine)


@pytest.mark.slow
def test_one_that_dies_is_asked_again_once(
    engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]], vllm: Path
) -> None:
    engine.become(*candidates["half"])
    assert say(engine, DIE_ONCE) == say(engine)
    with pytest.raises(TrialError, match="died twice"):
        say(engine, DIE)
    assert say(engine)


def test_an_error_because_a_worker_died_costs_no_candidate(
    engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]], vllm: Path
) -> None:
    engine.become(*candidates["half"])
    assert say(engine, LOSE_WORKER_ONCE) == say(engine)
    assert (vllm / "died").exists()


@pytest.mark.parametrize("token", [FAIL, LEAVE])
def test_an_error_of_vllm_costs_the_candidate(
    engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]], token: int
) -> None:
    engine.become(*candidates["half"])
    with pytest.raises(TrialError, match="RuntimeError: no kernel for that"):
        say(engine, token)
    assert say(engine)  # nothing that it left behind is waited for


@pytest.mark.slow
def test_what_nobody_waits_for_ends_with_the_engine(
    engine: ServingEngine, candidates: dict[str, tuple[Recipe, str]]
) -> None:
    engine.become(*candidates["half"])
    before = say(engine)
    url = engine.url()
    assert engine.lived(url, 30.0)
    assert not engine.lived("http://127.0.0.1:1/v1", 30.0)
    body = json.dumps({"prompt": "slow", "max_tokens": 3}).encode()
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    with socket.create_connection((host, int(port)), 30) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert engine.lived(url, 0.5)
    assert say(engine) == before  # by a new one


def test_what_vllm_refuses_is_one_line(engine: ServingEngine, vllm: Path) -> None:
    (vllm / "refuse").touch()
    with pytest.raises(InputError, match=r"vLLM cannot serve this model: .*Head size 8 is not supported"):
        engine.start()


def test_it_gives_its_memory_back_while_the_resident_model_scores(
    tiny_models: Path, vllm: Path, candidates: dict[str, tuple[Recipe, str]]
) -> None:
    engine = engine_of(tiny_models, EngineMemory(0.5, 0, turns=True))
    engine.become(*candidates["half"])
    engine.rest()  # it has not begun
    before = say(engine)
    engine.rest()
    engine.rest()
    assert say(engine) == before
    engine.close()
    arguments = json.loads((vllm / "arguments.json").read_text())
    assert arguments["enable_sleep_mode"]
    assert arguments["gpu_memory_utilization"] == 0.5
    called = (vllm / "calls").read_text().splitlines()
    assert called == ["reload", "forget", "sleep 2", "wake weights", "reload", "wake kv_cache", "forget"]


def processes(folder: Path) -> list[psutil.Process]:
    """The engines whose packages lie in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(folder: Path) -> bool:
    end = time.monotonic() + 20
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes(folder)


def test_nothing_is_left_of_it(engine: ServingEngine, vllm: Path) -> None:
    engine.start()
    assert processes(vllm.parent)
    shared = Path("/dev/shm") / (vllm / "shared").read_text()
    assert shared.exists()
    assert not (Path(tempfile.gettempdir()) / "socket").exists()  # it has a folder of its own
    engine.close()
    assert gone(vllm.parent)
    assert not shared.exists()


def test_nothing_is_left_where_the_search_is_killed(vllm: Path, tiny_models: Path, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(vllm.parent)!r})
from tests.scoring.serving.test_engine import engine_of
engine = engine_of(Path({str(tiny_models)!r}))
engine.start()
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as search:
        assert search.stdout is not None
        assert search.stdout.readline() == b"started\n"
        shared = Path("/dev/shm") / (vllm / "shared").read_text()
        search.send_signal(signal.SIGKILL)
    assert gone(vllm.parent)
    assert not shared.exists()
