"""A class of tests that run for each of some names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., Any])


def of(applies: Callable[[str], bool]) -> Callable[[F], F]:
    """Makes a test one of the names alone to which it applies."""

    def marked(test: F) -> F:
        test.applies = applies  # type: ignore[attr-defined]
        return test

    return marked


class Suite:
    """Tests that take a `name`.

    Attributes:
        names: what a subclass tests.
    """

    names: ClassVar[Sequence[str]] = ()

    @staticmethod
    def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
        """Runs each test for each of the names to which it applies. A suite without names fails: it tests nothing."""
        if "name" in metafunc.fixturenames and metafunc.cls is not None:
            if not metafunc.cls.names:
                raise pytest.UsageError(f"{metafunc.cls.__name__} has no names")
            applies = getattr(metafunc.function, "applies", lambda name: True)
            metafunc.parametrize("name", [name for name in metafunc.cls.names if applies(name)])
