"""Notices tasks that ask the same of every item, or take the same answer for right.

A value that is neither a template nor a field of the data is a text to lm-eval: `doc_to_target: body`, where the field
is `text`, scores the word "body" for each item. What such a task scores looks like any other score.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import nearest
from evomerge.escape import quoted, shortened
from evomerge.scoring.tasks.losses import right_choices
from evomerge.scoring.tasks.task_files import TaskFile, anchor

if TYPE_CHECKING:  # lm-eval
    from evomerge.scoring.tasks.instances import Doc

FEW = 8
"""Fewer items may have the same answer by chance, where it is one of two."""

_NAME = re.compile(r"[^\W\d]\w*")
_ASKS = {
    "loglikelihood_rolling": ("doc_to_target",),
    "generate_until": ("doc_to_text",),
    "multiple_choice": ("doc_to_text", "doc_to_choice"),
}
"""The fields that make the requests of a task; of another kind, text and target."""

_FIRST_ROW = 1 << 20
"""Bytes of a data file that are read for the names of its fields."""


def constant_items(task: Any, docs: Sequence[Doc]) -> str | None:
    """What is the same for all items of a task and should not be, in words; None where nothing is.

    Args:
        task: lm-eval's task.
        docs: its items, with their requests.
    """
    kind = task.OUTPUT_TYPE
    if kind not in ("loglikelihood", *_ASKS) or len(docs) < 2:
        return None
    fields = list(getattr(task, "features", ()))
    values = {field: task.get_config(field) for field in ("doc_to_text", "doc_to_target", "doc_to_choice")}
    literal = {field: text for field, value in values.items() if (text := _literal(value, fields)) is not None}
    asks = _ASKS.get(kind, ("doc_to_text", "doc_to_target"))
    images = bool(getattr(task, "MULTIMODAL", False))  # one question about many images is a task like any other
    if not images and _enough(docs, literal, asks) and _alike(docs, lambda doc: [i.args[0:2] for i in doc.instances]):
        return f"all items ask the same of the model{_mistaken(literal, asks, fields)}"
    if values["doc_to_target"] is None or task.get_config("process_results") is not None:
        return None
    if "doc_to_target" in literal or len(docs) >= FEW:
        what = _constant_target(task, kind, docs)
        return what and f"{what}{_mistaken(literal, ('doc_to_target',), fields)}"
    return None


def constant_fields(file: TaskFile) -> str | None:
    """The same of a local task by its YAML and the first row of its data, without building it: a field that holds the
    name of no field of the data, as a text for all items."""
    config = file.config
    if any(config.get(key) for key in ("process_docs", "custom_dataset", "class", "use_prompt")):
        return None
    fields = data_fields(file)
    if not fields:
        return None
    kind = config.get("output_type", "generate_until")
    for field in ("doc_to_text", "doc_to_target"):
        text = _literal(config.get(field), fields)
        if text is None:
            continue
        if field == "doc_to_target":
            choices = config.get("doc_to_choice")
            known = isinstance(choices, list) and text in map(str, choices)
            wrong = kind != "multiple_choice" or not (known or text.isdigit())
            wrong = wrong and not (config.get("process_results") and kind != "loglikelihood_rolling")
        else:
            wrong = kind == "generate_until"
        if wrong or (_NAME.fullmatch(text) and nearest(text, fields)):
            return f"all items have the same {field}{_mistaken({field: text}, (field,), fields)}"
    return None


def data_fields(file: TaskFile) -> list[str]:
    """The names of the fields in the first row of a local task's JSON data; none where they cannot be told in a
    moment."""
    config = dict(file.config)
    anchor(config, file.folders)
    kwargs, split = config.get("dataset_kwargs"), config.get("test_split") or config.get("validation_split")
    files = kwargs.get("data_files") if config.get("dataset_path") == "json" and isinstance(kwargs, Mapping) else None
    if isinstance(files, Mapping):
        files = files.get(split) if isinstance(split, str) else None
    first = files[0] if isinstance(files, list) and files else files
    if not isinstance(first, str) or not Path(first).is_file():
        return []
    try:
        with Path(first).open("rb") as rows:
            row = json.loads(rows.readline(_FIRST_ROW))
    except (OSError, ValueError, RecursionError):
        return []
    return [str(key) for key in row] if isinstance(row, dict) else []


def _constant_target(task: Any, kind: str, docs: Sequence[Doc]) -> str | None:
    """What the right answers have in common, where that cannot be meant."""
    if kind == "loglikelihood":
        return "all items have the same target" if _alike(docs, lambda doc: doc.instances[0].args[1]) else None
    if kind == "multiple_choice":
        if not any(right_choices(task, copy.deepcopy(doc.document)) for doc in docs):
            return "no item's target is one of its choices"

        def answer(doc: Doc) -> Any:
            document = copy.deepcopy(doc.document)
            return [i.args[1] for i in doc.instances], right_choices(task, document)

        # Where the choices differ, the right one may always be the first.
        return "all items have the same choices and the same target" if _alike(docs, answer) else None
    if kind != "generate_until":
        return None
    try:
        first = task.doc_to_target(copy.deepcopy(docs[0].document))
        alike = _alike(docs, lambda doc: task.doc_to_target(copy.deepcopy(doc.document)))
    except Exception:
        return None  # the task does not use it, or fails when it marks answers
    return "all items have the same target" if alike and first not in ("", None, []) else None


def _alike(docs: Sequence[Doc], look: Callable[[Doc], Any]) -> bool:
    first = look(docs[0])
    return all(look(doc) == first for doc in docs[1:])


def _enough(docs: Sequence[Doc], literal: Mapping[str, str], asks: Iterable[str]) -> bool:
    return len(docs) >= FEW or any(field in literal for field in asks)


def _literal(value: Any, fields: Sequence[str]) -> str | None:
    """The text that lm-eval takes a field's value for; None where it is a template, a field of the data, or empty."""
    if not isinstance(value, str) or not value or value in fields or value.startswith("!function"):
        return None
    return None if any(mark in value for mark in ("{{", "{%", "{#")) else value


def _mistaken(literal: Mapping[str, str], of: Iterable[str], fields: Sequence[str]) -> str:
    """Says which text is probably meant to be a field."""
    for field in of:
        if field in literal:
            close = nearest(literal[field], fields)
            mend = f"did you mean {close!r}?" if close else f"its fields are {', '.join(fields)}"
            known = f"; {shortened(mend)}" if fields else ""
            return f": {field} is the text {quoted(literal[field])}, and no field of the data{known}"
    return f"; check {' and '.join(of)}"
