"""Which kernels are compiled while the sources of a large merge are being loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.kernels.compiled import Compiled, Signature
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident import rehearsal
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Recipe


class Noted(Compiled):
    """Notes which kernels would be compiled, and compiles none."""

    def __init__(self, worth: float) -> None:
        super().__init__(worth)
        self.started: set[Signature] = set()

    def _start(self, signature: Signature) -> None:
        self.started.add(signature)


def recipe(models: Path, method: str, weight: float) -> Recipe:
    listed = ", ".join(
        f"{{model: {models / name}, parameters: {{weight: {weight}, density: 0.4}}}}" for name in ("one", "two")
    )
    return parse_recipe(f"merge_method: {method}\nbase_model: {models / 'base'}\nmodels: [{listed}]\ndtype: float32\n")


def rehearsed(models: Path, method: str) -> set[Signature]:
    opened = {str(models / name): Checkpoint.open(str(models / name)) for name in ("base", "one", "two")}
    compiled = Noted(worth=1e9)
    planned = plan(recipe(models, method, 0.3), lambda reference, _: opened[reference])
    rehearsal.rehearse(planned, opened.values(), "cpu", compiled)
    return compiled.started


@pytest.mark.parametrize("method", ["ties", "dare_ties", "task_arithmetic", "sce"])
def test_they_are_those_of_the_candidates(tiny_models: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "WORTH", 1)
    compiled = Noted(worth=0.0)
    bank = SourceBank()
    resident = Resident(bank.open(str(tiny_models / "base")), bank, "float32", compiled=compiled)
    resident.materialize(recipe(tiny_models, method, 0.7))
    assert rehearsed(tiny_models, method) == compiled.started
    assert compiled.started


def test_small_models_are_not_worth_it(tiny_models: Path) -> None:
    assert not rehearsed(tiny_models, "ties")
