"""Keeps lm-eval's random seeds, log lines, prints and progress bars from the rest of the program, and its templates in
a sandbox."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from typing import Any

_LOUD = ("lm_eval", "datasets", "transformers", "huggingface_hub", "httpx", "fsspec", "filelock", "evaluate", "absl")
_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs with the global random generators at lm-eval's seeds, and restores them afterwards.

    Task code and sampling draw from the global generators. Equal candidates must score equal, and the rest of the
    program must not notice. So every pass starts at `simple_evaluate`'s seeds (0 for Python, 1234 for numpy and torch).
    The settings of torch are put back, too: the user's code may set them, even as it is imported. Templates are
    rendered in a sandbox.
    """
    from evomerge.scoring.settings import settings_kept
    from evomerge.scoring.templates import sandboxed

    with ExitStack() as stack:
        stack.enter_context(settings_kept())
        stack.enter_context(sandboxed())
        stack.enter_context(redirect_stdout(sys.stderr))  # stdout is the command's own
        stack.enter_context(_generators())
        stack.enter_context(_silence())
        yield


@contextmanager
def _generators() -> Iterator[None]:
    import numpy
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, legacy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=devices):
        random.seed(0)
        numpy.random.seed(1234)
        torch.manual_seed(1234)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy)


@contextmanager
def _silence() -> Iterator[None]:
    """Logs only errors and draws no progress bar. lm-eval has no switch for some of its bars, so its modules get a tqdm
    that is switched off."""
    import datasets

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    bars: list[tuple[Any, Any]] = [
        (module, module.tqdm) for module in map(sys.modules.get, _BARS) if module and hasattr(module, "tqdm")
    ]
    drawn = not datasets.are_progress_bars_disabled()
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    for module, tqdm in bars:
        module.tqdm = partial(_undrawn, tqdm)
    if drawn:
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if drawn:
            datasets.enable_progress_bars()
        for module, tqdm in bars:
            module.tqdm = tqdm
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _undrawn(tqdm: Any, *args: Any, **kwargs: Any) -> Any:
    return tqdm(*args, **{**kwargs, "disable": True})
