"""What a model answered to a document, and what a person needs to read it: the prompt, the choices, the right answer.

Nothing is computed with these texts. They are cut, since a run keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from evomerge.escape import excerpt
from evomerge.scoring.tasks.instances import Doc, TaskRequests
from evomerge.scoring.tasks.losses import right_answers
from evomerge.types import Document, ItemScore, SplitName

PROMPT, ANSWER, CHOICES = 2000, 500, 20
"""Characters of a prompt and of an answer that are kept, and how many choices."""


class Given(NamedTuple):
    """The answer of a model to a document.

    Attributes:
        answer: the text that a filter let through; of choices the likeliest one.
        by_length: the likeliest choice for its length; else the same.
        written: the text that the filter read, where that is another.
    """

    answer: str
    by_length: str
    written: str | None = None


def describe(task: TaskRequests, doc: Doc, number: int, split: SplitName) -> Document:
    """Describes one document. `number`: its position in its task's data, from 0."""
    choices = [] if len(doc.instances) < 2 else _choices(task.task, doc.instances)
    return Document(
        item=f"{task.leaf}/{doc.item}",
        split=split,
        number=number,
        prompt=excerpt(_prompt(task.task, doc), PROMPT),
        choices=tuple(excerpt(choice, ANSWER) for choice in choices[:CHOICES]),
        answer=_right(task.task, doc, choices),
    )


def given(task: TaskRequests, filter_name: str) -> dict[str, Given]:
    """Returns the answer to each document that was given one, by `ItemScore.item`: called while the responses are
    there."""
    answers = {}
    for name, doc in zip(task.names, task.docs, strict=True):
        responses = [instance.filtered_resps.get(filter_name) for instance in doc.instances]
        with suppress(Exception):  # a task of an unusual form has scores, and no answers
            answer = _given(task.task, doc.instances, responses)
            if answer is not None:
                answers[name] = answer
    return answers


def with_answer(item: ItemScore, metric: str, answers: Mapping[str, Given]) -> ItemScore:
    """The item with the answer that a metric goes by: `acc_norm` compares choices by their length."""
    if item.item not in answers:
        return item
    given = answers[item.item]
    answer = given.by_length if metric.startswith("acc_norm") else given.answer
    return replace(item, answer=answer, written=given.written)


def _given(task: Any, instances: Sequence[Any], responses: Sequence[Any]) -> Given | None:
    if instances[0].request_type == "generate_until":
        first = responses[0]
        text = excerpt(first[0] if isinstance(first, list | tuple) and first else first, ANSWER)
        written = excerpt(instances[0].resps[0], ANSWER)
        return Given(text, text, None if written == text else written)
    if task.OUTPUT_TYPE != "multiple_choice" or len(instances) < 2:
        return None
    choices = _choices(task, instances)
    pairs = list(zip(choices, responses, strict=False))  # those without the question, for acc_mutual_info, come last
    if not all(isinstance(response, tuple) for _, response in pairs):
        return None
    likeliest = max(pairs, key=lambda pair: pair[1][0])[0]
    by_length = max(pairs, key=lambda pair: pair[1][0] / max(1, len(pair[0])))[0]
    return Given(excerpt(likeliest, ANSWER), excerpt(by_length, ANSWER))


def _choices(task: Any, instances: Sequence[Any]) -> list[str]:
    """The choices as the requests hold them, without the delimiter before each: no code of the task is run."""
    count = len(instances)
    if "acc_mutual_info" in getattr(task, "_metric_fn_list", {}):
        count //= 2
    if getattr(task, "multiple_input", 0):
        return [str(instance.args[0]) for instance in instances[:count]]
    delimiter = str(task.get_config("target_delimiter") or "")
    return [str(instance.args[1]).removeprefix(delimiter) for instance in instances[:count]]


def _prompt(task: Any, doc: Doc) -> str:
    """The document's own text, where its task makes one: the examples before it say nothing of it."""
    first = doc.instances[0]
    if first.request_type != "loglikelihood_rolling" and not getattr(task, "multiple_input", 0):
        with suppress(Exception):  # the task's code; the request holds its text in any case
            text = task.doc_to_text(copy.deepcopy(doc.document))
            if isinstance(text, str) and text.strip():
                return text
    return str(first.args[0] or first.args[-1])


def _right(task: Any, doc: Doc, choices: Sequence[str]) -> str | None:
    kind = doc.instances[0].request_type
    if kind == "generate_until":
        with suppress(Exception):  # the task's code
            target = task.doc_to_target(copy.deepcopy(doc.document))
            return None if target is None else excerpt(target, ANSWER)
        return None
    if kind == "loglikelihood_rolling":
        return None
    at = right_answers(task, kind, copy.deepcopy(doc.document), doc.instances)
    if at is None:
        return None
    return excerpt(choices[at] if at < len(choices) else doc.instances[at].args[1], ANSWER)
