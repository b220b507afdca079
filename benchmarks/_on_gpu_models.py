"""The stages of `on_gpu.py` that merge models: their weights are drawn, their tasks written here."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from _candidates import candidate
from _drawn import drawn, fitting, shape, size
from _evomerge_worker import Evomerge
from _on_gpu_options import Meter, Options, say
from _results import Row
from _score_tasks import TASKS, VOCABULARY, write_tasks
from _score_tasks import write_tokenizer as write_words
from _score_worker import Harness, recorded
from _synthetic import write_tokenizer
from score import CLOSE, compare

from evomerge.evaluator.device import host_memory
from evomerge.evaluator.evaluator import Evaluator
from evomerge.files.fitness_file import read_fitness
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.suite import Suite
from evomerge.types import SplitName

_METHODS, _SOURCES = ("ties", "dare_ties", "linear", "slerp"), 3
_REPEATS, _WARM = 5, 6.0  # candidates that count, and seconds of those before them
_SETTLED = 0.1  # seconds: to wait for fewer is to find that nothing is being compiled
_PLACED = 0.7  # of the free memory: the planner leaves a fifth for evaluation
_BATCH = 16
_TIES = 0.05
"""The share of texts that may differ in float32: of two words that are equally likely but for rounding, either may
come, and another text then follows."""


def _scaled(config: dict[str, Any], models: float, meter: Meter) -> dict[str, Any]:
    """The configuration, with fewer layers where so many models do not fit, which is said."""
    found = fitting(config, models, int(_PLACED * meter.free()))
    # What is known of the sources is in host memory: a table takes up to a quarter of its source
    found = fitting(found, models / 4 + 1, int(_PLACED * host_memory().free))
    left, whole = found["num_hidden_layers"], config["num_hidden_layers"]
    millions = size(found) / 2e6
    say(f"model: {millions:,.1f} M parameters in bfloat16, width {found['hidden_size']}, {left} layers")
    if left < whole:
        say(f"SCALED DOWN: {whole} layers of this shape do not fit in the memory that is free; {left} do")
    return found


def materialize(options: Options) -> bool:
    """Candidates of four methods against copies of the models that they read."""
    whole = shape(128, 352, 2, 2, 2, 512) if options.toy else shape(4096, 11008, 32, 32, 32, 32_000)
    config = _scaled(whole, _SOURCES + 2, Meter(options.device))
    opened = drawn(options.work, config, _SOURCES, options.device, write_tokenizer)
    ours = Evomerge(options.device, opened)
    say(f"a base and {_SOURCES} sources drawn, the resident model loaded: {ours.load_seconds:.1f} s")
    for topic, line in ours.placement.facts().items():
        say(f"{topic}: {line}")
    held = [_timed(method, ours, list(opened), options) for method in _METHODS]
    return all(held)


def _timed(method: str, ours: Evomerge, references: Sequence[str], options: Options) -> bool:
    """One method: first candidate, steady state, copy. Whether one recipe gives one digest."""
    meter, resident = Meter(options.device), ours.resident
    base, *others = map(Path, references)
    tried, parameters = candidate(method, 0, base, others), resident.model.state_dict()
    row = Row(method, tried.models, tried.varies, sum(t.nbytes for t in parameters.values()))

    def merged(number: int) -> float:
        answer = ours.answer({"recipe": candidate(method, number, base, others).text})
        row.digests.append(answer["digest_seconds"])
        return float(answer["seconds"])

    def copy() -> None:
        for reference in references[: row.models]:
            for name, tensor in parameters.items():
                tensor.copy_(resident.bank.tensor(reference, name))

    meter.time(copy)
    meter.forget()
    row.first = merged(0)
    plain = resident.digest()
    say(f"{method}: first candidate {row.first:.4f} s")
    while sum(row.warm) < (_WARM / 20 if options.toy else _WARM):
        row.warm.append(merged(-1 - len(row.warm)))
    say(f"{method}: {median(row.warm):.4f} s a candidate while kernels are being compiled ({len(row.warm)} candidates)")
    row.waited = ours.answer({"settle": True})["seconds"]
    merged(-1)  # takes what was compiled into use, and may ask for more
    while ours.answer({"settle": True})["seconds"] > _SETTLED:
        merged(-1)
    for number in range(1, _REPEATS + 1):
        row.ours.append(merged(number))
        row.copies.append(meter.time(copy)[0])
    say(
        f"{method}: steady state {row.steady:.4f} s, copy of the same {row.models} models {row.copy:.4f} s: "
        f"{row.copies_long:.2f} x the copy, and the first candidate {row.first / row.steady:.1f} x a later one"
    )
    say(
        f"{method}: {row.bandwidth / 1e9:.1f} GB/s, copy {row.copy_bandwidth / 1e9:.1f} GB/s; the digest is "
        f"{median(row.digests):.4f} s of each; medians of {_REPEATS}, after {len(row.warm)} to warm up and "
        f"{row.waited:.1f} s for the compiler; peak {meter.peak()}"
    )
    again = [resident.materialize(parse_recipe(tried.text)) for _ in range(2)]
    same, stayed = again[0] == again[1], plain == again[0]
    say(
        f"{method}: one recipe twice has {'equal digests' if same else 'OTHER DIGESTS'}; in plain torch, before "
        f"anything was compiled, it had {'the same one' if stayed else 'another one'}"
    )
    return same


def _scored(
    options: Options, dtype: str, slices: Sequence[str], split: SplitName
) -> tuple[Evaluator, Callable[[int], Recipe], Path]:
    """An evaluator of merges of a base and two sources of 1 B by lm-eval tasks, the recipe of a number, and the folder
    of the tasks."""
    whole = shape(64, 128, 2, 2, 1, VOCABULARY) if options.toy else shape(2048, 8192, 16, 32, 8, VOCABULARY)
    meter, work = Meter(options.device), options.work / dtype
    # The resident model, three that are stored, and as much again to score with
    config = _scaled(whole, 6 if dtype == "bfloat16" else 8, meter)
    opened = drawn(work, config, 2, options.device, write_words)
    write_tasks(work / "tasks", 0.25 if options.toy else 1.0, _BATCH)
    fitness = work / "fitness.yaml"
    asked = {task: {"task": task, "metric": TASKS[task]} for task in slices}
    fitness.write_text(yaml.safe_dump({"include": ["tasks"], "batch_size": _BATCH, "slices": asked}))
    ours = Evomerge(options.device, opened, dtype)
    model, tokenizer = ours.resident.model, ours.resident.tokenizer
    seconds, suite = meter.time(lambda: Suite.build(read_fitness(fitness), model, tokenizer, split))
    say(f"{dtype}: models drawn and loaded in {ours.load_seconds:.1f} s, tasks built in {seconds:.1f} s")
    base, *others = map(Path, opened)

    def recipe(number: int) -> Recipe:
        return parse_recipe(candidate("ties", number, base, others).text)

    return Evaluator(ours.resident, suite), recipe, work / "tasks"


def generation(options: Options) -> bool:
    """A generation of candidates, scored here and by lm-eval's HFLM on the same weights."""
    held = []
    for dtype in ("float32", "bfloat16"):
        held.append(_compared(options, dtype, ("choice", "generation")))
        gc.collect()  # the models of one dtype are gone before those of the next are there
    return all(held)


def _compared(options: Options, dtype: str, slices: Sequence[str]) -> bool:
    """Scores and seconds of both. In float32 scores and loglikelihoods are to be equal, and texts but for ties."""
    evaluator, recipe, tasks = _scored(options, dtype, slices, "all")
    meter, resident, suite = Meter(options.device), evaluator.resident, evaluator.suite
    score, theirs = Harness(resident.model, resident.tokenizer, tasks, _BATCH).prepare(*slices)
    sources: dict[str, Any] = {name: suite.slices[name].source for name in slices}
    mine = {name: source.tasks.leaves[name] for name, source in sources.items()}
    times, right = [], True
    for number in range(2 if options.toy else 5):
        with contextlib.ExitStack() as stack:
            found = [{n: stack.enter_context(recorded(side[n])) for n in slices} for side in (mine, theirs)]
            meter.forget()
            here, scored = meter.time(lambda at=number: evaluator.evaluate(recipe(at), "all", lambda _: None))
            say(f"{dtype} candidate {number}: {here:.2f} s, {scored.seconds['materialize']:.2f} s of them to "
                f"materialize; peak {meter.peak()}")  # fmt: skip
            meter.forget()
            there, results = meter.time(score)
        other = {n: float(results["results"][n][f"{TASKS[n]},none"]) for n in slices}
        equal = all(math.isclose(scored.scores[n].value, other[n], abs_tol=1e-9) for n in slices)
        apart = [compare(found[0][n], found[1][n]) for n in slices]
        furthest, texts = max(a for a, _ in apart), sum(count for _, count in apart)
        say(f"{dtype} candidate {number}: HFLM {there:.2f} s; "
            f"{'equal scores' if equal else f'OTHER SCORES ({_listed(scored.scores, other)})'}, loglikelihoods at most "
            f"{furthest:.1e} apart, {texts} texts differ; its peak {meter.peak()}")  # fmt: skip
        right &= dtype != "float32" or (equal and furthest <= CLOSE and texts <= _TIES * len(found[0][slices[-1]]))
        times.append((here, there))
    ours, harness = (median(column) for column in zip(*times[1:], strict=True))
    say(f"{dtype}: {ours:.2f} s a candidate, HFLM {harness:.2f} s, {harness / ours:.2f} x as long (medians without the "
        "first)")  # fmt: skip
    return right


def _listed(scores: Mapping[str, Any], other: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {scores[name].value:.4f}, HFLM {value:.4f}" for name, value in other.items())


def gradient(options: Options) -> bool:
    """Gradient steps of a merge's coefficients: one slope for each parameter of each tensor. They are to be finite, and
    not all zero."""
    meter, times, right = Meter(options.device), [], True
    evaluator, recipe, _ = _scored(options, "bfloat16", ("choice",), "search")
    asked = evaluator.suite.info.slices["choice"].items
    tensors = tuple(evaluator.resident.bank.checkpoints[0].tensors)
    items, checked = frozenset(asked), frozenset(asked[:1])
    for number in range(2 if options.toy else 4):
        evaluator.materialized(recipe(number))
        meter.forget()
        seconds, (loss, _, slopes) = meter.time(
            lambda at=number: evaluator.proxy_loss(recipe(at), "choice", items, checked, tensors)
        )
        values = [v for own in slopes.values() for part in own.values() for v in part]
        sound = math.isfinite(loss) and all(map(math.isfinite, values)) and any(values)
        right &= sound
        said = f"{len(values)} slopes{'' if sound else ', NOT FINITE OR ALL ZERO'}; peak {meter.peak()}"
        say(f"step {number}: {seconds:.3f} s on {len(items)} items of 4 choices, loss {loss:.4f}, {said}")
        times.append(seconds)
    say(f"a gradient step takes {median(times[1:]):.3f} s (median without the first)")
    return right
