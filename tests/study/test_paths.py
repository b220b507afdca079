"""Searches of paths through layers: references, limits, resume, export, and another run's winner as a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest
from tests.conftest import save_tiny
from tests.faults import dying

from .test_tokenizers import extend

Study = Callable[..., Path]
Changes = dict[str, Any]
LAYERS = {"base": 4, "one": 4, "deep": 6}
WEIGHTS = {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers"]}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base of four layers, a fine-tune of it, and a model of six layers."""
    root = tmp_path_factory.mktemp("deeper")
    save_tiny(root / "base", 1, num_hidden_layers=4)
    save_tiny(root / "one", 2, near=root / "base", scale=0.2)
    save_tiny(root / "deep", 4, num_hidden_layers=6)
    return {name: str(root / name) for name in LAYERS}


SPACES: dict[str, Changes] = {
    "slots": {"sources": ["one", "deep"], "path": ["base", "deep"], "max_layers": 6},
    "twice": {"sources": ["one", "deep"], "path": ["one", "base"], "repeats": 2, "scales": "shared"},
    "blocks": {"sources": ["one", "deep"], "path": ["one", "deep"], "blocks": 3, "scales": "shared"},
    "pruning": {"sources": [], "path": ["base"], "max_layers": 3},
    "both": {"space": "both", "sources": ["one"], "genes": WEIGHTS, "blocks": 2, "max_layers": 5},
}


@pytest.fixture
def study(tiny_study: Study, models: dict[str, str]) -> Study:
    """Writes a space of paths; `changes` are keys of it."""

    def make(**changes: Any) -> Path:
        def change(space: Changes, fitness: Changes) -> None:
            del space["layers"], space["genes"]
            wanted = {"space": "dataflow", **changes}
            names = wanted.pop("sources")
            space |= {"base": models["base"], "sources": {name: models[name] for name in names}, **wanted}
            space["optimizer"] = changes.get("optimizer", {"name": "cma-es", "seed": 3, "population": 4})
            space["budget"] = {"trials": 10}
            fitness["slices"]["b"]["floor"] = {"of": "base", "margin": 1.0}

        return tiny_study(change)

    return make


def facts(run: str) -> list[tuple[Any, ...]]:
    trials = evomerge.status(run).search.trials
    return [(t.number, t.kind, t.label, t.genome, t.recipe_id, t.digest, dict(t.scores), t.state) for t in trials]


@pytest.mark.parametrize("name", SPACES)
def test_a_search_scores_its_parents_and_exports_what_it_scored(name: str, study: Study, tmp_path: Path) -> None:
    result = evomerge.search(study(**SPACES[name]))
    trials = result.search.trials
    references = ["base", *SPACES[name]["sources"], *(["uniform"] if name == "both" else [])]
    assert [t.label for t in trials if t.kind == "reference"] == references
    assert len(trials) == 10
    assert all(t.state in ("complete", "pruned") and t.digest for t in trials)
    assert len({t.recipe_id for t in trials}) > 4
    best = max((t for t in trials if t.genome and len(t.recipe.output.slices) > 1), key=lambda t: t.objective or 0.0)
    evomerge.export("space", "best.yaml", trial=best.number, allow_infeasible=True)
    folder = evomerge.merge("best.yaml", "merged")
    assert checkpoint_digest(folder) == best.digest
    merged = Checkpoint.open(str(folder))
    flow = result.winner  # a winner keeps the floors of items that the search has not seen
    assert flow is None or all(v.passed for v in result.holdout.verdicts(flow))
    assert 2 <= merged.layers <= SPACES[name].get("max_layers", 8)
    scored = evomerge.evaluate(
        "best.yaml", "fitness.yaml", split="search", references={"base": trials[0].recipe.models()[0]}
    )
    assert {n: s.value for n, s in scored.scores.items()} == pytest.approx(dict(best.scores))


@pytest.mark.parametrize("name", SPACES)
def test_a_killed_search_goes_on_as_if_nothing_had_been(name: str, study: Study) -> None:
    space = study(**SPACES[name])
    evomerge.search(space, run="whole")
    with dying(6), pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts")
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")


def test_the_start_takes_the_scores_of_the_first_model(study: Study) -> None:
    trials = evomerge.search(study(**SPACES["slots"]), trials=5).search.trials
    first = next(t for t in trials if t.genome)
    assert first.duplicate_of == 0
    assert (first.digest, first.scores) == (trials[0].digest, trials[0].scores)


def test_a_stack_is_made_of_its_models_layers(study: Study, models: dict[str, str]) -> None:
    """Every tensor is one of a model's, but for the scaled output projections."""
    trials = evomerge.search(study(**SPACES["slots"], optimizer={"name": "random", "seed": 1}), trials=6).search.trials
    trial = next(t for t in trials if len(t.recipe.models()) == 2)
    evomerge.export("space", "stack.yaml", trial=trial.number, allow_infeasible=True)
    tensors = load_file(evomerge.merge("stack.yaml", "stack") / "model.safetensors")
    parents = {name: load_file(f"{models[name]}/model.safetensors") for name in LAYERS}
    at, named = 0, {path: name for name, path in models.items()}
    for slice_ in trial.recipe.output.slices:
        (one,) = slice_.inputs
        scale = one.parameters["scale"][0]["value"] if one.parameters else 1.0
        for layer in range(*(one.layers or (0, 0))):
            for part, stacked in ((n.split(".", 3)[3], t) for n, t in tensors.items() if f"layers.{at}." in n):
                source = parents[named[one.model]][f"model.layers.{layer}.{part}"]
                wanted = source * scale if part.split(".")[1] in ("o_proj", "down_proj") else source
                assert stacked.equal(wanted), (at, part)
            at += 1
    assert all(tensors[n].equal(parents["base"][n]) for n in tensors if ".layers." not in n)


@pytest.mark.slow
def test_a_winner_is_a_model_of_the_next_path(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    two = {**WEIGHTS, "method": {"choices": ["task_arithmetic", "ties"], "per": ["layers"]}}
    first = study(**{**SPACES["both"], "genes": two, "optimizer": {"name": "random", "seed": 1}})
    trials = evomerge.search(first, run="before").search.trials
    before = next(t for t in trials if len(t.recipe.documents) == 3)
    begin = f"before:{before.number}"
    space = study(sources=["one"], path=["base"])
    assert main(["search", "space.yaml", "--from", begin, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"starts from: trial {before.number} of before" in said
    assert "path: winner (" in said
    result = evomerge.search(space, run="next", from_run=begin)
    reference = next(t for t in result.search.trials if t.label == "former winner")
    assert (reference.digest, reference.scores) == (before.digest, before.scores)
    used = next(t for t in result.search.trials if t.genome and t.recipe_id != reference.recipe_id)
    names = [document.name for document in used.recipe.documents]
    assert names == ["winner-stage-ties", "winner-stage-task_arithmetic", "winner", None] or names[-2:] == [
        "winner",
        None,
    ]
    assert {d.chat_template for d in used.recipe.documents} == {None}
    evomerge.export("next", "next.yaml", trial=used.number, allow_infeasible=True)
    assert checkpoint_digest(evomerge.merge("next.yaml", "merged")) == used.digest
    kept = json.loads(Path("runs/next/environment.json").read_text())["begin"]
    assert kept == {"run": "before", "trial": before.number, "recipe": before.recipe_id, "digest": before.digest}

    with dying(6), pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", from_run=begin)
    evomerge.resume("parts")
    assert facts("parts") == facts("next")

    again = evomerge.search(study(sources=["one"], path=["one", "winner"]), run="third", from_run=f"next:{used.number}")
    deeper = next(t for t in again.search.trials if t.label == "former winner")
    assert deeper.digest == used.digest
    assert [d.name for d in deeper.recipe.documents][-3:] == ["winner-winner", "winner", None]

    file = Path("runs/next/winner.yaml")
    file.write_text(file.read_text().replace("weight: ", "weight: 1"))
    capsys.readouterr()
    assert main(["resume", "next", "--trials", "12"]) == 2
    assert f"winner.yaml: is not the recipe of trial {before.number} of before" in capsys.readouterr().err


def test_a_winner_that_has_no_place_is_refused(
    study: Study, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    evomerge.search(study(**SPACES["both"]), run="before")
    number = str(next(t.number for t in evomerge.status("before").search.trials if t.genome))

    def refusal(**changes: Any) -> str:
        study(**changes)
        lines = []
        for dry in (["--dry-run"], []):
            assert main(["search", "space.yaml", "--run", "no", "--from", f"before:{number}", *dry]) == 2
            lines.append(capsys.readouterr().err.splitlines()[-1])
        assert lines[0].partition("path: ")[2] == lines[1].partition("path: ")[2]
        assert not Path("runs/no").exists()
        return lines[0]

    assert "the blocks of `space: both` are merges of the models" in refusal(**SPACES["both"])
    assert "is no model of this space; add it as a source" in refusal(sources=[], path=["base"])
    other = {"path": ["base"], "sources": ["one"], "optimizer": {"name": "path"}}
    assert "path goes by known models only" in refusal(**other)
    study(sources=["one"], path=["winner", "one"])
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    assert "path: `winner` is the winner of another run, and none is given" in capsys.readouterr().err
    evomerge.search(study(sources=["one"]), run="stack", trials=5)
    study(sources=["one"], space="weights", genes=WEIGHTS, layers=2)
    assert main(["search", "space.yaml", "--from", "stack:4", "--dry-run"]) == 2
    assert "stack stacked layers, and this space merges weights" in capsys.readouterr().err


WRONG: dict[str, tuple[Changes, str]] = {
    "gradient": ({"optimizer": {"name": "gradient"}}, "optimizer: gradient follows slopes, and the layers of a path"),
    "gradient start": (
        {"optimizer": {"name": "cma-es", "warm_start": "gradient"}},
        "optimizer.warm_start: warm_start: gradient follows slopes",
    ),
    "gradient of both": (
        {**SPACES["both"], "optimizer": {"name": "gradient"}},
        "optimizer: gradient follows slopes",
    ),
    "soup": (
        {"optimizer": {"name": "greedy-soup"}},
        "greedy-soup goes by merges of known models, and a path merges none",
    ),
    "union": ({"tokenizer": "unions"}, "unknown tokenizer policy 'unions'"),
    "both of several depths": (
        {**SPACES["both"], "sources": ["one", "deep"]},
        "deep has 6 layers, the base has 4; merge fine-tunes of one base",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_paths_cannot_do_is_one_line(name: str, study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    changes, line = WRONG[name]
    study(**{"sources": ["one"], **changes})
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1


OTHER_MODELS: dict[str, tuple[Changes, str]] = {
    "width": ({"hidden_size": 8}, "other has hidden_size 8, base has 16"),
    "heads": ({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}, "other has num_attention_heads 4"),
    "shapes": ({"intermediate_size": 32}, "layer 0 of other is like none of base: mlp.down_proj.weight is [16, 32]"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_layers_that_do_not_fit_together_are_refused_by_their_headers(
    name: str, study: Study, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, line = OTHER_MODELS[name]
    models["other"] = str(save_tiny(tmp_path / "other", 5, num_hidden_layers=3, **config))
    study(sources=["other"])
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    assert line in capsys.readouterr().err


def test_a_dry_run_tells_of_slots_limits_and_scales(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study(**SPACES["slots"])
    assert main(["search", "space.yaml", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["slots"] == "8"
    assert said["path"] == "base (4 layers), deep (6 layers)"
    assert said["limit"] == "6 layers"
    assert said["scales"] == "pairs, 45 values: 45 pairs of layers are few"
    assert said["genes"] == 53
    assert not Path("runs").exists()


@pytest.mark.parametrize(("policy", "rows"), [("base", 13), ("two", 15)])
def test_models_with_other_tokens_stand_in_one_path(tiny_study: Study, policy: str, rows: int) -> None:
    file = tiny_study(lambda space, fitness: stacked(space, policy))
    extend(file.parent / "models/two", ["kl", "mn"])
    trials = evomerge.search(file).search.trials
    assert [t.state for t in trials] == ["complete"] * 6
    used = next(t for t in trials if len(t.recipe.models()) == 2)
    folder = evomerge.merge(used.recipe, "out")
    assert checkpoint_digest(folder) == used.digest
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows


def test_a_union_of_tokens_is_refused(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_study(lambda space, fitness: stacked(space, "union"))
    assert main(["search", "space.yaml", "--dry-run"]) == 0  # all have the same tokens
    extend(file.parent / "models/two", ["kl"])
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    assert "tokenizer: the embeddings of a path are its first model's" in capsys.readouterr().err


def stacked(space: Changes, policy: str) -> None:
    del space["layers"], space["genes"]
    space |= {"space": "dataflow", "tokenizer": policy, "optimizer": {"name": "random"}, "budget": {"trials": 6}}


@pytest.mark.slow
def test_workers_know_the_winner(study: Study) -> None:
    before = evomerge.search(study(**SPACES["slots"]), run="before").search.trials[5]
    space = study(sources=["one", "deep"], path=["base", "winner"], optimizer={"name": "random"})
    apart = evomerge.search(space, run="apart", from_run=f"before:{before.number}", workers=2, trials=8)
    assert next(t for t in apart.search.trials if t.label == "former winner").digest == before.digest
    evomerge.search(space, run="alone", from_run=f"before:{before.number}", trials=8)
    assert {(g, r, d) for *_, g, r, d, _, _ in map(hashable, facts("apart"))} == {
        (g, r, d) for *_, g, r, d, _, _ in map(hashable, facts("alone"))
    }


def hashable(fact: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(json.dumps(part, sort_keys=True) if isinstance(part, dict) else part for part in fact)
