"""Surrogates: their values and gradients are those of the plain model, whatever the micro-batches are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.scoring.suite import Suite

from .conftest import Bench

METRICS = {
    "text": ("bits_per_byte", "byte_perplexity"),
    "cloze": ("perplexity", "acc"),
    "choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
}
CASES = [(task, metric) for task, metrics in METRICS.items() for metric in metrics]


@pytest.fixture
def built(bench: Bench, model: Any, tokenizer: Any) -> Callable[..., Suite]:
    """A suite of one slice `s`."""

    def make(task: str, metric: str, batch_size: int = 8, on: Any = None, **more: Any) -> Suite:
        fitness = bench.fitness({"s": {"task": task, "metric": metric, **more}}, batch_size=batch_size)
        return Suite.build(fitness, model if on is None else on, tokenizer)

    return make


def tasks(bench: Bench) -> None:
    """The bench's tasks; choices with every metric that compares something else."""
    bench.text()
    bench.cloze()
    bench.choice(n=12)
    change(bench, "choice", metric_list=[{"metric": m} for m in METRICS["choice"]])


def change(bench: Bench, task: str, **config: Any) -> None:
    import yaml

    file = bench.tasks / f"{task}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}, sort_keys=False))


def questions(suite: Suite, items: frozenset[str] | None = None) -> list[Any]:
    source: Any = suite.slices["s"].source
    return [question for paper in source.papers("search", items) for question in paper.questions]


def every(suite: Suite) -> frozenset[str]:
    return frozenset(suite.slices["s"].source.names("search"))


def plain(suite: Suite, instance: Any) -> Tensor:
    """A request's loglikelihood by the model's ordinary call, one window at a time, differentiable."""
    from evomerge.scoring.engine.encode import encode

    source: Any = suite.slices["s"].source
    total = torch.zeros(())
    for window in encode(source.lm, instance.request_type, [instance.args])[0]:
        tokens, targets = (torch.from_numpy(part).long() for part in (window.tokens, window.targets))
        logs = source.lm.model(tokens[None]).logits[0, -len(targets) :].log_softmax(-1)
        total = total + logs.gather(1, targets[:, None]).sum()
    return total


def expected(suite: Suite, metric: str, asked: list[Any]) -> Tensor:
    """The surrogate as its definition says it."""
    lls = [torch.stack([plain(suite, instance) for instance in question.instances]) for question in asked]
    if asked[0].instances[0].request_type == "loglikelihood_rolling":
        size = sum(len(question.instances[0].args[0].encode()) for question in asked)
        return -torch.stack(lls).sum() / size / (math.log(2) if metric == "bits_per_byte" else 1)
    if len(asked[0].instances) == 1:
        tokens = [len(q.instances[0].args[1]) for q in asked]  # a token a byte
        return torch.stack([-own[0] / n for own, n in zip(lls, tokens, strict=True)]).mean()
    losses = []
    for question, own in zip(asked, lls, strict=True):
        options, gold = question.document["options"], question.document["gold"]
        scores = own[: len(options)]
        if metric == "acc_mutual_info":
            scores = scores - own[len(options) :]
        if metric in ("acc_norm", "acc_bytes"):
            scores = scores / torch.tensor([float(len(option)) for option in options])
        losses.append(torch.nn.functional.cross_entropy(scores[None], torch.tensor([gold])))
    return torch.stack(losses).mean()


@contextmanager
def tracked(model: Any) -> Iterator[dict[str, Tensor]]:
    """The sums of what hooks on the parameters are given; the parameters keep no gradient."""
    found: dict[str, Tensor] = {}
    hooks = []

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            found[name] = found.get(name, torch.zeros_like(parameter)) + parameter.grad
            parameter.grad = None

        return hook

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(take(name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters, materialize_grads=True), strict=True))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], times: float = 1.0) -> None:
    """Within 1e-4 of the gradient's size, tensor by tensor."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.norm() > 0, name
        assert (found[name] - times * gradient).norm() <= 1e-4 * times * gradient.norm(), name


# Values


@pytest.mark.parametrize(("task", "metric"), CASES)
def test_the_value_is_that_of_the_plain_model(task: str, metric: str, bench: Bench, built: Any) -> None:
    tasks(bench)
    suite = built(task, metric)
    with torch.no_grad():
        wanted = float(expected(suite, metric, questions(suite)))
    assert suite.surrogate("s", every(suite)) == pytest.approx(wanted, rel=1e-5)


def test_a_texts_value_is_its_bits_per_byte(bench: Bench, built: Any) -> None:
    bench.text()
    suite = built("text", "bits_per_byte")
    names = sorted(every(suite))
    for items in (frozenset(names), frozenset(names[::2]), frozenset(names[:1])):
        score = suite.score(chosen={"s": items})["s"]
        assert suite.surrogate("s", items) == pytest.approx(suite.slices["s"].show(score.value), rel=1e-6)


@pytest.mark.parametrize(("task", "metric"), CASES)
def test_some_items_have_a_value_of_their_own(task: str, metric: str, bench: Bench, built: Any) -> None:
    tasks(bench)
    suite = built(task, metric)
    items = frozenset(sorted(every(suite))[1:5])
    with torch.no_grad():
        wanted = float(expected(suite, metric, questions(suite, items)))
    assert suite.surrogate("s", items) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(("task", "metric"), [("text", "bits_per_byte"), ("cloze", "acc"), ("choice", "acc_norm")])
def test_the_gradient_is_that_of_the_plain_model(
    task: str, metric: str, batch_size: int, bench: Bench, built: Any, model: Any
) -> None:
    tasks(bench)
    suite = built(task, metric, batch_size)
    with tracked(model) as found:
        value = suite.surrogate("s", every(suite), backward=True, share=0.5)
    wanted = expected(suite, metric, questions(suite))
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    same(found, gradients(model, wanted), times=0.5)
