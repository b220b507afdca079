"""What a check found, in one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One fact about the models.

    level: "problem": they cannot be merged so; "warning": they can, and what is lost or doubtful; "note": good to know.
    topic: what it is about, in a word or two.
    text: the fact, and what to do.
    """

    level: Level
    topic: str
    text: str


def problem(topic: str, text: str) -> Finding:
    return Finding("problem", topic, text)


def warning(topic: str, text: str) -> Finding:
    return Finding("warning", topic, text)


def note(topic: str, text: str) -> Finding:
    return Finding("note", topic, text)
