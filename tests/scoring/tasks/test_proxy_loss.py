"""Proxy losses: their values and gradients are those of the plain model, whatever the micro-batches are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import TrialError
from evomerge.scoring.suite import Suite

from ..conftest import Bench, nudge, sentence

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


def docs(suite: Suite, items: frozenset[str] | None = None) -> list[Any]:
    source: Any = suite.slices["s"].source
    return [doc for task in source.requests("search", items) for doc in task.docs]


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
    """The proxy loss by its definition."""
    lls = [torch.stack([plain(suite, instance) for instance in doc.instances]) for doc in asked]
    if asked[0].instances[0].request_type == "loglikelihood_rolling":
        size = sum(len(doc.instances[0].args[0].encode()) for doc in asked)
        return -torch.stack(lls).sum() / size / (math.log(2) if metric == "bits_per_byte" else 1)
    if len(asked[0].instances) == 1:
        tokens = [len(q.instances[0].args[1]) for q in asked]  # a token a byte
        return torch.stack([-own[0] / n for own, n in zip(lls, tokens, strict=True)]).mean()
    losses = []
    for doc, own in zip(asked, lls, strict=True):
        options, gold = doc.document["options"], doc.document["gold"]
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
        wanted = float(expected(suite, metric, docs(suite)))
    assert suite.proxy_loss("s", every(suite)) == pytest.approx(wanted, rel=1e-5)


def test_a_texts_value_is_its_bits_per_byte(bench: Bench, built: Any) -> None:
    bench.text()
    suite = built("text", "bits_per_byte")
    names = sorted(every(suite))
    for items in (frozenset(names), frozenset(names[::2]), frozenset(names[:1])):
        score = suite.score(items={"s": items})["s"]
        assert suite.proxy_loss("s", items) == pytest.approx(suite.info.slices["s"].show(score.value), rel=1e-6)


@pytest.mark.parametrize(("task", "metric"), CASES)
def test_some_items_have_a_value_of_their_own(task: str, metric: str, bench: Bench, built: Any) -> None:
    tasks(bench)
    suite = built(task, metric)
    items = frozenset(sorted(every(suite))[1:5])
    with torch.no_grad():
        wanted = float(expected(suite, metric, docs(suite, items)))
    assert suite.proxy_loss("s", items) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(("task", "metric"), [("text", "bits_per_byte"), ("cloze", "acc"), ("choice", "acc_norm")])
def test_the_gradient_is_that_of_the_plain_model(
    task: str, metric: str, batch_size: int, bench: Bench, built: Any, model: Any
) -> None:
    tasks(bench)
    suite = built(task, metric, batch_size)
    with tracked(model) as found:
        value = suite.proxy_loss("s", every(suite), backward=True, share=0.5)
    wanted = expected(suite, metric, docs(suite))
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    same(found, gradients(model, wanted), times=0.5)


@contextmanager
def unlike_the_rest(model: Any, how: str) -> Iterator[None]:
    """The model with another attention, or one that takes no shortcuts."""
    if how == "eager":
        model.set_attn_implementation("eager")
    hook = None
    if how == "whole":  # this head must see all positions
        hook = model.lm_head.register_forward_hook(lambda _, given, out: out * (1 + given[0].shape[1] / 100))
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
        if hook is not None:
            hook.remove()


def without_trees(suite: Suite) -> None:
    source: Any = suite.slices["s"].source
    source.lm.shortcuts.trees = False


@pytest.mark.parametrize("how", ["eager", "rows", "checkpointing"])
@pytest.mark.parametrize("task", ["text", "choice"])
def test_the_gradient_is_the_same_by_another_way(how: str, task: str, bench: Bench, built: Any, model: Any) -> None:
    tasks(bench)
    metric = METRICS[task][0]
    with unlike_the_rest(model, how):
        suite = built(task, metric)
        if how == "rows":
            without_trees(suite)
        with tracked(model) as found:
            value = suite.proxy_loss("s", every(suite), backward=True, checkpointing=how == "checkpointing")
        wanted = expected(suite, metric, docs(suite))
        assert value == pytest.approx(wanted.item(), rel=1e-5)
        same(found, gradients(model, wanted))


def test_a_head_that_looks_at_the_whole_sequence_gets_it(bench: Bench, built: Any, model: Any) -> None:
    """Without any shortcut each row is padded; a head that counts positions gives the same if none is."""
    bench.data("even.jsonl", [{"a": f"{i:04}", "b": "red"} for i in range(12)])
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "even.jsonl"}}, "test_split": "test"}
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    texts = {"doc_to_text": "{{a}}", "doc_to_target": "{{b}}"}
    bench.yaml("even", **files, output_type="loglikelihood", **texts, metric_list=metrics)
    with unlike_the_rest(model, "whole"):
        suite = built("even", "acc")
        with tracked(model) as found:
            value = suite.proxy_loss("s", every(suite), backward=True)
        source: Any = suite.slices["s"].source
        assert not source.lm.shortcuts.selection
        wanted = expected(suite, "acc", docs(suite))
        assert value == pytest.approx(wanted.item(), rel=1e-5)
        same(found, gradients(model, wanted))


def test_tied_embeddings_have_one_gradient(bench: Bench, built: Any, model: Any) -> None:
    from transformers import LlamaForCausalLM

    tasks(bench)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tied = LlamaForCausalLM(type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True})).eval()
    suite = built("choice", "acc", on=tied)
    with tracked(tied) as found:
        suite.proxy_loss("s", every(suite), backward=True, checkpointing=True)
    assert "lm_head.weight" not in found
    same(found, gradients(tied, expected(suite, "acc", docs(suite))))


def test_a_long_texts_windows_are_taken_one_by_one(bench: Bench, built: Any, model: Any) -> None:
    bench.text(n=4)
    bench.data("text.jsonl", [{"text": sentence(i, 300)} for i in range(3)])
    suite = built("text", "bits_per_byte", batch_size=1)
    assert suite.slices["s"].proxy_loss.largest(every(suite)).positions <= 512
    with tracked(model) as found:
        suite.proxy_loss("s", every(suite), backward=True)
    same(found, gradients(model, expected(suite, "bits_per_byte", docs(suite))))


# What is asked


def test_of_several_right_answers_the_sum_counts(bench: Bench, built: Any) -> None:
    bench.choice(n=6)
    change(bench, "choice", doc_to_target="{{[gold, (gold + 1) % 3]}}")
    suite = built("choice", "acc")
    losses = []
    with torch.no_grad():
        for doc in docs(suite):
            scores = torch.stack([plain(suite, instance) for instance in doc.instances])
            gold = doc.document["gold"]
            losses.append(-scores.softmax(0)[[gold, (gold + 1) % 3]].sum().log())
    assert suite.proxy_loss("s", every(suite)) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_choices_as_contexts_of_one_ending(bench: Bench, built: Any) -> None:
    bench.choice(n=8)
    change(bench, "choice", doc_to_text="gold", doc_to_target="{{question}}")
    suite = built("choice", "acc_norm")
    with torch.no_grad():
        wanted = float(expected(suite, "acc_norm", docs(suite)))
    assert suite.proxy_loss("s", every(suite)) == pytest.approx(wanted, rel=1e-5)


def test_items_without_a_right_answer_add_nothing(bench: Bench, built: Any) -> None:
    bench.choice(n=16)
    change(bench, "choice", doc_to_target="{{options[gold] if options[0]|length < 9 else 'none'}}")
    suite = built("choice", "acc")
    asked = [doc for doc in docs(suite) if len(doc.document["options"][0]) < 9]
    assert 0 < len(asked) < len(docs(suite))
    with torch.no_grad():
        wanted = float(expected(suite, "acc", asked)) * len(asked) / len(docs(suite))
    assert suite.proxy_loss("s", every(suite)) == pytest.approx(wanted, rel=1e-5)
    rest = every(suite) - {f"choice/{doc.item}" for doc in asked}
    assert suite.proxy_loss("s", rest, backward=True) == 0


def test_bytes_are_those_that_the_task_counts(bench: Bench, built: Any) -> None:
    """As wikitext does, whose prompts are cleaned and whose bytes are not."""
    bench.text()
    (bench.tasks / "code.py").write_text(
        "def count(doc, results):\n    return {'bits_per_byte': (results[0], 2 * len(doc['text']))}\n"
    )
    change(bench, "text", process_results="PLACE", metric_list=[{"metric": "bits_per_byte"}])
    file = bench.tasks / "text.yaml"
    file.write_text(file.read_text().replace("PLACE", "!function code.count"))
    suite = built("text", "bits_per_byte")
    score = suite.score()["s"]
    assert suite.proxy_loss("s", every(suite)) == pytest.approx(-score.value, rel=1e-6)


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize(("task", "metric"), [("choice", "acc"), ("text", "bits_per_byte")])
def test_leaves_are_pooled_as_the_metric_pools_them(
    task: str, metric: str, by_size: bool, bench: Bench, built: Any, model: Any
) -> None:
    for name, n in (("small", 8), ("large", 24)):
        getattr(bench, task)(name, n=n)
    rule = {"metric": metric, "aggregation": "mean", "weight_by_size": by_size}
    (bench.tasks / "both.yaml").write_text(f"group: both\ntask: [small, large]\naggregate_metric_list: [{rule}]\n")
    suite = built("both", metric)
    names = every(suite)
    leaves = [frozenset(name for name in names if name.startswith(leaf)) for leaf in ("small", "large")]
    values = [suite.proxy_loss("s", leaf) for leaf in leaves]
    sizes = [len(leaf) if by_size else 1 for leaf in leaves]
    wanted = sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
    assert suite.proxy_loss("s", names) == pytest.approx(wanted, rel=1e-6)
    if task == "text":
        assert suite.proxy_loss("s", names) == pytest.approx(-suite.score()["s"].value, rel=1e-6)


# No proxy loss


@pytest.mark.parametrize(
    ("task", "more", "changed", "why"),
    [
        ("choice", {"metric": "acc", "direction": "lower"}, {}, "acc is not known to get better"),
        ("text", {"metric": "bits_per_byte", "direction": "higher"}, {}, "bits_per_byte is not known"),
        ("choice", {"metric": "acc"}, {"doc_to_target": "nothing of this"}, "'choice' do not tell which answer"),
    ],
)
def test_slices_without_a_proxy_loss_say_why(
    task: str, more: dict[str, Any], changed: dict[str, Any], why: str, bench: Bench, built: Any
) -> None:
    getattr(bench, task)()
    if changed:
        change(bench, task, **changed)
    suite = built(task, **more)
    assert suite.slices["s"].proxy_loss is None
    assert why in suite.info.slices["s"].no_proxy_loss
    with pytest.raises(ValueError, match=r"slice s has no proxy loss: "):
        suite.proxy_loss("s", every(suite))


def test_a_python_scorer_has_none(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.data("items.jsonl", [{"q": i} for i in range(20)], folder=bench.folder)
    (bench.folder / "mine.py").write_text("def score(model, tokenizer, items):\n    return [1.0] * len(items)\n")
    suite = Suite.build(
        bench.fitness({"s": {"python": "mine.py:score", "data": "items.jsonl"}}, batch_size=8), model, tokenizer
    )
    assert "Python function" in suite.info.slices["s"].no_proxy_loss


def test_what_has_one_gives_no_reason(bench: Bench, built: Any) -> None:
    tasks(bench)
    for task, metric in CASES:
        assert built(task, metric).info.slices["s"].no_proxy_loss == ""


# Manners


def test_nothing_is_left_changed(bench: Bench, built: Any, model: Any) -> None:
    import random

    tasks(bench)
    suite = built("choice", "acc")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    model.train()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.random.get_rng_state(), random.getstate()
    suite.proxy_loss("s", every(suite), backward=True, checkpointing=True)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert not model.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["lm_head.weight"]
    model.lm_head.weight.grad = None
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_without_backward_there_is_no_graph(bench: Bench, built: Any, model: Any) -> None:
    tasks(bench)
    suite = built("choice", "acc")
    with tracked(model) as found:
        suite.proxy_loss("s", every(suite))
    assert not found


def test_a_candidate_costs_its_passes_only(bench: Bench, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.scoring.tasks import proxy_loss

    tasks(bench)
    suite = built("choice", "acc")
    items = every(suite)
    value = suite.proxy_loss("s", items)
    monkeypatch.setattr(proxy_loss, "encode", None)
    assert suite.proxy_loss("s", items) == value
    assert suite.proxy_loss("s", items, backward=True) == pytest.approx(value)


def test_failures_are_trial_errors(bench: Bench, built: Any, model: Any) -> None:
    tasks(bench)
    suite = built("choice", "acc", batch_size=4)
    with pytest.raises(TrialError, match="slice s: ValueError: none of these items"):
        suite.proxy_loss("s", frozenset({"choice/nobody"}))
    weight = model.model.norm.weight.detach().clone()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with tracked(model) as found, pytest.raises(TrialError, match="slice s: the proxy loss is nan"):
        suite.proxy_loss("s", every(suite), backward=True)
    assert not found
    with torch.no_grad():
        model.model.norm.weight.copy_(weight)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = model.model.register_forward_pre_hook(full)
    try:
        with pytest.raises(TrialError, match="batch_size 4; give the fitness file a smaller one"):
            suite.proxy_loss("s", every(suite), backward=True, checkpointing=True)
    finally:
        hook.remove()
    assert not any("forward" in vars(module) for module in model.modules())


# Generated answers: those of a source are learned


def test_written_answers_are_forced_token_by_token(
    built: Callable[..., Suite], bench: Bench, model: Any, tokenizer: Any
) -> None:
    bench.write()
    suite = built("write", "exact_match,first")
    info = suite.info.slices["s"]
    assert (info.no_proxy_loss, info.learns, suite.lacks_answers("s")) == ("", True, True)
    suite.learn("s")
    assert not suite.lacks_answers("s")
    source: Any = suite.slices["s"].source
    written = source.prepare("search").written()
    assert len(written) == len(every(suite))
    nudge(model)
    losses, names = {}, {f"{leaf}/{item}": window for (leaf, item), window in written.items()}
    for name, window in names.items():
        ids = torch.tensor([[*window.tokens.tolist(), int(window.targets[-1])]])
        logs = model(ids).logits[0, :-1].double().log_softmax(-1)
        count = len(window.targets)
        losses[name] = -float(logs[-count:].gather(1, ids[0, -count:, None]).sum()) / count
    some = frozenset(list(names)[:5])
    assert suite.proxy_loss("s", some) == pytest.approx(sum(losses[n] for n in some) / 5, rel=1e-5)
    # Weights that wrote the answers find them likelier than others do.
    before = suite.proxy_loss("s", every(suite))
    nudge(model, seed=2, size=1.0)
    assert suite.proxy_loss("s", every(suite)) > before
    assert source.prepare("search").written() != written


def test_the_length_of_answers_has_no_slope(bench: Bench, model: Any, tokenizer: Any) -> None:
    bench.write()
    slices = {"s": {"task": "write", "metric": "exact_match,first"}, "n": {"of": "s", "metric": "generated_tokens"}}
    suite = Suite.build(bench.fitness(slices), model, tokenizer)
    assert suite.info.slices["n"].no_proxy_loss == "the length of an answer has no gradient"
