"""Renders the Jinja templates of tasks in a sandbox, within bounds of time and memory.

lm-eval renders them without a sandbox: a line of YAML could start a program
(``{{ cycler.__init__.__globals__.os.popen(...) }}``). Here a template sees its document and Jinja's filters, nothing
else. The bounds are those of chat templates (`safety.templates`).
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
from evomerge.safety import templates as bounds
from evomerge.safety.templates import TooMuch, bound_operators, bounded

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
        with bounded():
            yield
    except TooMuch as error:
        raise TemplateLimit(f"the template {error}", source) from None


class _BoundedTemplate(Template):
    source: str

    def render(self, *args: Any, **kwargs: Any) -> str:
        with _bounded(self.source):
            text = super().render(*args, **kwargs)
            if len(text) > bounds.LONGEST:
                raise TooMuch(f"makes a text of {len(text)} characters")
            return text


class _Environment(SandboxedEnvironment):
    """Keeps compiled templates: lm-eval compiles them again for every document."""

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


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """lm-eval's filter of that name. TooMuch where the pattern backtracks without end."""
    try:
        return str(regex.sub(pattern, repl, string, count=count, timeout=bounds.SECONDS))
    except TimeoutError:
        raise TooMuch(f"takes more than {bounds.SECONDS:g} s") from None


bound_operators()
_environment: Any = _Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
_environment.filters["regex_replace"] = _regex_replace
"""As lm-eval's own (lm_eval.utils.env), in the sandbox."""
