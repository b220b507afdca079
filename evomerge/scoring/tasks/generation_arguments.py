"""Checks generation arguments before a model is loaded. transformers is imported only for an uncommon one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import quoted
from evomerge.files.nodes import as_number

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the number of new tokens (lm-eval 0.4.13, `normalize_gen_kwargs`)."""


def check_arguments(settings: Any, where: Where, of: str = "") -> None:
    """InputError where an argument does not exist, or a common one has a value that it cannot take.

    Args:
        settings: a mapping, or lm-eval's text ``a=1,b=2``: only its names are checked.
        where: their place in the fitness file.
        of: whose arguments they are, for the message.
    """
    if isinstance(settings, str):
        _check_names([pair.partition("=")[0].strip() for pair in settings.split(",")], where, of)
        return
    if not isinstance(settings, Mapping):
        shown = quoted(settings)
        raise InputError(f"generation arguments{of} are {shown}, not a mapping", "write {max_gen_toks: 32}", where)
    _check_names(map(str, settings), where, of)
    for name, value in settings.items():
        legal, wanted = _VALUES.get(name, (_anything, ""))
        if not legal(value):
            raise InputError(f"{name}{of} is {quoted(value)}", f"give {wanted}", where)


def _check_names(names: Iterable[str], where: Where, of: str) -> None:
    for name in names:
        if name not in _VALUES and name not in transformers_arguments():
            legal = {*_VALUES, *transformers_arguments()}
            raise InputError(f"no generation argument {quoted(name)}{of}", suggestion(name, legal), where)


@cache
def transformers_arguments() -> frozenset[str]:
    """The arguments that transformers' GenerationConfig has. Imports transformers, without torch."""
    from transformers import GenerationConfig

    return frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def _anything(value: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    number = as_number(value)  # lm-eval casts texts
    return value is None or (number is not None and number >= 1 and number % 1 == 0)


def _is_temperature(value: Any) -> bool:
    number = as_number(value)
    return number is not None and number >= 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys((*_LENGTHS, "num_beams"), (_is_count, "a whole number above 0")),
    "until": (_is_text, "a text, or a list of texts"),
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (_is_temperature, "a number from 0 on"),
    "top_p": (_is_share, "a number above 0, at most 1"),
}
