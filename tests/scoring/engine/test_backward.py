"""Loglikelihoods with gradients, micro-batches, checkpointed layers, and what all that takes in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.errors import InputError
from evomerge.scoring.engine import backward
from evomerge.scoring.engine.activations import Dimensions, Extent, activation_bytes
from evomerge.scoring.engine.backward import Sum, Term, grouped, loglikelihoods
from evomerge.scoring.engine.checkpointing import checkpointed, decoder_layers
from evomerge.scoring.engine.encode import encode
from evomerge.scoring.engine.resident import ResidentLM
from evomerge.scoring.engine.tree import pack

from .asks import choices, letters, texts
from .test_architectures import build

NODE, TARGET = torch.tensor([0, 4, 4, 2, 4, 0]), torch.tensor([3, 1, 6, 0, 2, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
def test_loglikelihoods_and_their_gradient_are_autograds(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(5, 7, generator=generator)).to(dtype).requires_grad_()
    weights = torch.randn(6, generator=generator)
    kept = logits.detach().clone()
    found = loglikelihoods(logits, NODE, TARGET)
    wanted = logits.float().log_softmax(-1)[NODE, TARGET]
    torch.testing.assert_close(found, wanted)
    (ours,) = torch.autograd.grad((found * weights).sum(), logits)
    (theirs,) = torch.autograd.grad((wanted * weights).sum(), logits)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(logits, kept)


def test_a_certain_answer_has_the_gradient_of_what_is_left() -> None:
    """1 - p, where p in 16 bits is 1."""
    logits = torch.tensor([[20.0, 14.0]], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(loglikelihoods(logits, torch.tensor([0]), torch.tensor([0])).sum(), logits)
    left = torch.tensor(-6.0).sigmoid()
    torch.testing.assert_close(gradient.float(), torch.stack([left, -left])[None], rtol=1e-2, atol=0)


def total(lls: Tensor) -> Tensor:
    return -lls.sum()


def terms(lm: Any, requests: list[Any], size: int) -> list[Term]:
    """One of every `size` requests."""
    windows = encode(lm, requests[0].request_type, [request.args for request in requests])
    return [Term([w for own in windows[i : i + size] for w in own], total) for i in range(0, len(windows), size)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_a_micro_batch_has_the_room_of_a_batch_or_is_one_term(batch_size: int, model: Any, tokenizer: Any) -> None:
    lm = ResidentLM(model, tokenizer, batch_size)
    for made in (terms(lm, choices(20), 3), terms(lm, letters(20), 4), terms(lm, texts(20), 1)):
        made.sort(key=lambda term: -max(len(window.tokens) for window in term.windows))
        groups = list(grouped(made, lm))
        assert [id(term) for group in groups for term in group] == list(map(id, made))
        for group in groups:
            windows = [window for term in group for window in term.windows]
            positions = backward._positions(pack(windows, lm.shortcuts.limits(batch_size)))
            assert len(group) == 1 or positions <= batch_size * max(len(window.tokens) for window in windows)
        if batch_size > 2:
            assert len(groups) < len(made)


def test_the_largest_is_known_without_weights(model: Any, tokenizer: Any) -> None:
    lm = ResidentLM(model, tokenizer, batch_size=4)
    made = Sum(terms(lm, letters(1), 4))
    (row,) = pack([w for term in terms(lm, letters(1), 4) for w in term.windows], lm.shortcuts.limits(4))
    assert made.largest(lm) == Extent(len(row), 1, len(row), False)  # four answers of one token
    branched = Sum(terms(lm, choices(1), 3)).largest(lm)
    assert branched.branched
    assert branched.positions == branched.length > branched.scored
    assert Sum([]).largest(lm) == Extent(0, 0, 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "gpt_neo", "mamba", "bloom"])
@pytest.mark.parametrize("kind", [choices, texts])
def test_gradients_on_every_kind_of_architecture(name: str, kind: Any, tokenizer: Any) -> None:
    model = build(name)
    lm = ResidentLM(model, tokenizer, batch_size=3)
    requests = kind()
    wanted = torch.zeros(())
    for window in (w for own in encode(lm, requests[0].request_type, [r.args for r in requests]) for w in own):
        tokens, targets = (torch.from_numpy(part).long() for part in (window.tokens, window.targets))
        logs = model(tokens[None]).logits[0, -len(targets) :].log_softmax(-1)
        wanted = wanted - logs.gather(1, targets[:, None]).sum()
    expected = torch.autograd.grad(wanted, list(model.parameters()), materialize_grads=True)
    for checkpointing in (False, True):
        model.zero_grad()
        value = Sum(terms(lm, requests, 3 if kind is choices else 1)).backward(lm, 1.0, checkpointing)
        assert value == pytest.approx(wanted.item(), rel=1e-5)
        for (path, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
            assert parameter.grad is not None or not gradient.any(), path
            if parameter.grad is not None:
                scale = max(float(gradient.norm()), 1e-3 * float(wanted))
                assert float((parameter.grad - gradient).norm()) <= 1e-4 * scale, path


# Checkpointing


def saved_bytes(model: Any, run: Any) -> int:
    """Bytes that the graph holds, without the parameters."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = run()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del alive
    return sum(size for pointer, size in held.items() if pointer not in own)


def test_layers_run_again_on_the_way_back_and_hooks_do_not(model: Any) -> None:
    layer = model.model.layers[1]
    calls = {"hook": 0, "norm": 0}

    def count(name: str) -> Any:
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    hooks = [layer.register_forward_hook(count("hook")), layer.input_layernorm.register_forward_hook(count("norm"))]
    try:
        with checkpointed(model):
            model(torch.tensor([[1, 2, 3]]), use_cache=False).logits.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    model.zero_grad()
    assert calls == {"hook": 1, "norm": 2}
    assert "forward" not in vars(layer)


def test_a_forward_that_was_replaced_is_given_back(model: Any) -> None:
    layer = model.model.layers[0]
    forward = layer.forward
    mine = layer.forward = lambda *given, **named: forward(*given, **named)
    try:
        with checkpointed(model):
            assert layer.forward is not mine
            model(torch.tensor([[1, 2, 3]]), use_cache=False).logits.sum().backward()
        assert layer.forward is mine
    finally:
        del layer.forward
        model.zero_grad()


def test_the_layers_are_found_by_name(model: Any) -> None:
    assert decoder_layers(model) == list(model.model.layers)
    assert decoder_layers(build("gpt2"))[1].__class__.__name__ == "GPT2Block"


def test_a_model_without_a_stack_is_said_to_have_none(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "num_hidden_layers", 5)
    with pytest.raises(InputError, match="no numbered stack of 5 layers"), checkpointed(model):
        pass


# Memory


def measured(model: Any, tokens: Tensor, mask: Tensor | None, checkpointing: bool) -> int:
    """The peak, in bytes, of a forward and a backward pass on the CPU, gradients of parameters being dropped."""
    from contextlib import nullcontext

    from torch.profiler import ProfilerActivity, profile

    node, target = torch.arange(tokens.numel()), tokens.flatten()

    def run() -> None:
        with checkpointed(model) if checkpointing else nullcontext():
            logits = model(tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
            value = loglikelihoods(logits, node, target).mean()
            del logits
            value.backward()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    now = peak = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "attention", "branched"),
    [
        (torch.float32, "sdpa", False),
        (torch.float32, "sdpa", True),
        (torch.float32, "eager", True),
        (torch.bfloat16, "sdpa", True),
    ],
)
def test_the_estimate_is_above_what_is_measured_and_near(
    dtype: torch.dtype, attention: str, branched: bool, checkpointing: bool
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=4000, hidden_size=512, intermediate_size=1408, num_hidden_layers=6,
                         num_attention_heads=8, num_key_value_heads=4)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).to(dtype).eval()
    model.set_attn_implementation(attention)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    tokens = torch.arange(1024).reshape(4, 256)
    seen = torch.ones(256, 256, dtype=torch.bool).tril().expand(4, 1, 256, 256)
    added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    mask = (added if attention == "eager" else seen) if branched else None
    peak = measured(model, tokens, mask, checkpointing)
    dimensions = Dimensions.of(config.to_dict(), dtype.itemsize)
    estimate = activation_bytes(dimensions, Extent(1024, 1024, 256, branched), checkpointing, attention == "eager")
    weight = max(parameter.nbytes for parameter in model.parameters())  # whose gradient is there for a moment
    assert peak - weight <= estimate <= 1.5 * peak


def test_dimensions_are_read_from_every_familys_configuration() -> None:
    assert Dimensions.of(build("gpt2").config.to_dict(), 2) == Dimensions(32, 128, 2, 4, 258, 2)
    assert Dimensions.of(build("llama").config.to_dict(), 4) == Dimensions(32, 64, 2, 4, 258, 4)
    inner = {"hidden_size": 8, "intermediate_size": 5, "num_hidden_layers": 3, "num_attention_heads": 2,
             "vocab_size": 9, "num_experts_per_tok": 4}  # fmt: skip
    assert Dimensions.of({"text_config": inner}, 4) == Dimensions(8, 20, 3, 2, 9, 4)
    listed = {"num_attention_heads": [1, 2, 2], "num_experts_per_tok": [1, 1, 2]}  # one for each layer, as in Gemma 3n
    wide = Dimensions.of({**inner, **listed, "intermediate_size": [10, 20, 20]}, 4)
    assert wide == Dimensions(8, 40, 3, 2, 9, 4)
    with pytest.raises(KeyError, match="vocab_size"):
        Dimensions.of({k: v for k, v in inner.items() if k != "vocab_size"}, 4)
    with pytest.raises(KeyError):
        Dimensions.of({**inner, "num_attention_heads": []}, 4)


def test_checkpointing_takes_less_memory() -> None:
    model, batch = Dimensions(4096, 14336, 32, 32, 128256, 2), Extent(4096, 1024, 512, True)
    assert activation_bytes(model, batch, checkpointing=True) < 0.2 * activation_bytes(model, batch)


def test_the_graph_of_checkpointed_layers_is_their_inputs(model: Any) -> None:
    tokens = torch.arange(64)[None]

    def run() -> Tensor:
        found: Tensor = model.model(tokens, use_cache=False).last_hidden_state
        return found

    whole = saved_bytes(model, run)
    with checkpointed(model):
        assert saved_bytes(model, run) < 0.3 * whole
