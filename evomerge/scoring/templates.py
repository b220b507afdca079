"""Renders the Jinja templates of tasks in a sandbox, within bounds of time and memory.

lm-eval renders them without a sandbox: a line of YAML could start a program
(``{{ cycler.__init__.__globals__.os.popen(...) }}``). Here a template sees its document and Jinja's filters, nothing
else. Chat templates are bounded in `safety.templates`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import regex
from jinja2 import BaseLoader, StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment

from evomerge.escape import shortened
from evomerge.safety.limits import OutOfTime, TimeLimit, memory_limit
from evomerge.safety.templates import MEMORY, SECONDS

_LONGEST = 10_000_000
"""Characters, elements or bits of what an operator makes: some books."""

_KEPT = 1000
"""Compiled templates that are kept."""


class TemplateLimit(Exception):
    """A template takes too long, or makes too much.

    Attributes:
        source: its text.
    """

    def __init__(self, problem: str, source: str) -> None:
        super().__init__(f"{problem}: {shortened(source, 80)}")
        self.source = source


@contextmanager
def sandboxed() -> Iterator[None]:
    """Until the end, lm-eval renders templates in the sandbox, within bounds."""
    utils: Any = sys.modules.get("lm_eval.utils")
    if utils is None:
        yield
        return
    before = utils.env
    utils.env = _environment
    try:
        yield
    finally:
        utils.env = before


@contextmanager
def _bounded(source: str) -> Iterator[None]:
    """Bounds the compilation or rendering of a template. TemplateLimit, with its text."""
    try:
        with TimeLimit(SECONDS), memory_limit(MEMORY):
            yield
    except (OutOfTime, TimeoutError):
        raise TemplateLimit(f"the template takes more than {SECONDS:g} s", source) from None
    except (MemoryError, RecursionError, OverflowError) as error:
        reason = f" ({error})" if str(error) else ""
        raise TemplateLimit(f"the template makes too much{reason}", source) from None


class _BoundedTemplate(Template):
    source: str

    def render(self, *args: Any, **kwargs: Any) -> str:
        with _bounded(self.source):
            return super().render(*args, **kwargs)


class _Environment(SandboxedEnvironment):
    """Refuses operators that make something huge of two small operands, and keeps compiled templates: lm-eval compiles
    them again for every document."""

    intercepted_binops = frozenset(("*", "**", "%"))
    template_class = _BoundedTemplate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compiled: dict[str, Template] = {}

    def from_string(self, source: Any, globals: Any = None, template_class: Any = None) -> Template:
        if not isinstance(source, str) or globals is not None or template_class is not None:
            return super().from_string(source, globals, template_class)
        if source not in self._compiled:
            with _bounded(source):
                template: Any = super().from_string(source)
            template.source = source
            if len(self._compiled) >= _KEPT:
                self._compiled.clear()
            self._compiled[source] = template
        return self._compiled[source]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**") and _length(operator, left, right) > _LONGEST:
            raise OverflowError(f"{shortened(repr(left), 20)} {operator} {shortened(repr(right), 20)}")
        return super().call_binop(context, operator, left, right)


def _length(operator: str, left: Any, right: Any) -> float:
    """The length of a product or a power: in characters or elements, of whole numbers in bits."""
    if isinstance(left, int) and isinstance(right, int):
        bits = max(1, left.bit_length()), max(1, right.bit_length())
        return bits[0] + bits[1] if operator == "*" else bits[0] * max(0, right)
    sized, times = (left, right) if isinstance(right, int) else (right, left)
    return len(sized) * times if isinstance(times, int) and hasattr(sized, "__len__") else 0


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """lm-eval's filter of that name. TimeoutError where the pattern backtracks without end."""
    return str(regex.sub(pattern, repl, string, count=count, timeout=SECONDS))


_environment: Any = _Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
_environment.filters["regex_replace"] = _regex_replace
"""As lm-eval's own (lm_eval.utils.env), in the sandbox."""
