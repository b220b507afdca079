"""What an evaluator does before the first candidate: decompositions, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.evaluator import evaluator
from evomerge.evaluator.progress import Progress
from evomerge.merging.kernels.factors import Factors
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.factor_cache import FactorCache
from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.mergekit import parse_recipe

RECIPE = """
merge_method: band_arithmetic
base_model: {models}/base
models:
- model: {models}/one
  parameters: {{weight: [{{filter: up_proj, bands: [0.5, 0.2, 0.1], top: 2}}, {{value: 0.5}}]}}
- model: {models}/two
  parameters: {{weight: [{{filter: up_proj, bands: [0.5, 0.25]}}, {{filter: q_proj, bands: [0, 1]}}, {{value: 0.5}}]}}
"""


class Heard(Progress):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.lines: list[tuple[str, float]] = []

    def phase(self, message: str) -> None:
        self.phases.append(message)

    def progress(self, message: str, done: float) -> None:
        self.lines.append((message, done))


def test_no_candidate_waits_for_decompositions(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, heard = SourceBank(), Heard()
    planned = plan(parse_recipe(RECIPE.format(models=tiny_models)), bank.open)
    monkeypatch.setattr(evaluator, "_SILENT", -1.0)
    evaluator.decompose(planned, bank, heard)
    # Of two layers: up_proj of both sources, q_proj of one.
    assert heard.lines == [(f"decomposed {i} of 6 deltas", i / 6) for i in range(1, 7)]

    assert heard.phases == ["decomposing deltas (6 of 6 are new)"]

    def refuse(*given: object) -> None:
        raise AssertionError("a delta was decomposed for a candidate")

    monkeypatch.setattr(Factors, "of", refuse)
    for job in planned.jobs.values():
        execute(job, bank)


def test_what_is_kept_is_not_new(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, kept = parse_recipe(RECIPE.format(models=tiny_models)), FactorCache(tmp_path)
    heard = Heard()
    for change in ("nothing", "one", "nothing"):
        bank = SourceBank(kept=kept)
        if change == "one":
            next(tmp_path.iterdir()).unlink()
        evaluator.decompose(plan(recipe, bank.open), bank, heard)
    assert heard.phases == [f"decomposing deltas ({new} of 6 are new)" for new in (6, 1, 0)]
    evaluator.decompose(plan(as_it_is(str(tiny_models / "one"), "float32"), bank.open), bank, heard)
    assert len(heard.phases) == 3


def test_what_is_quick_is_not_reported(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, heard = SourceBank(), Heard()
    monkeypatch.setattr(evaluator, "_SILENT", 1e9)
    evaluator.decompose(plan(parse_recipe(RECIPE.format(models=tiny_models)), bank.open), bank, heard)
    assert heard.lines == []
