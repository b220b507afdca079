"""Where a merge comes from, as far as a merge writes it down: a search, or another merge that it repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What is told to the files of a merge.

    Attributes:
        results: Markdown for the card.
        facts: for `reproduce.json`; plain values.
        header: comments for the recipe.
        text: the recipe's file, as it is, where the merge is made again.
    """

    results: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    header: str = ""
    text: str = ""
