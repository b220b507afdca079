"""Mutations of YAML text: functions of the text and two numbers, so that a failure can be repeated and shrunk."""

from __future__ import annotations

import re
from collections.abc import Callable

Mutation = Callable[[str, int, int], str]

NASTY = (
    "", "~", "null", "true", "yes", "no", "on", "NaN", ".nan", ".inf", "-.inf", "0", "-0", "-1", "1e-3",
    "1e999", "010", "0o10", "0x1F", "0b11", "1_000", "1:30", "1:30:99.5", "0.1.2", "2024-01-31", "2024-13-45",
    "97", "1e9", "1e18", "1000000000", "99999999999999999999999", "0x" + "f" * 6000, "9" * 5000,
    "0." + "1" * 400, "[]", "{}", "[[]]", "[{}]", "{a: b}", "{1: 2}", "{? [a] : 1}", "[1, [2, [3]]]",
    "{filter: x, value: 1}", "{filter: [], value: {}}", "''", '""', "' '", "'\\0'", '"\\0"', '"\\x1b[31m"',
    '"\\ud800"', '"\\u202e"', "é", "日本", "🙂", "a\u0301", "\u202e", "=", "<<", "*a", "&a 1", "*b", "&b [*b]",
    "&c {<<: *c}", "!!bool maybe", "!!int ''", "!!int 1", "!!float x", "!!float 1", "!!timestamp x",
    "!!binary aa", "!!null x", "!!str 1", "!!set {a}", "!!omap [a: 1]", "!!python/name:os.system", "!foo x",
    "!function a.b", "!<tag:x> 1", "! 12", "/dev/zero", "/dev/stdin", "/", "/usr", ".", "..", "~nosuchuser/x",
    "~", "a" * 300, "a/" * 3000, "x" * 20000, "../" * 50, "{{a}}", "{% raw %}", "org/name@main", "a+b", "+",
    "@", "a@", "base", "uniform", "best_source", "method", "TIES", "Dare-TIES", "|", ">", "|\n  text", "a: b",
    "# x", "'", '"', "[", "]", "{", "}", ",", "- x", "? x", "%TAG ! x", "---", "...", "\t", "\x00", "\x85",
    "\ufeff", "[[0, 8], [8, 16]]", "[0, 1000000000]", "[8, 0]", "a.b:c", "a:b", ":", "os:system", "acc,none",
    "a=1,b=2", "name", "-5s", "4h", "1e400d", "0s",
)  # fmt: skip
"""Values that mean something else than they seem, are too large, or hold what YAML has a meaning for."""

_VALUE = re.compile(r"(?<=[:\-,\[{] )[^\s,\[\]{}#][^,\[\]{}#\n]{0,2000}")
_TOKEN = re.compile(r"[\w./-]+|[^\w\s]|\s+")
_KEY = re.compile(r"[\w.-]{1,40}(?=:)")


def _at(text: str, number: int) -> int:
    return number % (len(text) + 1)


def flip(text: str, a: int, b: int) -> str:
    i = _at(text, a)
    return text[:i] + chr(b % 0x180) + text[i + 1 :]


def cut(text: str, a: int, b: int) -> str:
    i = _at(text, a)
    return text[:i] + text[i + 1 + b % 40 :]


def cut_off(text: str, a: int, b: int) -> str:
    return text[: _at(text, a)]


def insert(text: str, a: int, b: int) -> str:
    i = _at(text, a)
    return text[:i] + NASTY[b % len(NASTY)] + text[i:]


def repeat(text: str, a: int, b: int) -> str:
    i = _at(text, a)
    return text[:i] + text[i : i + 1 + b % 60] * 2 + text[i + 1 + b % 60 :]


def _replaced(pattern: re.Pattern[str], text: str, number: int, change: Callable[[str], str]) -> str:
    places = list(pattern.finditer(text))
    if not places:
        return text
    place = places[number % len(places)]
    return text[: place.start()] + change(place.group()) + text[place.end() :]


def set_value(text: str, a: int, b: int) -> str:
    return _replaced(_VALUE, text, a, lambda _: NASTY[b % len(NASTY)])


def tag_value(text: str, a: int, b: int) -> str:
    tags = (
        "!!int ",
        "!!str ",
        "!!bool ",
        "!!float ",
        "!!null ",
        "!!map ",
        "!!seq ",
        "!!binary ",
        "!x ",
        "&a ",
        "&b ",
        "*",
    )
    return _replaced(_VALUE, text, a, lambda value: f"{tags[b % len(tags)]} {value}")


def quote_value(text: str, a: int, b: int) -> str:
    return _replaced(
        _VALUE, text, a, lambda value: ("'{}'", '"{}"', "[{}]", "{{{}}}", "[{0}, {0}]")[b % 5].format(value)
    )


def grow_value(text: str, a: int, b: int) -> str:
    return _replaced(_VALUE, text, a, lambda value: value * (2, 10, 200, 5000)[b % 4])


def set_key(text: str, a: int, b: int) -> str:
    return _replaced(_KEY, text, a, lambda _: NASTY[b % len(NASTY)])


def borrow_key(text: str, a: int, b: int) -> str:
    keys = _KEY.findall(text) or [""]
    return _replaced(_KEY, text, a, lambda _: keys[b % len(keys)])


def swap_tokens(text: str, a: int, b: int) -> str:
    tokens = _TOKEN.findall(text)
    if tokens:
        i, j = a % len(tokens), b % len(tokens)
        tokens[i], tokens[j] = tokens[j], tokens[i]
    return "".join(tokens)


def _lines(change: Callable[[list[str], int, int], None]) -> Mutation:
    def mutate(text: str, a: int, b: int) -> str:
        lines = text.splitlines(keepends=True) or [""]
        change(lines, a % len(lines), b)
        return "".join(lines)

    return mutate


def _repeat_line(lines: list[str], i: int, b: int) -> None:
    lines[i] = lines[i] * (2 + b % 3)


def _indent(lines: list[str], i: int, b: int) -> None:
    lines[i] = lines[i][1:] if b % 2 else " " * (1 + b % 7) + lines[i]


def _move_line(lines: list[str], i: int, b: int) -> None:
    lines.insert(b % len(lines), lines.pop(i))


def _merge_line(lines: list[str], i: int, b: int) -> None:
    indent = lines[i][: len(lines[i]) - len(lines[i].lstrip())]
    merged = ("*a", "[*a, *b]", "{weight: 1}", "x", "[1]", "&a {x: *a}", "{<<: {name: ../x}}")[b % 7]
    lines.insert(i, f"{indent}<<: {merged}\n")


def _document(lines: list[str], i: int, b: int) -> None:
    lines.insert(i, ("---\n", "...\n", "--- !x\n", "%YAML 1.1\n---\n", "name: ../x\n")[b % 5])


MUTATIONS: tuple[Mutation, ...] = (
    flip, cut, cut_off, insert, repeat, set_value, set_value, set_value, set_value, tag_value, quote_value, grow_value,
    set_key, borrow_key, swap_tokens, _lines(_repeat_line), _lines(_indent), _lines(_move_line), _lines(_merge_line),
    _lines(_document),
)  # fmt: skip
