"""Templates of tasks are rendered in a sandbox, within bounds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.safety import templates as bounds
from evomerge.scoring import templates
from evomerge.scoring.suite import Suite
from evomerge.scoring.templates import TemplateLimit, sandboxed

from .conftest import Bench

PROGRAMS = [
    "{{ cycler.__init__.__globals__.os.popen('touch PATH').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ text|attr('__class__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(text) }}",
    "{% set f = lipsum.__globals__['os'].system %}{{ f('touch PATH') }}",
]

ENDLESS = {
    "{% for i in range(10**9) %}a{% endfor %}": "makes too much .Range too big",
    "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}": "takes more than 0.5 s",
    "{{ 'x' * 10**10 }}": r"makes too much \('x' \* 10000000000\)",
    "{{ 10 ** (10 ** 9) }}": "makes too much",
    "{% for i in range(200) %}{{ 'x' * 99999 }}{% endfor %}": "makes a text of 19999800 characters",
    "{{ [0] * 10**10 }}": "makes too much",
    "{{ 'x'|center(10**11) }}": "takes more than 1024 MB",
    "{{ '%0999999999999d' % 3 }}": "takes more than 1024 MB",
    "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "(makes|takes)",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "is nested too deep",
    "{{ ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab' * 9)|regex_replace('(a|aa)+$', 'b') }}": "takes more than 0.5 s",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.5)


def render(template: str, **document: Any) -> str:
    with sandboxed():
        return lm_eval.utils.apply_template(template, document)


@pytest.mark.parametrize("template", PROGRAMS)
def test_a_template_cannot_start_a_program(template: str, tmp_path: Path) -> None:
    file = tmp_path / "started"
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        render(template.replace("PATH", str(file)), text="x")
    assert not file.exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_ends_in_bounded_time_and_memory(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateLimit, match=f"^the template {ENDLESS[template]}"):
        render(template)
    assert time.monotonic() - started < 60


@given(
    st.sampled_from(["{{ a }}{{ b }}", "{{ a|trim }} {{ b|length }}", "{{ a * 3 }}", "{{ n * n }} {{ n ** 2 }}",
                     "{% for x in b %}{{ loop.index }}{{ x }}{% endfor %}", "{{ nope }}", "{{ '%s:%d' % (a, n) }}",
                     "{{ b[n] }}", "{{ a|regex_replace('[aeiou]+', '_') }}", "{{ a ~ n }}\n", "{{ b|join(', ') }}"]),
    st.text(), st.lists(st.text()), st.integers(0, 9),
)  # fmt: skip
def test_it_renders_what_lm_eval_renders(template: str, a: str, b: list[str], n: int) -> None:
    def outcome(environment: Any) -> Any:
        try:
            return environment.from_string(template).render(a=a, b=b, n=n)
        except Exception as error:
            return type(error), str(error)

    assert outcome(templates._environment) == outcome(lm_eval.utils.env)


def test_lm_evals_own_way_is_put_back() -> None:
    before = lm_eval.utils.env
    with sandboxed(), sandboxed():
        assert lm_eval.utils.env is not before
    assert lm_eval.utils.env is before
    assert lm_eval.utils.apply_template("{{ ''.__class__.__name__ }}", {}) == "str"


LINES = {
    "{{ ''.__class__ }}": "task 'write' cannot be built: .*access to attribute '__class__' of 'str' object is unsafe",
    "{{ 'x' * 10**10 }}": "task 'write' cannot be built: doc_to_text: the template makes too much",
    "{{ nope }}": "task 'write' cannot be built: doc_to_text: 'nope' is undefined",
    "{{ q if q != hard else nope }}": "prompts of .* cannot be built .doc_to_text of item 10 of 16.: 'nope'",
    "{{ q if q != hard else 'x' * 10**9 }}": "prompts of .*doc_to_text of item 10 of 16.: the template makes",
}


@pytest.mark.parametrize("template", LINES)
def test_the_message_names_slice_task_field_and_item(template: str, bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    rows = [{"q": f"{i}?", "hard": "9?", "a": str(i)} for i in range(16)]
    bench.data("write.jsonl", rows)
    bench.yaml("write", dataset_path="json", dataset_kwargs={"data_files": {"test": "write.jsonl"}}, test_split="test",
               output_type="generate_until", doc_to_text=template, doc_to_target="{{a}}",
               generation_kwargs={"until": ["x"], "max_gen_toks": 4},
               metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}])  # fmt: skip
    fitness = bench.fitness({"s": {"task": "write", "metric": "exact_match"}})
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: slices.s.task: .*{LINES[template]}") as found:
        Suite.build(fitness, model, tokenizer)
    assert "\n" not in str(found.value)
