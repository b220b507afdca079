"""Shows what several models write after the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.escape import quoted
from evomerge.examine.replies import Reply
from evomerge.report.shown import Cell, Column, Row, Sheet


def reply_tables(replies: Sequence[Reply]) -> list[Sheet]:
    """Builds a table for each prompt: a row for each model."""
    return [_table(reply) for reply in replies]


def _table(reply: Reply) -> Sheet:
    rows = [Row([model], [Cell(text)]) for model, text in reply.models.items()]
    return Sheet(f"After {quoted(reply.prompt)}", ["model"], [Column("writes", numbers=False)], rows)


def replies_data(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    return [{"prompt": reply.prompt, "models": dict(reply.models)} for reply in replies]
