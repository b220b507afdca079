"""`evomerge status --watch` and the screen of a search, in real processes on real terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.study.after.watch import watch
from evomerge.study.observer import Observer
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial
from tests.conftest import INTERRUPTIBLE
from tests.report.terminal import Terminal

Study = Callable[..., Path]
LONGEST = 240.0


class OnTerminal:
    """A command on a terminal of this size."""

    def __init__(self, words: list[str], width: int, height: int) -> None:
        self.screen = Terminal(width, height)
        self._mine, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._terminal = terminal
        self.before = termios.tcgetattr(terminal)
        surroundings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
        self.process = subprocess.Popen(
            [*INTERRUPTIBLE, *words], stdin=terminal, stdout=terminal, stderr=terminal, env=surroundings
        )

    def read(self, until: Callable[[list[str]], bool]) -> None:
        """Takes in what is written until the screen shows something, or the command has ended."""
        deadline, rest = time.monotonic() + LONGEST, b""
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self._mine], [], [], 0.2)
            if ready:
                rest += os.read(self._mine, 1 << 16)
                whole = rest.rpartition(b"\x1b")[0] if b"\x1b" in rest[-12:] else rest
                text = whole.decode(errors="ignore")
                rest = rest[len(whole) :]
                self.screen.feed(text)
            elif self.process.poll() is not None:
                self.screen.feed(rest.decode(errors="ignore"))
                return
            if until(self.screen.screen):
                return
        raise AssertionError("\n".join(self.screen.screen))

    def end(self) -> int:
        """Reads to the end, and checks that the terminal is as it was."""
        self.read(lambda screen: False)
        code = self.process.wait(LONGEST)
        assert (self.screen.cursor_shown, self.screen.plain, self.screen.alternate) == (True, True, False)
        assert termios.tcgetattr(self._terminal) == self.before
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)
        os.close(self._terminal)


@contextmanager
def on_terminal(*words: str, width: int = 80, height: int = 24) -> Iterator[OnTerminal]:
    running = OnTerminal(list(words), width, height)
    try:
        yield running
    finally:
        running.close()


def far(screen: list[str]) -> bool:
    """Whether a search has candidates on its screen."""
    return any(line.startswith(("best: ", "closest: ")) for line in screen) and not any(
        "feasible     0 of" in line for line in screen
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_ctrl_c_leaves_the_terminal_as_it_was(tiny_study: Study, width: int, height: int) -> None:
    tiny_study()
    words = ["search", "space.yaml", "--trials", "5000", "--device", "cpu"]
    with on_terminal(*words, width=width, height=height) as running:
        running.read(far)
        panel = running.screen.screen[-height:]
        for part in ("run space  0:0", "search  ", "feasible  ", "seconds  ", "items  "):
            assert any(line.startswith(part) for line in panel), (part, panel)
        assert not running.screen.cursor_shown
        with on_terminal("status", "space", "--watch", width=width, height=height) as watching:
            watching.read(far)
            assert any(line.startswith("search  ") and "/5000" in line for line in watching.screen.screen)
            watching.process.send_signal(signal.SIGINT)
            assert watching.end() == 130
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 130
    assert not any("━" in line for line in running.screen.screen), "nothing of the panel is left"
    assert "go on with `evomerge resume space`" in "".join(running.screen.screen)
    assert evomerge.status("space").done > 4


class Heard(Observer):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def launched(self, run: str, trials: int | None, *rest: Any, **more: Any) -> None:
        self.events.append(("launched", run, trials))

    def recorded(self, leaderboard: Leaderboard) -> None:
        self.events.append(("recorded", leaderboard.n_finished))

    def stage(self, name: Any, done: int, total: int | None, last: str = "") -> None:
        self.events.append((name, done, total))

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self.events.append(("finished", trial.number))


def test_a_finished_run_is_told_at_once(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    evomerge.search(tiny_study(), trials=8)
    heard = Heard()
    state = watch("space", heard)
    assert state.finished
    assert heard.events[0] == ("launched", "space", 8)
    assert ("recorded", 8) in heard.events
    assert ("references", 4, 4) in heard.events
    assert ("search", 8, 8) in heard.events
    assert not [event for event in heard.events if event[0] == "finished"]
    assert main(["status", "space"]) == 0
    plain = capsys.readouterr().out
    assert main(["status", "space", "--watch"]) == 0
    assert capsys.readouterr().out == plain


@pytest.mark.slow
def test_a_run_is_watched_from_another_process_until_it_ends(tiny_study: Study) -> None:
    """Into pipes: a line for each trial, then what `status` prints."""
    tiny_study(lambda space, fitness: fitness.update(pruning=False))
    command = [*INTERRUPTIBLE, "search", "space.yaml", "--trials", "60", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as searching:
        assert searching.stderr is not None
        next(line for line in searching.stderr if line.startswith("[5/"))
        watching = subprocess.Popen(
            [*INTERRUPTIBLE, "status", "space", "--watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in searching.stderr:
            pass
        out, told = watching.communicate(timeout=LONGEST)
    assert watching.returncode == 0
    lines = told.splitlines()
    assert lines[0].startswith("run space: 60 trials on a, b")
    numbers = [int(line.split()[1].rstrip(":")) for line in (part.partition("] ")[2] for part in lines[1:])]
    assert numbers == list(range(numbers[0], 60))
    assert out.startswith("run space: finished; 60 of 60 trials")
    assert "Scores on both splits" in out


def test_what_cannot_be_watched(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    for words, says in (
        (["status", "x", "--watch", "--json"], "--watch: --watch shows a run as it goes on, and --json prints one"),
        (["status", "--watch"], "--watch: needs a RUN"),
        (["status", "nothing", "--watch"], "nothing"),
    ):
        assert main(words) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(InputError):
        watch("nothing", Observer())
