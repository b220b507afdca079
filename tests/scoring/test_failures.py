"""A candidate that cannot be scored fails its trial, with a reason, and leaves nothing to the next one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.errors import TrialError
from evomerge.scoring.suite import Suite

from .conftest import Bench, only_says

ALL = {
    "choice": {"task": "choice", "metric": "acc"},
    "text": {"task": "text", "metric": "bits_per_byte"},
    "write": {"task": "write", "metric": "exact_match,first"},
}


@pytest.fixture
def suite(bench: Bench, model: Any, tokenizer: Any) -> Suite:
    bench.choice()
    bench.text()
    bench.write(n=40)
    only_says(model, tokenizer, "01")
    return Suite.build(bench.fitness(ALL), model, tokenizer)


FUN = "metric_list: [{metric: fun, aggregation: mean, higher_is_better: true}]\n"


def test_nan_logits_fail_the_trial_and_the_next_one_is_fine(suite: Suite, model: Any) -> None:
    expected = suite.score()
    kept = model.model.norm.weight.detach().clone()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrialError, match=r"slice choice: .*NaN"):
        suite.score()
    with torch.no_grad():
        model.model.norm.weight.copy_(kept)
    assert suite.score() == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried ..."), MemoryError()])
def test_running_out_of_memory_fails_the_trial_only(
    error: Exception, suite: Suite, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", forward)
        with pytest.raises(TrialError, match="out of memory at batch_size 16; give the fitness file a smaller one"):
            suite.score()
    suite.score()


def test_an_error_in_task_code_fails_the_trial(
    bench: Bench, model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench.text()
    (bench.tasks / "code.py").write_text(
        "calls = [0]\ndef measure(doc, results):\n    calls[0] += 1\n"
        "    if calls[0] > 3: raise ZeroDivisionError('no words')\n    return {'fun': 1.0}\n"
    )
    config = (bench.tasks / "text.yaml").read_text().split("metric_list")[0]
    config += f"process_results: !function code.measure\n{FUN}"
    (bench.tasks / "text.yaml").write_text(config)
    suite = Suite.build(bench.fitness({"s": {"task": "text", "metric": "fun"}}), model, tokenizer)
    with pytest.raises(TrialError, match="slice s: ZeroDivisionError: no words"):
        suite.score()
    assert not caplog.records  # a warning would put its traceback on the screen


def test_an_interruption_is_no_failed_trial(suite: Suite, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        suite.score()


def test_task_code_that_changes_its_document_changes_no_later_score(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.text()
    (bench.tasks / "code2.py").write_text(
        "def measure(doc, results):\n    n = len(doc['text']); doc['text'] = ''\n    return {'fun': float(n)}\n"
    )
    config = (bench.tasks / "text.yaml").read_text().split("metric_list")[0]
    config += f"process_results: !function code2.measure\n{FUN}"
    (bench.tasks / "text.yaml").write_text(config)
    suite = Suite.build(bench.fitness({"s": {"task": "text", "metric": "fun"}}), model, tokenizer)
    assert suite.score()["s"].value == suite.score()["s"].value > 0
