"""Checks and bounds chat templates, which are programs in Jinja that come with a checkpoint.

transformers renders them in a sandbox, so that they reach nothing. But a sandboxed template can loop for ever, or fill
the memory in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError, InputError, Where
from evomerge.escape import shortened
from evomerge.safety.limits import OutOfTime, TimeLimit, memory_limit

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""For one text. A published template takes less than a millisecond."""
MEMORY = 1 << 30
"""Bytes for one text."""
LONGEST = 10_000_000
"""Characters of a template, and of the text that it makes: more than the longest context of a model holds."""
_BITS = 10_000
"""Of a product or power of whole numbers. A larger one can take hours inside one operation."""
_MEND = "use another template (`chat_template`)"


def check_template(text: str, owner: str, where: Where | None = None) -> None:
    """InputError if a text is no Jinja template as transformers reads it. `owner`: the checkpoint or file, for
    messages."""
    problem = _fault(text)
    if problem is not None:
        raise InputError(f"the chat template of {owner} {problem}", _MEND, where)


@contextmanager
def rendering(owner: str, where: Where | None = None) -> Iterator[None]:
    """A context in which transformers may compile and render a chat template, in bounded time and memory.

    Raises:
        InputError: the template fails, or takes too much; so does any other error inside.
    """
    _bound_operators()
    problem = ""
    try:
        with TimeLimit(SECONDS), memory_limit(MEMORY):
            yield
    except EvomergeError:
        raise
    except OutOfTime:
        problem = f"takes more than {SECONDS:g} s"
    except MemoryError:
        problem = f"takes more than {MEMORY >> 20} MB"
    except Exception as error:
        problem = f"cannot be rendered ({shortened(error or type(error).__name__)})"
    if problem:
        raise InputError(f"the chat template of {owner} {problem}", _MEND, where)


def check_rendered(text: str, owner: str, where: Where | None = None) -> None:
    """InputError if a template made a text that no model could read."""
    if len(text) > LONGEST:
        raise InputError(f"the chat template of {owner} makes a text of {len(text)} characters", _MEND, where)


@lru_cache(maxsize=64)
def _fault(text: str) -> str | None:
    """What is wrong with a template, or None."""
    from jinja2 import TemplateSyntaxError

    if len(text) > LONGEST:
        return f"has {len(text)} characters"
    _bound_operators()
    try:
        with TimeLimit(SECONDS), memory_limit(MEMORY):
            _environment().from_string(text)
    except TemplateSyntaxError as error:
        return f"is not valid Jinja (line {error.lineno}: {shortened(error.message)})"
    except OutOfTime:
        return f"takes more than {SECONDS:g} s to compile"
    except MemoryError:
        return f"takes more than {MEMORY >> 20} MB to compile"
    except RecursionError:
        return "is nested too deep"
    except Exception as error:  # Python's own compiler is behind Jinja's
        return f"cannot be compiled ({shortened(error or type(error).__name__)})"
    return None


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """An environment with the syntax of transformers': loop controls, and its own tag `generation`."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


@lru_cache(maxsize=1)
def _bound_operators() -> None:
    """Bounds products and powers in every sandboxed environment that this process makes from now on, transformers'
    among them: a large power takes hours, and no limit of time ends a single operation."""
    from jinja2.sandbox import SandboxedEnvironment

    table = dict(SandboxedEnvironment.default_binop_table)
    table["*"] = _bounded(table["*"], lambda a, b: a.bit_length() + b.bit_length())
    table["**"] = _bounded(table["**"], lambda a, b: a.bit_length() * b)
    SandboxedEnvironment.default_binop_table = table
    SandboxedEnvironment.intercepted_binops = frozenset({*SandboxedEnvironment.intercepted_binops, "*", "**"})


def _bounded(operator: Callable[[Any, Any], Any], bits: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    """The operator for numbers and texts, but not for whole numbers whose result has too many bits."""

    def apply(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int) and bits(left, right) > _BITS:
            raise OverflowError(f"a number of more than {_BITS} bits")
        return operator(left, right)

    return apply
