"""Reads the front matter of model cards: the YAML above a README.md, as the hub reads it.

Cards are written by strangers, and what they say is passed on to another card. So a value counts only where it is of
the form that the hub wants; anything else is as good as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.checkpoints import hub
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.references import locate
from evomerge.errors import InputError, Where
from evomerge.files.scalars import Schema
from evomerge.files.trees import parse_documents
from evomerge.safety.read import is_there, read_text

CARD = "README.md"
LICENCE_TEXTS = ("LICENSE", "LICENSE.md", "LICENSE.txt")
"""Names that a card's `license_link` may give to a file beside it."""

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.S)
_WORD = re.compile(r"[a-z0-9][\w.+-]{0,59}", re.I)
_NAME = re.compile(r"[a-z0-9][\w.+ -]{0,58}[\w.+]", re.I)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8}){0,2}|code|multilingual", re.I)
_DATASET = re.compile(r"[a-z0-9][\w.-]{0,95}(/[a-z0-9][\w.-]{0,95})?", re.I)
_URL = re.compile(r"https?://[\w.~:/?#@!$&*+,;=%-]{1,200}", re.I)
_MOST = 100
"""Languages or data sets of a card."""


@dataclass(frozen=True)
class Card:
    """What a model's card says.

    Attributes:
        licence: the hub's identifier of its licence, in small letters.
        licence_name, licence_link: where that is ``other``.
        folder: where the card lies.
        repository: of the hub with its commit, or None.
    """

    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    pipeline: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    folder: Path | None = field(default=None, compare=False)
    repository: str | None = field(default=None, compare=False)


def cards_of(checkpoint: Checkpoint) -> list[Card]:
    """The cards of a checkpoint's parts that have one: the adapter's, then the model's."""
    return [c for part in reversed(checkpoint.parts) if (c := card_of_part(part, checkpoint.where)) is not None]


def card_of_part(reference: str, where: Where | None = None) -> Card | None:
    """The card of a folder or repository. One that cannot be read, or fetched, says nothing."""
    try:
        folder, repository = locate(reference), None
        if folder is None:
            name, revision = hub.split_revision(reference)
            folder, commit = hub.fetch(name, revision, where, (CARD,))
            repository = f"{name}@{commit}"
        if not is_there(folder / CARD):
            return None
        return read_card(read_text(folder / CARD), folder, repository)
    except InputError:
        return None


def read_card(text: str, folder: Path | None = None, repository: str | None = None) -> Card | None:
    """What the text of a card says; None where it has no front matter. Raises InputError where that is no YAML."""
    front = _FRONT.match(text)
    documents = parse_documents(front[1], (folder or Path()) / CARD, Schema.TASK) if front else []
    data: Any = documents[0].data if documents else None
    if not isinstance(data, dict):
        return None
    licence = _first(data.get("license"), _WORD)
    return Card(
        licence=licence.lower() if licence else None,
        licence_name=_first(data.get("license_name"), _NAME),
        licence_link=_link(data),
        pipeline=_first(data.get("pipeline_tag"), _WORD),
        languages=_all(data, "language", _LANGUAGE),
        datasets=_all(data, "datasets", _DATASET),
        folder=folder,
        repository=repository,
    )


def _link(data: Mapping[str, Any]) -> str | None:
    link = data.get("license_link")
    return link if isinstance(link, str) and (link in LICENCE_TEXTS or _URL.fullmatch(link)) else None


def _first(value: Any, form: re.Pattern[str]) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) and form.fullmatch(value) else None


def _all(data: Mapping[str, Any], key: str, form: re.Pattern[str]) -> tuple[str, ...]:
    value = data.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(v for v in values if isinstance(v, str) and form.fullmatch(v)))[:_MOST]
