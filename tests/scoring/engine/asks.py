"""Requests for the engine's tests, and what lm-eval's own class answers to them."""

from __future__ import annotations

import copy
import random
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tests.scoring.conftest import sentence


def ask(kind: str, *arguments: str) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def choices(n: int = 6, words: int = 9, options: int = 3) -> list[Instance]:
    """Choices with a shared context, of different lengths."""
    draw = random.Random(3)
    return [
        ask("loglikelihood", sentence(i, words + i), " " + sentence(draw.randrange(10**6), draw.randint(1, 3)))
        for i in range(n)
        for _ in range(options)
    ]


def letters(n: int = 4) -> list[Instance]:
    """Answers of one token."""
    return [ask("loglikelihood", sentence(i, 8) + "\nAnswer:", letter) for i in range(n) for letter in "ABCD"]


def pairs(n: int = 5) -> list[Instance]:
    """Minimal pairs: no context, a common start."""
    starts = [sentence(i, 4) for i in range(n)]
    return [ask("loglikelihood", "", f"{start} {word}") for start in starts for word in ("sings", "stones")]


def texts(n: int = 4) -> list[Instance]:
    return [ask("loglikelihood_rolling", sentence(50 + i, 3 + 4 * i)) for i in range(n)]


def hflm(model: Any, tokenizer: Any, requests: list[Instance], **options: Any) -> list[Any]:
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4, **options)
    answers: list[Any] = getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)
    return answers


def same(found: list[Any], expected: list[Any], within: float = 1e-3) -> None:
    """Loglikelihoods within 1e-3, greedy flags equal."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, tuple):
            assert ours[1] is theirs[1]
            ours, theirs = ours[0], theirs[0]
        assert isinstance(ours, float)
        assert abs(ours - theirs) <= within, (ours, theirs)
