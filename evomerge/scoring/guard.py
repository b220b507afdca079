"""Keeps what tasks and scorers do from the rest of the program: random seeds, log lines, prints, progress bars, and the
end of the process. Renders templates in a sandbox."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from typing import Any, NoReturn

_LOUD = ("lm_eval", "datasets", "transformers", "huggingface_hub", "httpx", "fsspec", "filelock", "evaluate", "absl")
_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface", "lm_eval.models.vllm_causallms")


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
        stack.enter_context(_no_exit())
        yield


class ExitCalled(Exception):
    """The code of a task or scorer would have ended the program."""


@contextmanager
def _no_exit() -> Iterator[None]:
    """What would end the process is an error of the code that calls it: `sys.exit` and its like, and `os._exit`, after
    which nothing would be printed and a script would see success. A process that the code has forked may end, and does
    so here at the latest: it would go on as a second search of the same run."""
    process = os.getpid()
    ends = {name: getattr(os, name) for name in ("_exit", "abort")}

    def instead(name: str, *arguments: Any, **named: Any) -> NoReturn:
        if os.getpid() != process:
            ends[name](*arguments, **named)
        raise SystemExit(f"os.{name} was called")

    for name in ends:
        setattr(os, name, partial(instead, name))
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise ExitCalled(f"its code raised {type(error).__name__}: {error}") from error
    finally:
        if os.getpid() != process:
            ends["_exit"](1)
        for name, end in ends.items():
            setattr(os, name, end)


@contextmanager
def _generators() -> Iterator[None]:
    import numpy
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    python, legacy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=devices):
        random.seed(0)
        numpy.random.seed(1234)
        # Where CUDA is not in use, `torch.manual_seed` keeps each call, with its stack, for when it will be.
        torch.default_generator.manual_seed(1234)
        if devices:
            torch.cuda.manual_seed_all(1234)
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
    _set_levels(dict.fromkeys(_LOUD, logging.ERROR))
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
        _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    """Sets the levels of loggers. `setLevel` empties the caches of all loggers that there are, which torch makes a
    thousand; here only the last one does."""
    changed = [(logging.getLogger(name), level) for name, level in levels.items()]
    changed = [(logger, level) for logger, level in changed if logger.level != level]
    for logger, level in changed[:-1]:
        logger.level = level
    for logger, level in changed[-1:]:
        logger.setLevel(level)


def _undrawn(tqdm: Any, *args: Any, **kwargs: Any) -> Any:
    return tqdm(*args, **{**kwargs, "disable": True})
