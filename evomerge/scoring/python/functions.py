"""Loads the user's functions from the files that the fitness file names, and calls them. An error in one is a single
line and fails the candidate."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.escape import shortened
from evomerge.files.objects import FunctionRef
from evomerge.interrupts import raised_by_code
from evomerge.safety.limits import OutOfTime, TimeLimit
from evomerge.scoring.guard import undisturbed
from evomerge.scoring.preflight import MODEL_TAKES, check_function

log = logging.getLogger(__name__)

_LONGEST = 400


class UserFunction:
    """One function of the user. What it prints goes to stderr: stdout is the command's."""

    def __init__(self, ref: FunctionRef, takes: Sequence[str]) -> None:
        """Runs the function's file, which may import its neighbours. `takes`: what the function is called with, by
        position. InputError where the file cannot be run or does not define such a function."""
        check_function(ref, takes)
        self.ref = ref
        self._function = _loaded(ref)
        _check_signature(self._function, ref, takes)

    def __call__(
        self, *arguments: Any, read: Callable[[Any], Any] = lambda answer: answer, timeout: float | None = None
    ) -> Any:
        """Calls the function and returns `read` of its answer. TrialError where either raises, the traceback is logged;
        and where its Python code has not ended after `timeout` seconds."""
        import torch

        limit = contextlib.nullcontext() if timeout is None else TimeLimit(timeout)
        try:
            with contextlib.redirect_stdout(sys.stderr), torch.no_grad(), limit:
                return read(self._function(*arguments))
        except TrialError:
            raise
        except OutOfTime:
            raise TrialError(f"{self.ref.name} did not end within {timeout:g} s") from None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not raised_by_code():
                raise
            # Below a warning: the traceback goes to the run's log, not to the screen.
            log.info("%s raised", self.ref.name, exc_info=True)
            raise TrialError(f"{self.ref.name} raised {_line(error, self.ref.script)}") from error


class ModelBuilder:
    """Makes a model of each candidate's state dict, by the fitness file's `model`."""

    def __init__(self, ref: FunctionRef) -> None:
        self._function = UserFunction(ref, MODEL_TAKES)

    def __call__(self, state: dict[str, Any], folder: Path) -> Any:
        """Builds the model. TrialError where that fails."""
        with undisturbed():  # its random draws are the same for every candidate
            model = self._function(state, folder)
        if model is None:
            raise TrialError(f"{self._function.ref.name} returned None, expected a model")
        return model


def script_digest(ref: FunctionRef) -> str:
    """sha256 of the function's file."""
    return hashlib.sha256(ref.script.read_bytes()).hexdigest()


def _loaded(ref: FunctionRef) -> Callable[..., Any]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = _run(ref) if ref.module is None else importlib.import_module(ref.module)
        function: Callable[..., Any] = getattr(module, ref.function)
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not raised_by_code():
            raise
        problem = f"{ref.name} cannot be loaded ({_line(error, ref.script)})"
        raise InputError(problem, f"mend {ref.script}", ref.where) from error
    if not callable(function):
        raise InputError(f"{ref.name} is not callable", "name a function", ref.where)
    return function


def _run(ref: FunctionRef) -> ModuleType:
    """Runs a file that is no module of an installed package. It may import its neighbours."""
    private = f"evomerge_fitness_{hashlib.sha256(str(ref.script).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(private, ref.script)
    if spec is None or spec.loader is None:
        raise InputError(f"{ref.script} cannot be loaded", "name a Python file", ref.where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module
    sys.path.insert(0, str(ref.script.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(ref.script.parent))
    return module


def _check_signature(function: Callable[..., Any], ref: FunctionRef, takes: Sequence[str]) -> None:
    called = f"it is called as {ref.function}({', '.join(takes)})"
    try:
        inspect.signature(function).bind(*takes)
    except TypeError as error:
        raise InputError(f"{ref.name} does not fit: {called} ({error})", f"mend {ref.script}", ref.where) from None
    except ValueError:
        return  # a function in C has no signature


def _line(error: BaseException, script: Path) -> str:
    """An error in one line, with the last place in the user's files that it passed."""
    try:
        text = shortened(" ".join(str(error).split()), _LONGEST)
    except Exception:  # its own __str__ fails
        text = ""
    frames = traceback.extract_tb(error.__traceback__)
    local = [f for f in frames if f.lineno and Path(f.filename).is_relative_to(script.parent)]
    place = f" ({Path(local[-1].filename).name}:{local[-1].lineno})" if local else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"
