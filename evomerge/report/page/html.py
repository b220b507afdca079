"""Makes the HTML of a page: Jinja's autoescape for every text, a policy that lets no other script run, plotly.js
once."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from evomerge.escape import printable
from evomerge.report.data import as_json
from evomerge.report.page.blocks import Block, Chart, Columns, Section, Table
from evomerge.report.page.side_by_side import compared_sections
from evomerge.report.page.views import sections

LARGEST = 6_000_000
"""Bytes of a page, plotly.js included."""

ROWS = (1_000_000, 300, 50)
"""The most rows of a table of numbers: fewer, until the page is small enough."""

_SPLIT = re.compile(r"`([^`]+)`")
_TONES = {"promote": "good", "do not promote": "bad", "not decided": "note"}


def page(data: Mapping[str, Any]) -> str:
    """The page of one run, or of two side by side (`compared_with`). Tables of numbers lose their last rows where it
    would have more than `LARGEST` bytes."""
    other = data.get("compared_with")
    parts = sections(data)
    if other:
        own = [replace(part, title=f"{data['run']}: {part.title}") for part in parts]
        parts = [*compared_sections(data, other), *own]
    for most in ROWS:
        text = _rendered(data, [replace(part, blocks=[_cut(b, most) for b in part.blocks]) for part in parts])
        if len(text.encode()) <= LARGEST:
            break
    return text


def _cut(block: Block, most: int) -> Block:
    """A block whose folded tables have at most so many rows."""
    if isinstance(block, Chart):
        table = _cut(block.table, most)
        return replace(block, table=table) if isinstance(table, Table) else block
    if not isinstance(block, Table) or not block.folded or len(block.rows) <= most:
        return block
    note = f"The first {most:,} of {len(block.rows):,} rows; `--json` has all."
    return replace(block, rows=block.rows[:most], notes=[*block.notes, note])


def _rendered(data: Mapping[str, Any], parts: Sequence[Section]) -> str:
    other = data.get("compared_with")
    charts = {c.id: {"height": c.height, **c.spec} for c in _charts(parts)}
    plotly, own = (_plotly() if charts else ""), _file("page.js")
    return _environment().get_template("page.html").render(
        data=data,
        title=f"{data['run']} and {other['run']}" if other else str(data["run"]),
        sections=parts,
        tone=_TONES[data["verdict"]["answer"]],
        charts=_in_script(charts),
        style=Markup(_file("page.css")),
        plotly=Markup(plotly),
        script=Markup(own),
        hashes=[_hash(text) for text in (plotly, own) if text],
    )  # fmt: skip


def _charts(parts: Sequence[Section]) -> list[Chart]:
    blocks = [block for section in parts for block in section.blocks]
    inner = [b for block in blocks if isinstance(block, Columns) for _, bs in block.parts for b in bs]
    return [block for block in (*blocks, *inner) if isinstance(block, Chart)]


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_file),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["coded"] = _coded
    return made


def _shown(value: Any) -> Any:
    """A text with what does not print, or turns the direction of writing, written out; its lines and tabs stay."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in value.split("\n"))


def _coded(text: str) -> Markup:
    """The text, escaped, with what stands between backticks as code."""
    return Markup(_SPLIT.sub(r"<code>\1</code>", str(escape(printable(text)))))


def _in_script(value: Any) -> Markup:
    """JSON inside of a script element: nothing in it can end the element."""
    text = json.dumps(json.loads(as_json(value)), separators=(",", ":"))
    for letter in "<>&'":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("template", name).read_text(encoding="utf-8")


def _plotly() -> str:
    """plotly.js, as plotly's Python package has it."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    """What the page's policy knows a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
