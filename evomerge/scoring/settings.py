"""Keeps the settings of the process that scores and the rest of the program depend on: torch's, the working folder, the
environment variables, the handlers of signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from evomerge.escape import shortened

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


@contextmanager
def settings_kept() -> Iterator[list[str]]:
    """Puts torch's settings back at the end. The list that is yielded then has a line for each that had changed:
    ``torch's default dtype (torch.float32 -> torch.float64)``."""
    before = [(name, look(), put) for name, look, put in _SETTINGS]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for (name, then, put), (_, look, _) in zip(before, _SETTINGS, strict=True):
            now = look()
            if now != then:
                put(then)
                changed.append(f"torch's {name} ({now_and_then(then, now)})")


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Puts the working folder, the environment variables, the rights that new files get, and the handlers of signals
    back at the end. Timers that were started meanwhile are stopped: they would end the program, or raise in it."""
    folder, variables, rights = os.open(".", os.O_RDONLY), dict(os.environ), os.umask(0o077)
    os.umask(rights)
    on_main = threading.current_thread() is threading.main_thread()  # only this one can set them
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if on_main else {}
    idle = [timer for timer in _TIMERS if signal.getitimer(timer)[0] == 0]
    try:
        yield
    finally:
        for timer in idle:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            # None is a handler in C, which cannot be set from here.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        os.umask(rights)
        os.fchdir(folder)
        os.close(folder)
        if os.environ != variables:
            os.environ.clear()
            os.environ.update(variables)


def now_and_then(then: Any, now: Any) -> str:
    """``4 -> 1``, each shortened."""
    return f"{shortened(then, 60)} -> {shortened(now, 60)}"


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _matmul_precision() -> str | None:
    """None where torch does not say, as its two ways of setting it were mixed."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_matmul_precision(precision: str | None) -> None:
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def _precisions() -> list[tuple[str, Callable[[], Any], Callable[[Any], Any]]]:
    """The precisions of torch from 2.9 on, which says them for each library; before, whether it uses TF32."""
    name = "fp32_precision"
    backends: Any = torch.backends
    if not hasattr(backends, name):
        owners: list[Any] = [backends.cuda.matmul, backends.cudnn]
        return [("use of TF32", *_attribute(owner, "allow_tf32")) for owner in owners]
    owners = [backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    return [("fp32_precision", *_attribute(owner, name)) for owner in owners]


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _attention() -> tuple[bool, ...]:
    cuda: Any = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()


def _set_attention(kinds: tuple[bool, ...]) -> None:
    cuda: Any = torch.backends.cuda
    setters = (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp)
    for enable, kind in zip(setters, kinds, strict=True):
        enable(kind)


def _autocast() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _set_autocast(states: tuple[Any, ...]) -> None:
    for kind, (enabled, dtype) in zip(("cpu", "cuda"), states, strict=True):
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


_SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
    ("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("default device", _default_device, torch.set_default_device),
    ("autocast", _autocast, _set_autocast),
    ("float32 matmul precision", _matmul_precision, _set_matmul_precision),
    *_precisions(),
    ("benchmark mode of cuDNN", *_attribute(torch.backends.cudnn, "benchmark")),
    ("deterministic mode of cuDNN", *_attribute(torch.backends.cudnn, "deterministic")),
    ("kinds of attention", _attention, _set_attention),
    ("deterministic algorithms", _deterministic, lambda s: torch.use_deterministic_algorithms(s[0], warn_only=s[1])),
    ("number of threads", torch.get_num_threads, torch.set_num_threads),
)
"""(name, how it is looked up, how it is set)."""
