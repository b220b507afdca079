"""Text from outside cannot act on a terminal, be taken for markup, or break a line."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.escape import html, markdown, printable, shortened


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


@given(st.text(max_size=40))
def test_html_is_text(text: str) -> None:
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert (tag, attrs) == ("p", [("title", printable(text))])

        def handle_data(self, data: str) -> None:
            seen.append(data)

    Reader().feed(f'<p title="{html(text)}">{html(text)}</p>')
    assert "".join(seen) == printable(text)


def test_markdown_has_no_markup() -> None:
    assert markdown("[x](y) | <b> `c` *d*") == r"\[x\]\(y\) \| \<b\> \`c\` \*d\*"


def test_shortened() -> None:
    assert shortened("abcdef", 5) == "ab..."
    assert shortened("abcde", 5) == "abcde"


def test_an_error_is_one_line_that_only_prints() -> None:
    assert str(InputError("a\x1b[31m\nb", "c\x07")) == "a\\x1b[31m b; c\\x07"
