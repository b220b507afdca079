"""A slice scored by the user's own function."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError, LostModelError, TrialError
from evomerge.evaluator.evaluator import Evaluator, place_candidates
from evomerge.interrupts import listening
from evomerge.scoring.suite import Suite
from evomerge.study.observer import Observer
from evomerge.study.prepare import launched_plan
from evomerge.study.run.manifest import Launch

from ..conftest import Bench, nudge

GOOD = """
from helper import HALF

def score(model, tokenizer, items):
    return [HALF + 0 * len(item["text"]) for item in items]

def weight(model, tokenizer, items):
    total = float(sum(p.sum() for p in model.parameters()))
    return [total + item["n"] for item in items]

def greedy(model, tokenizer, items):
    for item in items:
        item.clear()
    items.append({})
    return [1.0] * (len(items) - 1)

def stateful(model, tokenizer, items):
    import random
    return [random.random() for _ in items]
"""


@pytest.fixture
def own(bench: Bench) -> Bench:
    (bench.folder / "mine.py").write_text(GOOD)
    (bench.folder / "helper.py").write_text("HALF = 0.5\n")
    bench.data("own.jsonl", [{"text": f"item {i}", "n": i} for i in range(20)], bench.folder)
    return bench


def build(bench: Bench, model: Any, tokenizer: Any, python: str, **more: Any) -> Suite:
    fitness = bench.fitness({"s": {"python": python, "data": "own.jsonl", **more}})
    return Suite.build(fitness, model, tokenizer)


def test_it_is_called_with_the_items_of_the_split(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:weight")
    total = float(sum(p.sum() for p in model.parameters()))
    for split in ("search", "holdout", "all"):
        score = suite.score(split)["s"]
        indices = suite.indices("s", split)["own.jsonl"]
        assert [i.score for i in score.items] == pytest.approx([total + n for n in indices], abs=1e-4)
        assert score.value == pytest.approx(total + sum(indices) / len(indices), abs=1e-4)
        assert score.stderr is not None
    before = suite.score()["s"].value
    nudge(model)
    assert suite.score()["s"].value != before


def test_it_may_import_its_neighbours(own: Bench, model: Any, tokenizer: Any) -> None:
    score = build(own, model, tokenizer, "mine:score").score()["s"]
    assert (score.value, score.stderr) == (0.5, 0.0)


def test_lower_may_be_better(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:score", direction="lower")
    assert suite.score()["s"].value == -0.5
    assert suite.info.slices["s"].show(-0.5) == 0.5


def test_what_it_does_to_its_items_does_not_last(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:greedy")
    assert suite.score() == suite.score()
    assert suite.items_digest() == build(own, model, tokenizer, "mine:greedy").items_digest()


def test_its_random_numbers_are_the_same_for_every_candidate(own: Bench, model: Any, tokenizer: Any) -> None:
    suite = build(own, model, tokenizer, "mine:stateful")
    assert suite.score() == suite.score()


def test_slices_over_one_file_share_its_deal(own: Bench, model: Any, tokenizer: Any) -> None:
    slices = {f: {"python": f"mine:{f}", "data": "own.jsonl"} for f in ("score", "weight")}
    suite = Suite.build(own.fitness(slices), model, tokenizer)
    assert suite.indices("score") == suite.indices("weight")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"broken:score returned 1 scores for \d+ items"),
        ("return [1.0] * (len(items) + 1)", r"broken:score returned \d+ scores for \d+ items"),
        ("return []", r"broken:score returned 0 scores for \d+ items"),
        ("return None", "broken:score returned NoneType, expected one number per item"),
        ("return {i['n'] for i in items}", "broken:score returned set, expected one number per item"),
        ("return [[1.0, 2.0] for _ in items]", r"broken:score returned \[1.0, 2.0\] for item 0"),
        ("return [float('inf')] * len(items)", "broken:score returned inf for item 0"),
        ("return [float('nan')] * len(items)", "broken:score returned nan for item 0, not a finite number"),
        ("return ['0.5'] * len(items)", "broken:score returned '0.5' for item 0, not a finite number"),
        ("return [None] * len(items)", "broken:score returned None for item 0"),
        ("return 0.5", "broken:score returned float, expected one number per item"),
        ("raise KeyError('answer')", r"broken:score raised KeyError: 'answer' \(broken.py:2\)"),
        ("raise ValueError('two\\nlines')", r"broken:score raised ValueError: two lines \(broken.py:2\)"),
        ("return (1 / 0 for _ in items)  # raise", "broken:score raised ZeroDivisionError"),
        ("raise SystemExit(3)", r"broken:score raised SystemExit: 3 \(broken.py:2\)"),
        ("raise KeyboardInterrupt", r"broken:score raised KeyboardInterrupt \(broken.py:2\)"),
        ("raise GeneratorExit('x')", r"broken:score raised GeneratorExit: x \(broken.py:2\)"),
        ("raise type('Rude', (BaseException,), {})()", r"broken:score raised Rude \(broken.py:2\)"),
        ("raise type('Mute', (Exception,), {'__str__': None})()", r"broken:score raised Mute \(broken.py:2\)"),
        ("raise ValueError('\\x1b[2J')", r"broken:score raised ValueError: \\x1b\[2J \(broken.py:2\)"),
        ("import itertools; return itertools.count()", r"broken:score returned more scores for \d+ items"),
        ("return [10 ** 400] * len(items)", "broken:score returned 10000.*... for item 0, not a finite number"),
        ("return [1j] * len(items)", "broken:score returned 1j for item 0, not a finite number"),
        ("return [type('Odd', (), {'__float__': 1 .real})()] * len(items)", "broken:score returned <.* for item 0"),
    ],
)
def test_an_unusable_answer_fails_the_trial(
    body: str, message: str, own: Bench, model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (own.folder / "broken.py").write_text(f"def score(model, tokenizer, items):\n    {body}\n")
    suite = build(own, model, tokenizer, "broken:score")
    # A command listens for Ctrl-C, and so can tell it from an interruption that code raises.
    with listening(), caplog.at_level(logging.INFO), pytest.raises(TrialError, match=f"slice s: {message}"):
        suite.score()
    if "raise" in body:
        assert "Traceback" in caplog.text


def test_tensors_and_arrays_are_numbers(own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "arrays.py").write_text(
        "import torch\ndef score(model, tokenizer, items):\n    return torch.ones(len(items))\n"
    )
    assert build(own, model, tokenizer, "arrays:score").score()["s"].value == 1.0


def test_data_that_is_not_jsonl(own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "own.jsonl").write_text('{"text": "a"}\n\n[1]\n')
    with pytest.raises(InputError, match=r"own.jsonl:3: is not a JSON object; write one object a line"):
        build(own, model, tokenizer, "mine:score")
    (own.folder / "own.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(InputError, match=r"own.jsonl:2: is not JSON"):
        build(own, model, tokenizer, "mine:score")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import no_such_module\ndef score(*a): pass\n", "cannot be loaded .ModuleNotFoundError"),
        ("def score(*a): pass\nimport sys; sys.exit(2)\n", r"cannot be loaded \(SystemExit: 2 \(broken.py:2\)\)"),
        ("def score(items): pass\n", r"does not fit: it is called as score\(model, tokenizer, items\)"),
        ("async def score(*a): pass\n", "is a coroutine"),
        ("score = 3\n", "is not callable; name a function"),
    ],
)
def test_code_that_cannot_be_called(code: str, line: str, own: Bench, model: Any, tokenizer: Any) -> None:
    (own.folder / "broken.py").write_text(code)
    with pytest.raises(InputError, match=rf"fitness.yaml:\d+: slices.s.python: broken:score {line}"):
        build(own, model, tokenizer, "broken:score")


def test_data_that_is_no_text_and_clusters_that_are_not_there(own: Bench, model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"slices.s.cluster: an item of .*own.jsonl has no field 'txt'; did you mean"):
        build(own, model, tokenizer, "mine:score", cluster="txt")
    (own.folder / "own.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"own.jsonl: is not UTF-8"):
        build(own, model, tokenizer, "mine:score")


# What it does to the model does not reach the next slice


TWO = """
import torch
def first(model, tokenizer, items):
    {body}
    return [1.0] * len(items)

def second(model, tokenizer, items):
    assert not model.training and not torch.is_grad_enabled()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    size = len(tokenizer(["a b c"]).input_ids[0]) + len(tokenizer)
    size += (tokenizer.padding_side == "left") + bool(tokenizer.pad_token)
    return [float(size + model.lm_head.weight.double().sum() + logits.double().sum())] * len(items)
"""


def pair(bench: Bench, model: Any, tokenizer: Any, body: str) -> Suite:
    (bench.folder / "two.py").write_text(TWO.format(body=body))
    slices = {name: {"python": f"two:{name}", "data": "own.jsonl"} for name in ("first", "second")}
    model.requires_grad_(False)
    return Suite.build(bench.fitness(slices), model, tokenizer)


@pytest.mark.parametrize(
    "body",
    [
        "model.train()",
        "torch.set_grad_enabled(True)",
        "model.requires_grad_(True)",
        "torch.enable_grad().__enter__(); model.requires_grad_(True); model.lm_head.weight.sum().backward()",
        "tokenizer.add_tokens(['<new>'])",
        "model.lm_head.register_forward_hook(lambda module, given, out: out * 0)",
        "model.register_forward_pre_hook(lambda module, given, named: 1 / 0, with_kwargs=True)",
        "torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: out * 0)",
        "model.model.rotary_emb.inv_freq.mul_(2)",
        "tokenizer.pad_token = tokenizer.eos_token; tokenizer.padding_side = 'left'",
        "tokenizer.pad_token = '</s>'; tokenizer(['a b', 'c'], truncation=True, max_length=2, padding=True)",
        "import os; os.chdir('/')",
        "import os; os.environ['HOME'] = 'x'; os.environ['NEW_ONE'] = 'x'",
        "import os; os.umask(0o777)",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import signal; signal.alarm(9)",
        "model.config.use_cache = False; model.config.output_hidden_states = True",
        "model.config.pad_token_id = model.generation_config.pad_token_id = 1",
        "model.set_attn_implementation('eager')",
    ],
)
def test_what_it_switches_is_switched_back(body: str, own: Bench, model: Any, tokenizer: Any) -> None:
    expected = pair(own, model, tokenizer, "pass").score()["second"]
    outside = surroundings()
    assert pair(own, model, tokenizer, body).score()["second"] == expected
    assert torch.is_grad_enabled()
    assert surroundings() == outside


def surroundings() -> tuple[Any, ...]:
    os.umask(rights := os.umask(0))
    signals = signal.getsignal(signal.SIGINT), signal.getitimer(signal.ITIMER_REAL)
    return os.getcwd(), dict(os.environ), rights, *signals


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("model.lm_head.weight.mul_(2)", "lm_head.weight"),
        ("model.lm_head.weight[0, 1] += 1", "lm_head.weight"),
        ("model.model.norm.weight.data.mul_(2)", "model.norm.weight"),
        ("model.lm_head.weight.data.view(-1)[1] += 0.5", "lm_head.weight"),
        ("model.lm_head.weight.detach().numpy()[:] = 0", "lm_head.weight"),
        ("model.half()", "model.embed_tokens.weight"),
        ("model.lm_head.weight = torch.nn.Parameter(torch.zeros(258, 32))", "Linear"),
        ("model.lm_head = torch.nn.Linear(32, 258)", "LlamaForCausalLM"),
        ("model.lm_head.weight.mul_(2); raise KeyError('after')", None),
    ],
)
def test_weights_that_it_changes_fail_the_trial(
    body: str, named: str | None, own: Bench, model: Any, tokenizer: Any
) -> None:
    before = {name: (tensor, tensor.data_ptr(), tensor.dtype) for name, tensor in _state(model).items()}
    message = f"slice first: two:first changed the model's weights \\({named}\\)" if named else "raised KeyError"
    with pytest.raises(TrialError, match=message):
        pair(own, model, tokenizer, body).score()
    # The next candidate is written into the same parameters.
    for name, tensor in _state(model).items():
        kept, memory, dtype = before[name]
        assert (tensor is kept, tensor.data_ptr(), tensor.dtype) == (True, memory, dtype)


def _state(model: Any) -> dict[str, Any]:
    return dict(model.state_dict(keep_vars=True))


def test_asking_the_model_changes_nothing(own: Bench, model: Any, tokenizer: Any) -> None:
    body = "model.generate(torch.ones(1, 2, dtype=torch.long), max_new_tokens=2, do_sample=False)"
    pair(own, model, tokenizer, body).score()


CHANGES = {
    "model.config.num_hidden_layers = 1": r"model.config.num_hidden_layers \(2 -> 1\)",
    "model.config.rope_parameters['rope_theta'] = 5.0": r"model.config.rope_parameters \(\{.*: 10000.0, .* -> .*",
    "del model.config.rms_norm_eps": r"model.config.rms_norm_eps \(1e-06 -> nothing\)",
    "model.config = type(model.config)()": r"LlamaForCausalLM.config \(LlamaConfig .*",
    "model.generation_config.max_new_tokens = 3": r"model.generation_config.max_new_tokens \(None -> 3\)",
    "model.forward = lambda *a, **k: None": r"LlamaForCausalLM.forward \(nothing -> <function .*\)",
    "model.model.layers[0].self_attn.scaling = 0.0": r"LlamaAttention.scaling \(0.35.* -> 0.0\)",
    "model.model.layers[1].mlp.act_fn = torch.nn.Identity()": r"the model's weights \(LlamaMLP\)",
    "type(model.model.layers[1].mlp).forward = lambda self, x: x": "LlamaMLP.forward, a method",
    "type(model).__call__ = lambda self, **named: 1 / 0": "LlamaForCausalLM.__call__, a method",
    "torch.nn.functional.silu = torch.relu": "torch.nn.functional.silu, a function",
    "torch.Tensor.matmul = torch.Tensor.add": "Tensor.matmul, a method",
    "import sys; sys.modules[type(model).__module__].apply_rotary_pos_emb = lambda q, k, *a: (q, k)": (
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb, a function"
    ),
    "torch.set_default_dtype(torch.float64)": r"torch's default dtype \(torch.float32 -> torch.float64\)",
    "torch.set_default_device('meta')": r"torch's default device \(None -> meta\)",
    "torch.set_float32_matmul_precision('medium')": r"torch's float32 matmul precision \(highest -> medium\)",
    "torch.set_num_threads(torch.get_num_threads() + 1)": r"torch's number of threads \(\d+ -> \d+\)",
    "torch.use_deterministic_algorithms(True)": r"torch's deterministic algorithms \(.*\)",
    "torch.autocast('cpu').__enter__()": r"torch's autocast \(.*\)",
}
"""What a scorer changes, and how the message names it."""


@pytest.mark.parametrize("body", CHANGES)
def test_what_other_slices_depend_on_fails_the_trial_and_is_put_back(
    body: str, own: Bench, model: Any, tokenizer: Any
) -> None:
    expected = pair(own, model, tokenizer, "pass").score()["second"]
    suite = pair(own, model, tokenizer, body)
    for _ in range(2):  # the second time it is as the first time
        with pytest.raises(TrialError, match=f"^slice first: two:first changed {CHANGES[body]}$"):
            suite.score()
    first = {"first": frozenset[str](), "second": frozenset(suite.info.slices["second"].items)}
    assert suite.score(items=first)["second"] == expected


def test_a_model_that_cannot_be_put_right_ends_the_study(own: Bench, tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=258, **sizes)).eval()
    body = "model.lm_head.weight.untyped_storage().resize_(0)"
    with pytest.raises(LostModelError, match=r"^two:first left the model so that it cannot be put right .*lm_head"):
        pair(own, model, tokenizer, body).score()


NOTES = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, {}

    def forward(self, x):
        self.calls += 1
        self.seen[self.calls] = self.last = x
        return x

def score(model, tokenizer, items):
    model(torch.ones(1))
    return [1.0] * len(items)
"""


def test_a_users_model_may_take_notes(own: Bench) -> None:
    (own.folder / "notes.py").write_text(NOTES)
    namespace: dict[str, Any] = {}
    exec(NOTES, namespace)
    model = namespace["Model"]()
    build(own, model, None, "notes:score").score()
    assert (model.calls, model.seen, hasattr(model, "last")) == (0, {}, False)


# In a search


FLAKY = """
import torch
print("loaded")

def score(model, tokenizer, items):
    print("called")
    value = float(model.lm_head.weight.double().mean())
    if all(abs(value - known) > 1e-9 for known in {parents}) and value < {limit}:
        raise RuntimeError("too small")
    return [value] * len(items)
"""


@pytest.fixture
def flaky(tiny_study: Callable[..., Path]) -> Path:
    """A study with a callable slice that fails for some of the candidates only."""
    from safetensors.torch import load_file

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"] = {"own": {"python": "flaky:score", "data": "own.jsonl"}}

    space = tiny_study(change)
    means = [
        float(load_file(space.parent / f"models/{name}/model.safetensors")["lm_head.weight"].double().mean())
        for name in ("base", "one", "two")
    ]
    (space.parent / "flaky.py").write_text(FLAKY.format(parents=means, limit=means[2]))
    (space.parent / "own.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(20)))
    return space


@pytest.mark.slow
def test_a_search_goes_on_and_keeps_the_traceback_in_its_log(flaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["search", "space.yaml", "--trials", "16", "--json"])
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert code in (0, 1)
    assert "Traceback" not in printed.err
    assert {"loaded", "called"} <= set(printed.err.splitlines())
    failed = [t for t in evomerge.status("space").search.trials if t.state == "failed"]
    assert 0 < len(failed) < 13
    reason = "slice own: flaky:score raised RuntimeError: too small (flaky.py:9)"
    assert all(t.reason == reason for t in failed)
    assert printed.err.count(f"failed: {reason} | ") == len(failed)
    log = (flaky.parent / "runs/space/search.log").read_text()
    assert log.count("Traceback (most recent call last)") == len(failed)
    assert 'raise RuntimeError("too small")' in log


def test_an_evaluation_says_it_in_one_line(flaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flaky.parent / "flaky.py").write_text("def score(model, tokenizer, items):\n    return [0.0]\n")
    assert main(["evaluate", "models/one", "--fitness", "fitness.yaml"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "error: slice own: flaky:score returned 1 scores for 11 items"
    (flaky.parent / "flaky.py").write_text("def score(model, tokenizer, items):\n    return [1 / 0]\n")
    assert main(["evaluate", "models/one", "--fitness", "fitness.yaml"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "error: slice own: flaky:score raised ZeroDivisionError: division by zero (flaky.py:2)"
    assert not any("Traceback" in line for line in told)


def test_weights_that_one_evaluation_changed_are_written_again(flaky: Path) -> None:
    """The recipe in hand is not merged anew for its holdout scores, unless somebody touched it."""
    code = "def score(model, tokenizer, items):\n    {}return [float(model.lm_head.weight.sum())] * len(items)\n"
    script = flaky.parent / "flaky.py"
    script.write_text(code.format(""))
    launch = Launch(space=str(flaky), folder=str(flaky.parent))
    plan = launched_plan(launch)
    placement = place_candidates(plan.models, plan.fitness, "cpu", None)
    clean = Evaluator.load(plan.models, plan.fitness, placement, Observer())
    recipe = plan.space.uniform()
    expected = clean.evaluate(recipe, "search", str)
    touched = "import os\n    if os.path.exists('touch'): model.lm_head.weight.mul_(2)\n    "
    script.write_text(code.format(touched))
    placement = place_candidates(plan.models, plan.fitness, "cpu", None)
    bench = Evaluator.load(plan.models, plan.fitness, placement, Observer())
    Path("touch").touch()
    with pytest.raises(TrialError, match="changed the model's weights"):
        bench.evaluate(recipe, "search", str)
    Path("touch").unlink()
    found = bench.evaluate(recipe, "search", str)
    assert (found.scores, found.digest) == (expected.scores, expected.digest)
