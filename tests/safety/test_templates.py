from __future__ import annotations

import sys

import pytest

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.errors import InputError
from evomerge.safety import templates
from evomerge.safety.templates import check_rendered, check_template, rendering

transformers = pytest.importorskip("transformers")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system keeps no limit of memory")


@pytest.mark.parametrize(
    "text",
    [
        *CHAT_TEMPLATES.values(),
        "",
        "plain",
        "{% generation %}{{ messages }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{{ ' ' * 4 }}{{ 3 * 7 }}{{ 2 ** 10 }}{{ strftime_now('%d') }}{{ raise_exception('no') }}",
    ],
)
def test_templates_of_transformers_pass(text: str) -> None:
    check_template(text, "m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", r"line 1: Expected an expression"),
        ("\n{% frob %}", r"line 2: Encountered unknown tag 'frob'"),
        ("{{ x | frob }}", "No filter named 'frob'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deep"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("x" * (templates.LONGEST + 1), "has 10000001 characters"),
    ],
)
def test_what_is_no_template_is_told_in_a_line(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        check_template(text, "models/a")
    assert "the chat template of models/a" in str(error.value)


def render(text: str) -> str:
    """Renders as transformers does for a tokenizer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with rendering("models/a"):
        ((rendered,), _) = render_jinja_template([[{"role": "user", "content": "hi"}]], chat_template=text)
    return str(rendered)


def test_healthy_templates_render_as_ever() -> None:
    assert render("{{ 'ab' * 3 }} {{ 6 * 7 }} {{ 2 ** 10 }} {{ 1.5 * 2 }} {{ [1] * 2 }} {{ messages[0].content }}") == (
        "ababab 42 1024 3.0 [1, 1] hi"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.2 s"),
        ("{{ lipsum(n=100000000) }}", "takes more than 0.2 s"),
        ("{{ 9 ** (9 ** 9) }}", "more than 10000 bits"),
        ("{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "10000 bits"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ 'x' * 10000000000 }}", r"makes too much \('x' \* 10000000000\)"),
        ("{{ ().__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('\x1b[31mno\n') }}", r"\\x1b\[31mno"),
        pytest.param("{{ messages[0].content.zfill(10000000000) }}", "takes more than 1024 MB", marks=LINUX),
        pytest.param("{{ range(99999) | join('x' * 99999) }}", "takes more than 1024 MB", marks=LINUX),
    ],
)
def test_what_takes_too_much_ends_in_a_line(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2 if "0.2 s" in said else 60.0)
    with pytest.raises(InputError, match=said) as error:
        render(text)
    assert "the chat template of models/a" in str(error.value)
    assert str(error.value).isprintable()


def test_a_text_that_no_model_reads() -> None:
    check_rendered("short", "models/a")
    with pytest.raises(InputError, match="makes a text of 10000001 characters"):
        check_rendered("x" * (templates.LONGEST + 1), "models/a")
