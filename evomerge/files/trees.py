"""Builds trees of nodes from YAML text. Nothing in a text can make that take long, fill the memory, or run code.

PyYAML's parser only tells the events (a list begins, a scalar, ...). The tree is built here, where its size is counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import InputError, Where, nearest, suggestion
from evomerge.escape import quoted, shortened
from evomerge.files.nodes import Node, join
from evomerge.files.scalars import Schema, plain, shown_tag, tagged
from evomerge.safety.read import read_bytes

LARGEST = 8 << 20
"""Bytes of a file. A recipe with a number for each tensor of a model of 80 layers and ten sources has 2 MB."""

MOST_VALUES = 300_000
"""Values of a file, aliases counted each time; long keys count more. That recipe has 90,000; so many take 2 s."""

DEEPEST = 64
"""Lists and mappings inside each other. Files of ours need 7, tasks of lm-eval 9."""

LONGEST_KEY, LONGEST_TEXT = 1_000, 1_000_000
"""Characters. The longest text that we know of is a chat template of 20,000."""

MOST_DOCUMENTS = 1_000
"""Of a file; each document of a recipe is a merge."""

_MOST_DIRECTIVES = 10
"""Lines that begin with %. libyaml compares each with all before."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile("^%", re.M)
_COLLECTIONS = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 20 times as fast


def load(file: Path, schema: Schema = Schema.OWN, named: Where | None = None) -> Node:
    """Reads the one document of a YAML file.

    Args:
        file: the file.
        schema: how its scalars are read.
        named: where the file is named, if another file does.

    Raises:
        InputError: it is missing, no regular file, too large, not YAML, or has several documents or none.
    """
    documents = load_documents(file, schema, named)
    if len(documents) != 1:
        raise InputError(f"holds {len(documents)} YAML documents, expected 1", "keep one", Where(file))
    return documents[0]


def load_documents(file: Path, schema: Schema = Schema.OWN, named: Where | None = None) -> list[Node]:
    """Reads all documents of a YAML file. Arguments and errors are those of `load`."""
    return parse_documents(_text(file, named), file, schema)


def as_scalar(text: str) -> str:
    """A text as YAML writes it on one line: plain where it reads back as that text, else in quotes."""
    width = 10 * LONGEST_TEXT
    if text.isprintable():
        return str(yaml.safe_dump(text, width=width, allow_unicode=True)).removesuffix("\n...\n").rstrip("\n")
    return str(yaml.safe_dump(text, width=width, default_style='"')).rstrip("\n")


def _text(file: Path, named: Where | None) -> str:
    try:
        content = read_bytes(file, named, largest=LARGEST)
    except InputError:
        if not os.path.exists(file):
            raise InputError("no such file", _sibling(file), Where(file)) from None
        if os.path.isdir(file):
            raise InputError("is a folder, not a YAML file", "name the file in it", Where(file)) from None
        raise
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError("cannot be read: it is not UTF-8 text", "save it as UTF-8", Where(file, line)) from None


def _sibling(file: Path) -> str:
    try:
        names = [p.name for p in file.parent.iterdir() if p.suffix in {".yaml", ".yml"}]
    except OSError:
        return f"the folder {file.parent} does not exist either"
    close = nearest(file.stem, [Path(name).stem for name in names])
    meant = next((name for name in names if Path(name).stem == close), file.name)
    return suggestion(meant, names) if names else "check the path"


def parse_documents(text: str, file: Path | str, schema: Schema = Schema.OWN) -> list[Node]:
    """Builds the trees of all documents in a text. `file` is named in errors. InputError if it is not YAML, or larger
    than anything that is meant."""
    hidden = _UNPRINTABLE.search(text)
    if hidden is not None:
        problem = f"is not valid YAML (it holds the character U+{ord(hidden.group()):04X})"
        raise InputError(problem, "remove it", Where(file, text.count("\n", 0, hidden.start()) + 1))
    if len(_DIRECTIVE.findall(text)) > _MOST_DIRECTIVES:
        raise InputError(f"has more than {_MOST_DIRECTIVES} lines that begin with %", "remove them", Where(file))
    return _Trees(text, file, schema).documents()


class _Trees:
    """Builds the trees of one text.

    Attributes:
        _anchors: anchor -> its node; None until that is complete.
        _values: the number of values so far.
        _open: the lists and mappings that have begun and not ended: their events and keys.
    """

    def __init__(self, text: str, file: Path | str, schema: Schema) -> None:
        self._text, self._file, self._schema = text, file, schema
        self._anchors: dict[str, Node | None] = {}
        self._values = 0
        self._open: list[tuple[Any, str | None]] = []

    def documents(self) -> list[Node]:
        try:
            events: Iterator[yaml.Event] = yaml.parse(self._text, Loader=_Parser)
            return list(self._documents(events))
        except yaml.YAMLError as error:
            raise self._fault(error) from None

    def _documents(self, events: Iterator[yaml.Event]) -> Iterator[Node]:
        count = 0
        for event in events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            count += 1
            if count > MOST_DOCUMENTS:
                problem = f"holds more than {MOST_DOCUMENTS:,} YAML documents"
                raise InputError(problem, "split the file", Where(self._file, _line(event)))
            self._anchors.clear()
            first = next(events)
            yield self._node(first, events, _line(first), None)

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], line: int, key: str | None) -> Node:
        """Builds the node that begins with `event`. `line`: where it, or its key, stands."""
        where = Where(self._file, line, key)
        self._count(where)
        if isinstance(event, yaml.AliasEvent):
            return self._copy(self._anchored(str(event.anchor), where), where, len(self._open))
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, where)
        else:
            value = self._collection(event, events, where)
        node = Node(value, where)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _count(self, where: Where) -> None:
        self._values += 1 + len(where.key or "") // 100
        if self._values > MOST_VALUES:
            problem = f"holds more than {MOST_VALUES:,} values"
            raise InputError(problem, "shorten it; aliases (*name) count each time", Where(self._file, where.line))

    def _scalar(self, event: yaml.ScalarEvent, where: Where) -> Any:
        if len(event.value) > LONGEST_TEXT:
            problem = f"is a text of {len(event.value):,} characters, more than {LONGEST_TEXT:,}"
            raise InputError(problem, "shorten it", where)
        if event.tag == "!":
            return event.value
        if event.tag is not None:
            return tagged(event.tag, event.value, self._schema, where)
        return plain(event.value, self._schema, where) if event.implicit[0] else event.value

    def _collection(self, event: Any, events: Iterator[yaml.Event], where: Where) -> Any:
        if event.tag not in _COLLECTIONS:
            raise InputError(
                f"is not valid YAML here: the tag {shown_tag(event.tag)}",
                "write plain lists and mappings",
                where,
            )
        self._open.append((event, where.key))
        self._check_depth(len(self._open), where)
        built = self._sequence(events, where) if _is_sequence(event) else self._mapping(events, where)
        self._open.pop()
        return built

    def _check_depth(self, depth: int, where: Where) -> None:
        if depth > DEEPEST:
            raise self._too_deep(where.line)

    def _too_deep(self, line: int | None) -> InputError:
        return InputError(f"is nested more than {DEEPEST} deep", "write fewer levels", Where(self._file, line))

    def _sequence(self, events: Iterator[yaml.Event], where: Where) -> list[Node]:
        built: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            built.append(self._node(event, events, _line(event), join(where.key, len(built))))
        return built

    def _mapping(self, events: Iterator[yaml.Event], where: Where) -> dict[str, Node]:
        """Builds a mapping. Its own keys replace those that it merges in (``<<``)."""
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        merges = False
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = _line(event)
            at = Where(self._file, line, where.key)
            if _is_merge(event):
                if merges:
                    raise InputError("`<<` stands twice", "write `<<: [*one, *two]`", at)
                merged, merges = self._merged(self._node(next(events), events, line, where.key), where.key), True
                continue
            name = self._key(event, events, at)
            key = join(where.key, name)
            if name in own and self._schema is not Schema.TASK:
                raise InputError("stands twice", "keep one of them", Where(self._file, line, key))
            own[name] = self._node(next(events), events, line, key)
        return {**merged, **own}

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], at: Where) -> str:
        node = self._node(event, events, at.line or 0, at.key)
        name = node.value
        if isinstance(name, list | dict):
            kind = "list" if isinstance(name, list) else "mapping"
            raise InputError(f"a key is a {kind}", "write a text as the key, in quotes if it has brackets", at)
        if isinstance(name, str) and len(name) > LONGEST_KEY:
            raise InputError(f"a key has {len(name):,} characters", f"use at most {LONGEST_KEY:,}", at)
        if not isinstance(name, str) and self._schema is not Schema.TASK:
            written = getattr(event, "value", name)
            problem = f"the key {quoted(written)} reads as {name!r}"
            raise InputError(problem, "put it in quotes", at)
        return name  # type: ignore[no-any-return]  # lm-eval's tasks may have numbers as keys

    def _merged(self, node: Node, key: str | None) -> dict[str, Node]:
        """The keys that ``<<`` merges in: of a mapping, or of several in a list, of which the first one wins."""
        mappings = node.value if isinstance(node.value, list) else [node]
        merged: dict[str, Node] = {}
        for mapping in reversed(mappings):
            if not isinstance(mapping.value, dict):
                problem = f"`<<` merges mappings, and this is {mapping.shown()}"
                raise InputError(problem, "write `<<: *name`, where name is the anchor of a mapping", node.where)
            merged.update(mapping.value)
        return {
            name: self._copy(child, Where(self._file, child.where.line, join(key, name)), len(self._open))
            for name, child in merged.items()
        }

    def _anchored(self, anchor: str, where: Where) -> Node:
        if anchor not in self._anchors:
            near = suggestion(anchor, self._anchors)
            raise InputError(f"is not valid YAML (there is no anchor &{shortened(anchor, 40)})", near, where)
        node = self._anchors[anchor]
        if node is None:
            raise InputError("is not valid YAML (it refers to itself)", "write the values out", where)
        return node

    def _copy(self, node: Node, where: Where, depth: int) -> Node:
        """A copy of a node at another place. Its parts count again."""
        self._count(where)
        if not isinstance(node.value, list | dict):
            return Node(node.value, where)
        self._check_depth(depth + 1, where)
        pairs = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        copies = {
            name: self._copy(child, Where(self._file, child.where.line, join(where.key, name)), depth + 1)
            for name, child in pairs
        }
        return Node(copies if isinstance(node.value, dict) else list(copies.values()), where)

    def _fault(self, error: yaml.YAMLError) -> InputError:
        """What the parser says, and where. It stumbles behind a bracket or quote that is not closed, so the place is
        where that was opened."""
        problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        if "nesting depth" in problem:
            return self._too_deep(line)
        if "quoted scalar" in (getattr(error, "context", None) or "") and "end of" in problem:
            opened = error.context_mark.line + 1  # type: ignore[attr-defined]
            text = "is not valid YAML: a quote that is opened in this line is not closed"
            return InputError(text, "close it", Where(self._file, opened))
        event, key = self._open[-1] if self._open else (None, None)
        if event is None or not event.flow_style or "expected" not in problem:
            return InputError(f"is not valid YAML ({problem})", "check that line", Where(self._file, line))
        bracket, end = ("[", "]") if _is_sequence(event) else ("{", "}")
        text = f"is not valid YAML: the {bracket} that is opened in this line is not closed by line {line} ({problem})"
        return InputError(text, f"add the {end}, or a comma", Where(self._file, _line(event), key))


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1


def _is_sequence(event: yaml.Event) -> bool:
    return isinstance(event, yaml.SequenceStartEvent)


def _is_merge(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and bool(event.implicit[0]) and event.tag is None and event.value == "<<"
