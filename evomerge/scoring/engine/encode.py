"""Encodes requests as token windows, like lm-eval 0.4.13 (models/huggingface.py and api/model.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray

from evomerge.errors import InputError

Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Window:
    """One sequence to be scored.

    Attributes:
        tokens: [L], what the forward pass reads.
        targets: [T], the tokens that the logits of the last T positions should predict; 1 <= T <= L.
    """

    tokens: Tokens
    targets: Tokens


def encode(lm: Any, kind: str, arguments: Sequence[Any]) -> list[list[Window]]:
    """Makes the windows of each request; a request's loglikelihood is the sum over its windows.

    Args:
        lm: a `ResidentLM`.
        kind: loglikelihood or loglikelihood_rolling.
        arguments: of each request: (context, continuation) or (text,). A text without a token has no window.

    Raises:
        InputError: a context or continuation has no token, or a continuation more than the model can read.
    """
    pairs = _rolling if kind == "loglikelihood_rolling" else _continuation
    longest = lm.max_length
    return [[window(*pair, longest) for pair in pairs(lm, *texts)] for texts in arguments]


def _continuation(lm: Any, context: str, continuation: str) -> Iterator[tuple[list[int], list[int]]]:
    """(context, continuation) in tokens: `TemplateLM.loglikelihood`."""
    if context:
        before, after = lm._encode_pair(context, continuation)
    else:
        prefix, after = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        before, after = (prefix, after[1:]) if after[:1] == prefix else (prefix, after)
    if not before or not after:
        problem = f"prompt {context[-60:]!r} with answer {continuation[:60]!r}: one of them has no token of its own"
        raise InputError(problem, "mend the task's prompts or answers")
    yield before, after


def _rolling(lm: Any, text: str) -> Iterator[tuple[list[int], list[int]]]:
    """The windows of a text, each token predicted once: `HFLM.loglikelihood_rolling`."""
    windows = get_rolling_token_windows(lm.tok_encode(text), lm.prefix_token_id, lm.max_length, context_len=1)
    yield from map(make_disjoint_window, windows)


def window(before: list[int], after: list[int], longest: int) -> Window:
    """Cuts from the left to what the model can read, and drops the last token: `HFLM._loglikelihood_tokens`."""
    if len(after) > longest:
        problem = f"an answer has {len(after)} tokens, and the model reads at most {longest}"
        raise InputError(problem, "shorten the task's answers")
    tokens = (before + after)[-(longest + 1) :][:-1]
    return Window(np.array(tokens, np.int32), np.array(after, np.int32))
