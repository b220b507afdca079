"""Text from outside cannot act on a terminal, be taken for markup, or break a line."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.escape import LogFormatter, code, code_block, markdown, masked, printable, shortened


@given(st.text())
def test_printable_is_one_line_that_only_prints(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c.isspace() for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()  # no lone surrogates


@pytest.mark.parametrize("text", ["tok_a", "Größe", "重み", "a b", "🙂", "no\u00a0break"])
def test_what_prints_stays(text: str) -> None:
    assert printable(text) == text


def test_control_characters_are_named() -> None:
    assert printable("a\x1b[31m\x07\n\u202e") == "a\\x1b[31m\\x07\\n\\u202e"


def test_markdown_has_no_markup() -> None:
    assert markdown("[x](y) | <b> `c` *d*") == r"\[x\]\(y\) \| \<b\> \`c\` \*d\*"


def test_shortened() -> None:
    assert shortened("abcdef", 5) == "ab..."
    assert shortened("abcde", 5) == "abcde"


def test_an_error_is_one_line_that_only_prints() -> None:
    assert str(InputError("a\x1b[31m\nb", "c\x07")) == "a\\x1b[31m b; c\\x07"


@given(st.text(st.sampled_from("`a \n|")))
def test_a_code_span_is_closed_by_its_own_fence_only(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    inside = shown[fence.end() : -fence.end()]
    assert shown.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inside)
    assert inside.strip() == printable(text).strip()
    assert not inside.startswith("`")
    assert not inside.endswith("`")


def test_a_code_block_ends_where_it_ends() -> None:
    block = code_block("a: 1\n```\n<script>\x1b\n\tb\n", "yaml").split("\n")
    assert block == ["````yaml", "a: 1", "```", "<script>\\x1b", "\tb", "````"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open 'postgresql://me:secret@db/runs' (x@y)", "cannot open 'postgresql://me:***@db/runs' (x@y)"),
        ("mysql+pymysql://me:s:e/c@r@db:3306/runs", "mysql+pymysql://me:***@db:3306/runs"),
        ("postgresql://db/runs?user=me&password=secret&x=1", "postgresql://db/runs?user=me&password=***&x=1"),
        ("postgresql://me@db:5432/runs", "postgresql://me@db:5432/runs"),
        ("sqlite:////home/me/study.db; model@main, a: b@c", "sqlite:////home/me/study.db; model@main, a: b@c"),
    ],
)
def test_passwords_of_urls_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert str(InputError(text)) == shown
    assert record(text) == f"INFO {shown}"


def record(message: str, *arguments: object, error: bool = False) -> str:
    try:
        raise ValueError("bad\x1b[31m\n2026-01-01 00:00:00,000 INFO evomerge: forged")
    except ValueError as caught:
        info = (ValueError, caught, caught.__traceback__) if error else None
    entry = logging.LogRecord("evomerge", logging.INFO, "", 0, message, arguments, info)
    return LogFormatter("%(levelname)s %(message)s").format(entry)


def test_no_text_makes_a_line_of_a_log() -> None:
    assert record("tensor %s", "a\x1b]0;t\x07\nINFO forged") == "INFO tensor a\\x1b]0;t\\x07\n    INFO forged"
    lines = record("failed", error=True).split("\n")
    assert lines[0] == "INFO failed"
    assert all(line.startswith("    ") for line in lines[1:])
    assert "    Traceback (most recent call last):" in lines
    assert "\x1b" not in "".join(lines)
