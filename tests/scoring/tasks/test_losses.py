"""The loss: which request holds the right answer, in every kind of task, and the mean over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.tasks.losses import mean_loss, right_answers

from ..conftest import Bench, choices

Ask = Callable[[str], list[tuple[Any, list[Any], int | None]]]


@pytest.fixture
def ask(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """lm-eval's own requests of a task of the bench: document, its requests, and the one that is found right."""

    def run(name: str) -> list[tuple[Any, list[Any], int | None]]:
        from lm_eval.tasks import TaskManager, get_task_dict

        monkeypatch.chdir(bench.tasks)
        task = get_task_dict([name], TaskManager(include_path=str(bench.tasks), include_defaults=False))[name]
        task.build_all_requests(limit=6)
        found = []
        for document in list(task.eval_docs)[:6]:
            own = [i for i in task.instances if i.doc == document]
            found.append((document, own, right_answers(task, own[0].request_type, document, own)))
        return found

    return run


def continuation(instances: list[Any], at: int | None) -> str:
    assert at is not None
    return str(instances[at].args[1])


def test_a_rolling_or_plain_loglikelihood_is_its_own_answer(bench: Bench, ask: Ask) -> None:
    bench.text()
    bench.cloze()
    assert [at for _, _, at in ask("text")] == [0] * 6
    assert [at for _, _, at in ask("cloze")] == [0] * 6


def test_generated_text_has_no_loss(bench: Bench, ask: Ask) -> None:
    bench.write()
    assert [at for _, _, at in ask("write")] == [None] * 6


@pytest.mark.parametrize(
    "target",
    ["gold", "{{gold}}", "{{options[gold]}}", "{{[gold]}}", "{{[gold, (gold + 1) % 3]}}"],
    ids=["field", "digits", "label", "list", "several"],
)
def test_the_gold_choice(target: str, bench: Bench, ask: Ask) -> None:
    bench.choice(n=6)
    _change(bench, doc_to_target=target)
    for document, instances, at in ask("choice"):
        assert continuation(instances, at) == f" {document['options'][document['gold']]}"


def test_requests_without_the_question_do_not_count(bench: Bench, ask: Ask) -> None:
    bench.choice(n=6)
    _change(bench, metric_list=[{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}])
    for document, instances, at in ask("choice"):
        assert len(instances) == 6
        assert at == document["gold"]


def test_choices_as_contexts_of_one_ending(bench: Bench, ask: Ask) -> None:
    """As winogrande asks: the options stand in the text, the ending is the same."""
    rows = [{"options": row["options"][:2], "gold": row["gold"] % 2, "ending": "runs"} for row in choices(6, seed=3)]
    bench.data("either.jsonl", rows)
    files = {"data_files": {"test": "either.jsonl"}}
    bench.yaml(
        "either",
        dataset_path="json",
        dataset_kwargs=files,
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="gold",
        doc_to_choice="options",
        doc_to_target="ending",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    for document, instances, at in ask("either"):
        assert at == document["gold"]
        assert instances[at].args[0] == document["options"][document["gold"]]


@pytest.mark.parametrize("target", ["{{[7, 8]}}", "nothing of this", "{{[]}}"])
def test_no_right_answer_among_the_choices(target: str, bench: Bench, ask: Ask) -> None:
    bench.choice(n=6)
    _change(bench, doc_to_target=target)
    assert {at for _, _, at in ask("choice")} == {None}


def _change(bench: Bench, **config: Any) -> None:
    import yaml

    file = bench.tasks / "choice.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}, sort_keys=False))


@given(st.lists(st.tuples(st.floats(-1e3, 0), st.integers(1, 50)), min_size=1))
def test_the_mean_is_over_tokens(pairs: list[tuple[float, int]]) -> None:
    per_token = [-total / n for total, n in pairs for _ in range(n)]
    loss = mean_loss(iter(pairs))
    assert loss is not None
    assert math.isclose(loss, math.fsum(per_token) / len(per_token), rel_tol=1e-9, abs_tol=1e-9)


def test_nothing_has_no_mean() -> None:
    assert mean_loss([]) is None
    assert mean_loss([(0.0, 0)]) is None
