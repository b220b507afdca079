"""Computes the loss of a slice: how unlikely the model finds the right answers, in nats per token.

Which request holds the right answer follows lm-eval 0.4.13 (`lm_eval.api.task.ConfigurableTask.construct_requests` and
`process_results`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def right_answers(task: Any, kind: str, document: Any, instances: Sequence[Any]) -> int | None:
    """Finds the request of a document that holds the right answer.

    Args:
        task: the lm-eval task that made the requests.
        kind: the type of the first request: loglikelihood, loglikelihood_rolling or generate_until.
        document: may be changed by the task's code.
        instances: all of the document's requests, in lm-eval's order.

    Returns:
        The request's index; the first if several hold a right answer, None if none does.
    """
    if kind == "generate_until":
        return None
    if task.OUTPUT_TYPE == "multiple_choice":
        return next(iter(right_choices(task, document)), None)
    return 0 if len(instances) == 1 else None


def right_choices(task: Any, document: Any) -> tuple[int, ...]:
    """Finds the positions of the right choices of a multiple-choice document, which the task's code may change.

    Requests stand in the order of the choices; requests for `acc_mutual_info`, without the question, come after them.
    Where the choices are contexts for one ending (winogrande), the task's text is the position.
    """
    try:
        choices = task.doc_to_choice(document)
        gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    except Exception:
        # Tasks that have a `process_results` may leave the choices unreadable, and still have a score.
        return ()
    positions = (_position(each, choices) for each in (gold if isinstance(gold, list) else [gold]))
    return tuple(dict.fromkeys(at for at in positions if at is not None))


def mean_loss(pairs: Iterable[tuple[float, int]]) -> float | None:
    """The mean negative log-likelihood in nats per token; None where there is no token. `pairs`: (loglikelihood in
    nats, number of tokens) of each answer."""
    total, count = 0.0, 0
    for loglikelihood, tokens in pairs:
        total, count = total + loglikelihood, count + tokens
    return -total / count if count else None


def _position(gold: Any, choices: Sequence[str]) -> int | None:
    if isinstance(gold, str):
        return list(choices).index(gold) if gold in choices else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None
