"""Real checkpoints and items beside the repository, against an independent scorer's numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.scoring.suite import Suite

from .conftest import Bench

SHARED = Path(__file__).parents[2].parent / "shared" / "specialists"
TASKS = Path(__file__).parent / "task_files"
TABLE = {
    "base": {"french": 2.871, "gsm8k": 2.153, "shakespeare": 2.795},
    "french": {"french": 2.564},
}
"""Bits per byte, from the specialists' README."""

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no specialists at {SHARED}")


@pytest.fixture
def specialists(bench: Bench) -> Bench:
    bench.tasks.mkdir()
    for template in TASKS.glob("*.yaml"):
        text = template.read_text().replace("ITEMS", str(SHARED / "items"))
        (bench.tasks / template.name).write_text(text)
    return bench


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SHARED / "base", dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(SHARED / "base")


def load(model: Any, name: str) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(SHARED / name / "model.safetensors"), strict=False)
    model.tie_weights()


@pytest.mark.slow
def test_bits_per_byte_are_the_independent_scorers(specialists: Bench, base: tuple[Any, Any]) -> None:
    for model, row in TABLE.items():
        slices = {name: {"task": f"{name}_text", "metric": "bits_per_byte"} for name in row}
        fitness = specialists.fitness(slices, batch_size=32)
        # The scorer puts one bos token in front of a text. lm-eval's default is two: the tokenizer's and its own.
        pieces = {n: replace(p, options={"add_bos_token": False}) for n, p in fitness.slices.items()}
        suite = Suite.build(replace(fitness, slices=pieces), *base, split="all")
        load(base[0], model)
        scores = suite.score("all")
        shown = {name: round(suite.info.slices[name].show(score.value), 3) for name, score in scores.items()}
        assert shown == row
        assert all(0.01 < (score.stderr or 0) < 0.06 for score in scores.values())


def test_choices_and_minimal_pairs_are_a_plain_scorers(specialists: Bench, base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    load(model, "base")
    slices = {
        "choice": {"task": "shakespeare_choice", "metric": "acc", "items": 12},
        "grammar": {"task": "grammar_pairs", "metric": "acc", "items": 40},
    }
    suite = Suite.build(specialists.fitness(slices, batch_size=32), model, tokenizer)
    scores = suite.score()
    for name, file in (("choice", "shakespeare_choice"), ("grammar", "grammar_pairs")):
        rows = [json.loads(line) for line in (SHARED / "items" / f"{file}.jsonl").read_text().splitlines()]
        (indices,) = suite.indices(name).values()
        expected = [plain(model, tokenizer, rows[i]) for i in indices]
        assert [item.score for item in scores[name].items] == expected
        assert scores[name].value == sum(expected) / len(expected)


TASK_METRICS = {
    "shakespeare_text": "bits_per_byte",
    "gsm8k_choice": "acc",
    "grammar_pairs": "acc",
    "gsm8k_write": "exact_match",
}


@pytest.mark.parametrize("name", TASK_METRICS)
def test_every_answer_is_lm_evals(
    specialists: Bench, base: tuple[Any, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared, packed and cut short as they may be, the requests get the answers that `simple_evaluate` gets."""
    import lm_eval
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evomerge.scoring.engine.resident import ResidentLM

    model, tokenizer = base
    load(model, "gsm8k")
    answers: dict[str, Any] = {}
    answer = ResidentLM.answer
    told: list[ResidentLM] = []

    def kept(self: ResidentLM, plan: Any) -> list[Any]:
        found = answer(self, plan)
        told.append(self)
        answers.update({str(request.args[:2]): value for request, value in zip(plan.requests, found, strict=True)})
        return found

    monkeypatch.setattr(ResidentLM, "answer", kept)
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    slices = {"s": {"task": name, "metric": TASK_METRICS[name], "items": 20}}
    suite = Suite.build(specialists.fitness(slices, batch_size=8), model, tokenizer)
    score = suite.score()["s"]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    manager = TaskManager(include_path=str(specialists.tasks), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        lm, tasks=[name], samples=suite.indices("s"), task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    assert theirs is not None
    value = next(v for key, v in theirs["results"][name].items() if key.startswith(f"{TASK_METRICS[name]},"))
    assert suite.info.slices["s"].show(score.value) == pytest.approx(value, abs=1e-5)
    count = 0
    for sample in theirs["samples"][name]:
        for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
            ours, expected = answers[str(tuple(arguments[:2]))], responses[0]
            if isinstance(expected, str):
                assert ours == expected
            else:
                one, other = (v[0] if isinstance(v, tuple | list) else v for v in (ours, expected))
                assert float(one) == pytest.approx(float(other), abs=1e-3)
            count += 1
    assert count >= 20
    assert told[0].shortcuts.selection
    assert told[0].shortcuts.trees
    assert told[0].greedy is not False


@pytest.mark.parametrize("task", ["shakespeare_text", "grammar_pairs"])
def test_proxy_losses_and_their_gradients_are_the_plain_models(
    specialists: Bench, base: tuple[Any, Any], task: str
) -> None:
    model, tokenizer = base
    load(model, "base")
    fitness = specialists.fitness({"s": {"task": task, "metric": TASK_METRICS[task], "items": 6}}, batch_size=4)
    suite = Suite.build(fitness, model, tokenizer)
    items = frozenset(suite.slices["s"].source.names("search"))
    source: Any = suite.slices["s"].source
    docs = [doc for task in source.requests("search") for doc in task.docs]
    lls = torch.stack([torch.stack([loglikelihood(source.lm, i) for i in doc.instances]) for doc in docs])
    if task == "grammar_pairs":
        wanted = -lls.log_softmax(1)[:, 0].mean()
    else:
        wanted = -lls.sum() / sum(len(doc.instances[0].args[0].encode()) for doc in docs) / math.log(2)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(wanted, parameters)
    try:
        for checkpointing in (False, True):
            value = suite.proxy_loss("s", items, backward=True, checkpointing=checkpointing)
            assert value == pytest.approx(wanted.item(), rel=1e-5)
            for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                assert parameter.grad is not None
                assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm(), name
            model.zero_grad()
    finally:
        model.zero_grad()


def loglikelihood(lm: Any, instance: Any) -> torch.Tensor:
    """By the model's ordinary call on each window."""
    from evomerge.scoring.engine.encode import encode

    total = torch.zeros(())
    for window in encode(lm, instance.request_type, [instance.args])[0]:
        tokens, targets = (torch.from_numpy(part).long() for part in (window.tokens, window.targets))
        logs = lm.model(tokens[None]).logits[0, -len(targets) :].log_softmax(-1)
        total = total + logs.gather(1, targets[:, None]).sum()
    return total


@torch.no_grad()
def plain(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Whether the right continuation (or sentence) has the higher likelihood, one forward pass each."""

    def loglikelihood(context: str, text: str) -> float:
        start = tokenizer(context).input_ids  # with bos
        ids = tokenizer(context + text).input_ids[-513:]
        logs = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        picked = logs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return float(picked[-(len(tokenizer(context + text).input_ids) - len(start)) :].sum())

    if "good" in row:
        return float(loglikelihood("", row["good"]) > loglikelihood("", row["bad"]))
    values = [loglikelihood(row["context"], choice) for choice in row["choices"]]
    assert all(math.isfinite(value) for value in values)
    return float(max(range(4), key=values.__getitem__) == row["label"])
