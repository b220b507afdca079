"""A search over adapters in Core Space: what it holds in memory, and what its winner is written as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.evaluator.evaluator import place_candidates
from evomerge.evaluator.models import open_models
from evomerge.files.pair import read_files
from evomerge.merging.disk.record import RECORD, read_record

Study = Callable[..., Path]


@pytest.fixture
def adapters(tiny_study: Study, tmp_path: Path) -> Callable[..., Path]:
    """A study whose two sources are adapters of rank 2."""

    def make(**keys: Any) -> Path:
        for name in ("one", "two"):
            evomerge.extract("models/base", f"models/{name}", f"adapters/{name}", rank=2, overwrite=True)

        def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
            space["sources"] = {name: f"models/base+adapters/{name}" for name in ("one", "two")}
            space["budget"] = {"trials": 7}
            space.update(keys)
            fitness["slices"]["b"]["floor"] = 0.0

        return tiny_study(change)

    return make


def test_a_search_and_its_winner(adapters: Callable[..., Path], tmp_path: Path) -> None:
    genes = {"method": {"choices": ["ties", "task_arithmetic"], "per": ["layers"], "init": "ties"},
             "weight": {"low": 0.1, "high": 1.5, "per": ["sources"]}, "density": {"low": 0.2, "high": 1.0}}  # fmt: skip
    evomerge.search(str(adapters(adapters="core", genes=genes)), run="core")
    said: list[str] = []
    text = evomerge.export("runs/core", trial=6, checkpoint="merged", allow_infeasible=True, note=said.append)
    assert text.count("adapters: core") == text.count("merge_method: t")
    assert "mergekit has no Core Space" in text
    assert not any("not the weights that were scored" in line for line in said)
    assert evomerge.status("runs/core").search.trials[6].digest == read_record(Path("merged") / RECORD).digest
    out = {"checkpoint": "adapter", "as_adapter": True, "allow_infeasible": True, "note": said.append}
    evomerge.export("runs/core", trial=6, **out)
    assert json.loads(Path("adapter/adapter_config.json").read_text())["r"] == 4
    assert "lacks 0.00% of the change" in said[-1]
    merged = Checkpoint.open("merged")
    for name in merged.tensors:
        rebuilt = Checkpoint.open("models/base+adapter").read(name)
        assert (rebuilt - merged.read(name)).abs().max() < 1e-5, name


@pytest.mark.slow
def test_a_search_resumes_exactly(adapters: Callable[..., Path]) -> None:
    space = adapters(adapters="core", core_rank=3)
    evomerge.search(str(space), run="whole")
    evomerge.search(str(space), run="parts", trials=5)
    evomerge.resume("runs/parts", trials=7)
    whole, parts = ([t.digest for t in evomerge.status(f"runs/{run}").search.trials] for run in ("whole", "parts"))
    assert whole == parts
    assert len(whole) == 7


def test_no_whole_weights_of_adapters_are_held(adapters: Callable[..., Path]) -> None:
    sizes = {}
    for form in ("full", "core"):
        spec, fitness = read_files(adapters(adapters=form))
        models = open_models(spec, fitness)
        weights = place_candidates(models, fitness, "cpu", None).weights
        sizes[form] = sum(sum(places.values()) for name, places in weights.items() if name != "base")
    vectors = 2 * 4 * 5 * 16  # what was trained whole: five norms of each adapter
    assert sizes["core"] == vectors
    assert sizes["full"] > 10 * vectors


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"core_rank": 2}, "core_rank: is of Core Space, where nothing is merged here; add adapters: core"),
        ({"adapters": "core", "genes": {"method": "slerp", "t": {"low": 0, "high": 1}}}, "slerp"),
        ({"adapters": "core", "genes": {"method": "linear", "weight": {"low": 0, "high": 1}}}, "linear merges models"),
        ({"adapters": "cores"}, "unknown form 'cores'"),
        ({"adapters": "core", "core_rank": 9}, "core_rank is 9, and the adapters' ranks together are 4"),
        ({"adapters": "core", "sources": {"one": "models/one"}}, "one is no LoRA adapter of"),
    ],
)
def test_what_does_not_fit(adapters: Callable[..., Path], keys: dict[str, Any], said: str) -> None:
    space = adapters(**keys)
    with pytest.raises(InputError, match=said):
        evomerge.search(str(space), run="wrong")
    assert not Path("runs/wrong").exists()
