"""Names of earlier versions, which warn for a while before they go (docs/api.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Takes parameters under their old names, too (``old="new"``), with a warning."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*arguments: P.args, **settings: P.kwargs) -> T:
            for old, new in names.items():
                if old in settings:
                    if new in settings:
                        raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
                    text = f"{function.__name__}(): {old!r} is called {new!r}, and will not be taken from 1.0 on"
                    warnings.warn(text, FutureWarning, stacklevel=2)
                    settings[new] = settings.pop(old)
            return function(*arguments, **settings)

        return call

    return decorate
