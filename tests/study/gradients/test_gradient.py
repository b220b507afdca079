"""Searches along the gradient, end to end: slopes are right, recorded, resumed; what has none is refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.evaluator.evaluator import Evaluator
from evomerge.study.after.status import status
from evomerge.study.prepare import launched_plan
from evomerge.study.run.manifest import Launch
from evomerge.types import Genome
from tests.faults import dying
from tests.scoring.conftest import Bench

from ...conftest import save_tiny

Study = Callable[..., Path]
FACTS = ("number", "label", "state", "genome", "scores", "objective", "evaluated", "digest", "slopes")


def along(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """A dozen steps and a little more, over one weight for each tensor."""
    space["genes"] = {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources", "tensors"]}}
    space["optimizer"] = {"name": "gradient", "steps": 12, "seed": 3}
    space["budget"] = {"trials": 14}


def started(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """A start along the gradient, which ends soon, then a search."""
    along(space, fitness)
    space["optimizer"] = {"name": "surrogate", "warm_start": "gradient", "seed": 3}
    space["budget"] = {"trials": 32}


def facts(run: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(t, name) for name in FACTS) for t in status(run).search.trials]


# Slopes


def surrogates(space: Path, genome: Genome, bench: Evaluator, plan: Any) -> dict[str, float]:
    recipe = plan.space.recipe(genome)
    names = {name: frozenset(piece.items) for name, piece in bench.suite.info.slices.items()}
    return {name: bench.proxy_loss(recipe, name, items, items, ())[0] for name, items in names.items()}


SPACES: dict[str, dict[str, Any]] = {
    "per tensor": {"weight": {"low": -1.0, "high": 1.0, "per": ["sources", "tensors"]}},
    "per layer, with lambda": {
        "weight": {"low": -1.0, "high": 1.0, "per": ["sources", "layers", "modules"]},
        "lambda": {"low": 0.5, "high": 1.5, "per": ["layers"]},
    },
    "between knots": {"weight": {"low": -1.0, "high": 1.0, "per": ["sources", "layers"]}},
}
METHODS = {
    "task_arithmetic": {},
    "linear": {"normalize": True},
    "dare_linear": {"density": 0.7},
    "dare_ties": {"density": 0.7},
    "ties": {"density": 0.5, "normalize": True},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("axes", "tied"), [*((axes, False) for axes in SPACES), ("per tensor", True)])
def test_slopes_are_the_differences_of_the_surrogate(
    tiny_study: Study, tmp_path: Path, method: str, axes: str, tied: bool
) -> None:
    """By what a study records of a trial, against the surrogates of genomes beside it, in float32."""
    if tied:
        for number, name in enumerate(("base", "one", "two")):
            near = {"near": tmp_path / "tied" / "base", "scale": 0.2} if number else {"tie_word_embeddings": True}
            save_tiny(tmp_path / "tied" / name, number + 1, **near)

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        genes = {name: gene for name, gene in SPACES[axes].items() if name != "lambda" or method != "linear"}
        space["genes"] = {"method": method, **genes}
        space["fixed"] = METHODS[method]
        space["modules"] = {"mlp": "mlp"}
        space["interpolate"] = axes == "between knots"
        space["optimizer"] = {"name": "gradient", "steps": 2}
        space["budget"] = {"trials": 5}
        fitness["pruning"] = False
        if tied:
            space["base"] = "tied/base"
            space["sources"] = {name: f"tied/{name}" for name in ("one", "two")}

    file = tiny_study(change)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evomerge.optimize.gradient.Gradient._beginning", lambda self: drawn(self.dimensions))
        evomerge.search(file)
    trial = next(t for t in status("space").search.trials if t.slopes)
    plan = launched_plan(Launch(str(file)))
    from evomerge.evaluator.evaluator import place_candidates
    from evomerge.study.observer import Observer

    placement = place_candidates(plan.models, plan.fitness, "cpu", None)
    bench = Evaluator.load(plan.models, plan.fitness, placement, Observer())
    bench.resident.most_kept = 0  # masks are replayed as a candidate is merged
    steered = {name: frozenset(i for i in piece.items) for name, piece in bench.suite.info.slices.items()}
    recorded = _slopes_on(bench, plan, trial.genome, steered)
    chosen = list(trial.genome)[:: max(1, len(trial.genome) // 4)]
    largest = {name: max(map(abs, recorded[name].values())) for name in recorded}
    for key in chosen:

        def at(by: float, key: str = key) -> dict[str, float]:
            return surrogates(file, {**trial.genome, key: float(trial.genome[key]) + by}, bench, plan)

        step = 0.003  # of fourth order, as float32 needs large steps
        with held_choices(bench, plan.space.recipe(trial.genome)):
            far, near = [at(2 * step), at(-2 * step)], [at(step), at(-step)]
        for name in recorded:
            slope = (8 * (near[0][name] - near[1][name]) - (far[0][name] - far[1][name])) / (12 * step)
            assert recorded[name][key] == pytest.approx(slope, rel=1e-3, abs=1e-3 * largest[name])


@contextmanager
def held_choices(bench: Evaluator, recipe: Any) -> Iterator[None]:
    """Merges decide every comparison as they do for `recipe`: which elements are kept, which signs are elected."""
    from evomerge.merging.kernels import elementwise as kernels

    holds, decided = kernels.holds, []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "holds", lambda *about: decided.append(holds(*about)) or decided[-1])
        bench._holds = None
        bench.materialized(recipe)
        replayed = itertools.cycle(decided) if decided else None
        patched.setattr(kernels, "holds", lambda *about: next(replayed))
        yield
    bench._holds = None


def drawn(dimensions: Any) -> Genome:
    import random

    rng = random.Random(7)
    return {d.key: d.tidy(rng.uniform(0.2, 0.8)) for d in dimensions}


def _slopes_on(bench: Evaluator, plan: Any, genome: Genome, items: Any) -> dict[str, dict[str, float]]:
    """As `TrialGradients` finds them, on the given items."""
    from evomerge.study.gradients.trial_gradients import TrialGradients

    steering = TrialGradients.__new__(TrialGradients)
    steering._space = plan.space
    steering._genes = [d.key for d in plan.space.dimensions]
    steering._of_sources = {"weight"}
    recipe, found = plan.space.recipe(genome), {}
    for name, chosen in items.items():
        _, _, pulled = bench.proxy_loss(recipe, name, chosen, chosen, tuple(plan.space.models.tensors))
        found[name] = dict(zip(steering._genes, steering._by_gene(pulled), strict=True))
    return found


def test_every_step_is_a_trial_with_its_slopes(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(tiny_study(along)), "--json"]) in (0, 1)
    data = json.loads(capsys.readouterr().out)
    steps = [t for t in status("space").search.trials if t.kind == "search"]
    assert len(steps) > 5
    dimensions = len(steps[0].genome)
    for trial in steps:
        assert trial.slopes is not None
        assert trial.seconds["slopes"] > 0
        for about in trial.slopes.values():
            assert len(about["slopes"]) == dimensions
            assert any(about["slopes"])
    first, last = (sum(about["loss"] for about in t.slopes.values()) for t in (steps[0], steps[-1]) if t.slopes)
    assert last < first
    gained = data["gradient"]
    assert gained["from_trial"] == steps[0].number
    assert {part["source"] for part in gained["parts"]} == {"one", "two"}
    assert {part["where"] for part in gained["parts"]} == {"layer 0", "layer 1", "outside of the layers"}
    assert main(["status", "space"]) == 0
    assert "What the gradient gained" in capsys.readouterr().out


def test_the_parts_of_the_gain_add_up(tiny_study: Study) -> None:
    """Where the metric is its own surrogate on nearly the same items."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        along(space, fitness)
        space["optimizer"]["rate"] = 0.02
        task = yaml.safe_load(Path("tasks/tiny_a.yaml").read_text())
        task |= {"task": "tiny_text", "output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}"}
        task |= {"doc_to_text": "", "metric_list": [{"metric": "bits_per_byte"}]}
        del task["doc_to_choice"]
        Path("tasks/tiny_text.yaml").write_text(yaml.safe_dump(task))
        fitness["slices"] = {"text": {"task": "tiny_text", "metric": "bits_per_byte"}}
        fitness["pruning"] = False

    result = evomerge.search(tiny_study(change))
    assert result.gained is not None
    before, after = result.gained.objective
    assert after > before
    assert sum(result.gained.parts.values()) == pytest.approx(after - before, rel=0.35)


# Resume


@pytest.mark.slow
@pytest.mark.parametrize("change", [along, started])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not(tiny_study: Study, change: Any) -> None:
    from evomerge.study.run.store import Store

    space = tiny_study(change)
    evomerge.search(space, run="whole")
    whole = facts("whole")
    steps = sum(fact[-1] is not None for fact in whole)
    assert steps > 5
    for name, after in (("note_slopes", 1), ("note_slopes", steps - 1), ("end", 6), ("start", steps + 3)):
        with pytest.MonkeyPatch.context() as patched:
            called, original = [0], getattr(Store, name)

            def then_die(self: Any, *about: Any, **more: Any) -> Any:
                done = original(self, *about, **more)  # noqa: B023
                called[0] += 1  # noqa: B023
                if called[0] == after:  # noqa: B023
                    raise KeyboardInterrupt
                return done

            patched.setattr(Store, name, then_die)
            with pytest.raises(KeyboardInterrupt):
                evomerge.search(space, run=f"{name}{after}")
        evomerge.resume(f"{name}{after}")
        assert facts(f"{name}{after}") == whole, (name, after)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another number of threads may round otherwise, and other processes have theirs."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_process_killed_in_its_steps_is_resumed(tiny_study: Study, one_thread: None) -> None:
    space = tiny_study(along)
    evomerge.search(space, run="whole")
    command = [sys.executable, "-m", "evomerge", "search", str(space), "--run", "killed"]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    journal, seen = Path("runs/killed/study.journal"), 0
    while process.poll() is None and seen < 6:
        seen = journal.read_text().count('"loss"') if journal.exists() else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    evomerge.resume("killed")
    assert facts("killed") == facts("whole")


@pytest.mark.slow
def test_workers_share_the_slices(tiny_study: Study, one_thread: None) -> None:
    space = tiny_study(along)
    alone, two = (evomerge.search(space, run=f"w{n}", workers=n) for n in (1, 2))
    assert [t.genome for t in two.search.trials] == [t.genome for t in alone.search.trials]
    assert [t.slopes for t in two.search.trials] == [t.slopes for t in alone.search.trials]


# Slices that steps cannot follow, and what is refused


def slice_of_code(fitness: dict[str, Any], **about: Any) -> None:
    Path("mine.py").write_text("def score(model, tokenizer, items):\n    return [0.5 for _ in items]\n")
    Path("items.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(20)))
    fitness["slices"]["mine"] = {"python": "mine.py:score", "data": "items.jsonl", **about}


@pytest.mark.parametrize("optimizer", [along, started])
def test_slices_without_slopes_keep_their_floors(tiny_study: Study, optimizer: Any) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        optimizer(space, fitness)
        space["budget"] = {"trials": 10}
        slice_of_code(fitness, floor=0.6, weight=0 if optimizer is along else 1)

    result = evomerge.search(tiny_study(change))
    trials = [t for t in result.search.trials if t.kind == "search"]
    assert trials
    assert not any(result.search.outcome(t).feasible for t in trials)
    assert all("mine" not in (t.slopes or {}) for t in trials)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_steps_are_scored_on_all_items(tiny_study: Study, asynchronous: bool) -> None:
    """Their margins steer, and those of one that was stopped are predicted."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        along(space, fitness)
        space["optimizer"]["asynchronous"] = asynchronous
        fitness["slices"]["a"]["floor"] = 1.0  # out of reach after a few items
        fitness["pruning"] = True

    steps = [t for t in evomerge.search(tiny_study(change)).search.trials if t.slopes]
    assert len(steps) > 5
    assert {(t.state, t.evaluated) for t in steps} == {("complete", steps[0].items)}


def refused(study: Study, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    with pytest.raises(InputError) as caught:
        evomerge.search(study(change))
    assert not Path("runs/space").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (
            {"method": "multislerp"},
            "genes.method: multislerp gives no slopes for its parameters; use another optimizer, or",
        ),
        (
            {"method": "ties", "density": {"low": 0.1, "high": 1.0}},
            "density only chooses elements, and has no slope for gradient to follow; fix it",
        ),
        ({"method": {"choices": ["ties", "linear"]}}, "method is a choice, and gradient takes numbers only"),
    ],
)
def test_methods_and_genes_without_slopes_are_refused(tiny_study: Study, genes: dict[str, Any], message: str) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        along(space, fitness)
        weight = {"low": 0.1, "high": 1.0, "per": ["sources"]}
        space["genes"] = {"weight": weight, **genes}

    assert message in refused(tiny_study, change)


def test_slices_without_slopes_are_refused(tiny_study: Study) -> None:
    def counting(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        along(space, fitness)
        slice_of_code(fitness)

    message = refused(tiny_study, counting)
    assert "fitness.yaml:" in message
    assert "slice mine is scored by a Python function, which has no slope for gradient to follow; give it" in message


def test_where_no_slice_has_slopes_nothing_can_begin_along_them(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        started(space, fitness)
        fitness["slices"] = {}
        slice_of_code(fitness)

    assert "which has no slope for surrogate to follow; add a slice of texts" in refused(tiny_study, change)


@pytest.mark.slow
def test_a_density_is_held_during_the_steps_and_searched_after_them(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        started(space, fitness)
        space["genes"] |= {"method": "ties", "density": {"low": 0.2, "high": 0.9, "init": 0.5}}
        space["budget"] = {"trials": 54}

    result = evomerge.search(tiny_study(change))
    trials = [t for t in result.search.trials if t.kind == "search"]
    steps = [t for t in trials if t.slopes]
    assert len({t.genome["density"] for t in steps}) == 1
    assert len({t.genome["density"] for t in trials if not t.slopes}) > 2


# Generated answers


def written(tmp_path: Path) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        along(space, fitness)
        Bench(tmp_path).write()
        fitness["slices"] = {"s": {"task": "write", "metric": "exact_match,first"}}
        space["optimizer"]["steps"] = 4
        space["budget"] = {"trials": 8}

    return change


def test_generated_answers_are_followed_to_the_best_sources(tiny_study: Study, tmp_path: Path) -> None:
    space = tiny_study(written(tmp_path))
    result = evomerge.search(space, run="whole")
    steps = [trial for trial in result.search.trials if trial.slopes is not None]
    assert len(steps) == 4
    losses = [trial.slopes["s"]["loss"] for trial in steps if trial.slopes]
    assert losses[-1] < losses[0], "towards what the best source writes"
    with dying(6), pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts")
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")


@pytest.mark.slow
def test_workers_learn_the_same_answers(tiny_study: Study, tmp_path: Path, one_thread: None) -> None:
    space = tiny_study(written(tmp_path))
    evomerge.search(space, run="one")
    evomerge.search(space, run="two", workers=2, device="cpu")
    assert facts("two") == facts("one")
