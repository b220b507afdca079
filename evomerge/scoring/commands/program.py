"""Runs a program of the user, within a time limit. It never outlives the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from evomerge.errors import TrialError
from evomerge.escape import quoted, shortened

_WATCH = """
import os, signal, subprocess, sys, threading

def end():
    try:
        os.killpg(program.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

def watch():
    sys.stdin.buffer.read()
    end()

try:
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
except OSError as error:
    print(f"{sys.argv[1]}: {error.strerror}")
    sys.exit(127)
threading.Thread(target=watch, daemon=True).start()
code = program.wait()
end()
sys.stdout.flush()
os._exit(code if code >= 0 else 128 - code)
"""
"""Starts the program in a group of its own, and ends the group with the program, or as soon as stdin is closed: that
also happens when the process that holds its other end is killed."""

_KEPT = 64 << 10
"""Bytes of the output that are kept: its end."""
_PATIENCE = 10.0
"""Seconds that a program which was ended, or its output, may take to be gone."""


def run(arguments: Sequence[str], folder: Path, timeout: float | None) -> str:
    """Runs a program to its end.

    Args:
        arguments: the program and what it is called with; no shell reads them.
        folder: its current one.
        timeout: the seconds after which it is ended, and all that it has started; None: no limit.

    Returns:
        The end of what it printed on stdout and stderr.

    Raises:
        TrialError: it cannot be started, ran out of time, or ended with another code than 0.
    """
    watch = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert watch.stdin is not None
    assert watch.stdout is not None
    kept: deque[bytes] = deque()
    reader = threading.Thread(target=_read, args=(watch.stdout, kept), daemon=True)
    reader.start()
    began, in_time = time.monotonic(), True
    try:
        watch.wait(timeout)
    except subprocess.TimeoutExpired:
        in_time = False
    finally:
        with suppress(OSError):
            watch.stdin.close()
        try:
            watch.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            watch.kill()
            watch.wait()
        reader.join(_PATIENCE)
        if not reader.is_alive():  # else something that left the group still holds the other end
            watch.stdout.close()
    output = b"".join(kept).decode("utf-8", "replace")
    name = shortened(Path(arguments[0]).name, 60)
    if not in_time:
        raise CommandFailed(f"{name} did not end within {timeout:g} s", output)
    if watch.returncode:
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        said = f": {quoted(last.strip(), 200)}" if last else ", and printed nothing"
        after = f"after {time.monotonic() - began:.1f} s"
        raise CommandFailed(f"{name} ended with {_code(watch.returncode)} {after}{said}", output)
    return output


class CommandFailed(TrialError):
    """A program did not do what it was asked for. `output`: the end of what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def _read(stream: IO[bytes], kept: deque[bytes]) -> None:
    size = 0
    with suppress(OSError, ValueError):
        while chunk := os.read(stream.fileno(), 8192):
            kept.append(chunk)
            size += len(chunk)
            while size - len(kept[0]) > _KEPT:
                size -= len(kept.popleft())


def _code(code: int) -> str:
    if code > 128:
        with suppress(ValueError):
            return f"code {code} ({signal.Signals(code - 128).name})"
    return f"code {code}"
