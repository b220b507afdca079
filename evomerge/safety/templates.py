"""Bounds the work of Jinja templates, and checks chat templates, which are programs that come with a checkpoint.

transformers renders chat templates in a sandbox, so that they reach nothing; those of tasks are put into one in
`scoring.templates`. But a sandboxed template can loop for ever, or fill the memory in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError, InputError, Where
from evomerge.escape import quoted, shortened
from evomerge.safety.limits import OutOfTime, TimeLimit, memory_limit

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""For one text. A published template takes less than a millisecond."""
MEMORY = 1 << 30
"""Bytes for one text."""
LONGEST = 10_000_000
"""Characters of a template, of the text that it makes, and of a product; elements of a list: more than the longest
context of a model holds."""
_BITS = 10_000
"""Of a product or power of whole numbers. A larger one can take hours inside one operation."""
_MEND = "use another template (`chat_template`)"


class TooMuch(Exception):
    """A template takes or makes too much. The text says what: ``takes more than 10 s``."""


@contextmanager
def bounded() -> Iterator[None]:
    """A context in which a template may be compiled or rendered, in bounded time and memory. Raises TooMuch."""
    bound_operators()
    try:
        with TimeLimit(SECONDS), memory_limit(MEMORY):
            yield
    except OutOfTime:
        raise TooMuch(f"takes more than {SECONDS:g} s") from None
    except MemoryError:
        raise TooMuch(f"takes more than {MEMORY >> 20} MB") from None
    except OverflowError as error:
        raise TooMuch(f"makes too much ({shortened(error, 80)})") from None
    except RecursionError:
        raise TooMuch("is nested too deep, or calls itself without end") from None


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
    problem = ""
    try:
        with bounded():
            yield
    except EvomergeError:
        raise
    except TooMuch as error:
        problem = str(error)
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
    try:
        with bounded():
            _environment().from_string(text)
    except TemplateSyntaxError as error:
        return f"is not valid Jinja (line {error.lineno}: {shortened(error.message)})"
    except TooMuch as error:
        return str(error)
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
def bound_operators() -> None:
    """Bounds products and powers in every sandboxed environment that this process makes from now on, transformers'
    among them: a large power takes hours, and no limit of time ends a single operation."""
    from jinja2.sandbox import SandboxedEnvironment

    table = dict(SandboxedEnvironment.default_binop_table)
    table["*"], table["**"] = _product(table["*"]), _power(table["**"])
    SandboxedEnvironment.default_binop_table = table
    SandboxedEnvironment.intercepted_binops = frozenset({*SandboxedEnvironment.intercepted_binops, "*", "**"})


def _product(multiply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The product, but OverflowError where it would be a huge number, text or list."""

    def apply(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        else:
            sized, times = (left, right) if isinstance(right, int) else (right, left)
            if isinstance(times, int) and hasattr(sized, "__len__") and len(sized) * times > LONGEST:
                raise OverflowError(f"{quoted(sized, 20)} * {quoted(times, 20)}")
        return multiply(left, right)

    return apply


def _power(raise_to: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The power, but OverflowError where it would be a huge number."""

    def apply(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        return raise_to(left, right)

    return apply


def _check_bits(bits: int) -> None:
    if bits > _BITS:
        raise OverflowError(f"a number of more than {_BITS} bits")
