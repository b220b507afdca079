"""The console that everything is shown on."""

from __future__ import annotations

from rich.console import Console


class PipeConsole(Console):
    """Raises BrokenPipeError where its reader has left. Rich's own would end the program with exit code 1, and drop
    what is still to come on stdout: the results."""

    def on_broken_pipe(self) -> None:
        raise  # what is being handled
