"""What an evaluator reports while it loads and scores."""

from __future__ import annotations


class Progress:
    """Receives reports of long work. Every method may be overridden; none has to be."""

    def phase(self, message: str) -> None:
        """A step begins that takes a while, such as loading the sources."""

    def note(self, message: str) -> None:
        """A fact that is worth keeping in sight."""

    def progress(self, message: str, done: float) -> None:
        """The share `done` of a step is finished."""

    def slice_started(self, name: str) -> None:
        """A slice of the current model is being scored."""

    def warn(self, message: str) -> None:
        """The user should know this, and it stops nothing."""
