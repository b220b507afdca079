"""What a scalar of YAML is: nothing, true or false, a number, or a text.

YAML 1.1, which PyYAML reads for mergekit and lm-eval, and YAML 1.2 differ. A user may have either in mind:

| written | YAML 1.1 | YAML 1.2 | here |
|---|---|---|---|
| `yes`, `no`, `on`, `off` | true, false | a text | true, false |
| `1e3`, `0o10` | a text | 1000, 8 | 1000, 8 |
| `1_000`, `0b11` | 1000, 3 | a text | 1000, 3 |
| `2024-01-31` | a date | a text | a text |
| `010` | 8 | 10 | 10; refused in recipes |
| `1:30` | 90 | a text | a text; refused in recipes |

So what one version reads as a number, and the other as a text, is a number. The last two rows contradict each other.
Our own files follow YAML 1.2 there. A recipe is mergekit's, too, and must not mean something else to it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import yaml

from evomerge.errors import InputError, Where
from evomerge.escape import quoted, shortened


class Schema(Enum):
    """Whose reading holds."""

    OWN = "search spaces, fitness files, settings: the table above"
    RECIPE = "mergekit's recipes: the same, and what the versions contradict each other in is refused"
    TASK = "lm-eval's task files: as PyYAML reads them"


MOST_DIGITS = 100
"""Characters of a number. Python refuses to convert numbers of thousands of digits, and takes long for those below."""

FUNCTION = "!function"
"""lm-eval's tag for code. It is never run here: the value is its text."""

_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
}
_FAULTS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, yaml.YAMLError)
"""What PyYAML raises for scalars that are not what their tag says."""


def plain(text: str, schema: Schema, where: Where) -> Any:
    """The value of a scalar without quotes and tag. InputError if it is a number of too many digits, a date that no
    calendar has, or, in a recipe, a number that YAML 1.1 and 1.2 read differently."""
    tag = _pyyaml_tag(text)
    if len(text) > MOST_DIGITS and (tag in ("int", "float") or _FLOAT.fullmatch(text) or _OTHER_BASE.fullmatch(text)):
        problem = f"{shortened(text, 20)} is a number of {len(text):,} characters, more than {MOST_DIGITS}"
        raise InputError(problem, "give fewer digits, or put a text in quotes", where)
    if schema is Schema.TASK:
        return _pyyaml(tag, text, where)
    old = _pyyaml(tag, text, where) if tag in ("null", "bool", "int", "float") else text
    new = _core(text)
    contradiction = ":" in text if new is text and not isinstance(old, str) else type(old) is type(new) is int
    if contradiction and old != new:
        if schema is Schema.RECIPE:
            shown = f"{new}" if isinstance(new, int) else "a text"
            problem = f"{shortened(text, 40)} is {old} to mergekit (YAML 1.1) and {shown} in YAML 1.2"
            raise InputError(problem, f"write {old}, or put a text in quotes", where)
        return new
    return old if new is text else new


def tagged(tag: str, text: str, schema: Schema, where: Where) -> Any:
    """The value of a scalar with a tag. InputError if the tag is none of YAML's plain types, or the text is none of
    that type."""
    name = tag.removeprefix(_TAG)
    if schema is Schema.TASK:
        return f"{FUNCTION} {text}" if tag == FUNCTION else _pyyaml(name, text, where)
    if name not in _KINDS:
        problem = f"is not valid YAML here: the tag {shown_tag(tag)}"
        raise InputError(problem, "write plain values, without a tag", where)
    value = text if name == "str" else plain(text, schema, where)
    if type(value) not in _KINDS[name]:
        problem = f"{quoted(text)} is no {name}, as its tag says"
        raise InputError(problem, "remove the tag, or mend the value", where)
    return float(value) if name == "float" else value


def shown_tag(tag: str) -> str:
    """A tag for a message, as it is written in a file."""
    return shortened(tag.replace(_TAG, "!!"), 60)


def _core(text: str) -> Any:
    """A number as YAML 1.2 writes it (core schema, section 10.3.2), or the text. Its words are those of 1.1, too."""
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def _pyyaml_tag(text: str) -> str:
    """The type that PyYAML sees in a plain scalar."""
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text):
            return str(tag).removeprefix(_TAG)
    return "str"


def _pyyaml(name: str, text: str, where: Where) -> Any:
    """The value that PyYAML makes of a scalar of a type."""
    if name == "str":
        return text
    make = yaml.SafeLoader.yaml_constructors.get(f"{_TAG}{name}")
    if make is None or name in ("map", "seq", "set", "omap", "pairs"):
        problem = f"is not valid YAML here: the tag {shown_tag(name)} of a single value"
        raise InputError(problem, "remove the tag", where)
    try:
        return make(_MAKER, yaml.ScalarNode(f"{_TAG}{name}", text))
    except _FAULTS:
        raise InputError(f"{quoted(text)} is no {name}", "mend it, or put it in quotes", where) from None


_MAKER = yaml.SafeLoader("")
