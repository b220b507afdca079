"""The search that a merge comes from, as far as a merge writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a search tells the files of its merge.

    Attributes:
        results: Markdown for the card.
        facts: for `reproduce.json`; plain values.
        header: comments for the recipe.
    """

    results: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    header: str = ""
