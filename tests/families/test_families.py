"""Every family merges, searches, takes slopes, round-trips and generates, in each form in which it is stored.

The whole table takes a quarter of an hour: `pytest -m families`. Without that, every `SHARE`th layout runs.
`python -m tests.families` writes docs/models.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.families.build import write_models
from tests.families.columns import COLUMNS, FUSED, NONE, REFUSED, YES, Mergekit, Trial, mergekit
from tests.families.layouts import layouts

LAYOUTS = {layout.name: layout for layout in layouts()}
SHARE = 12
FEW = sorted(LAYOUTS)[::SHARE]
ASKED = ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe", "phimoe",
         "minimax", "granitemoe", "jamba")  # fmt: skip
"""Mixtures of experts of which transformers 5 stores other tensors than the hub."""


@pytest.fixture(scope="module")
def theirs() -> Iterator[Mergekit | None]:
    process = mergekit()
    yield process
    if process is not None:
        process.close()


def _check(name: str, folder: Path, theirs: Mergekit | None) -> None:
    row = Trial(LAYOUTS[name], folder, theirs).run()
    assert set(row.found) == set(COLUMNS)
    assert row.whole, row.reasons()
    states = {column: found.state for column, found in row.found.items()}
    assert states["slopes"] in (YES, REFUSED)
    assert states["parity"] in (YES, FUSED, NONE)


@pytest.mark.parametrize("name", FEW)
def test_a_few_layouts_pass(name: str, tmp_path: Path, theirs: Mergekit | None) -> None:
    _check(name, tmp_path, theirs)


@pytest.mark.families
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in FEW])
def test_a_layout_passes(name: str, tmp_path: Path, theirs: Mergekit | None) -> None:
    _check(name, tmp_path, theirs)


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len(LAYOUTS) == len(layouts()) >= 85


@pytest.mark.parametrize("family", ASKED)
def test_the_two_forms_of_a_mixture_differ(family: str, tmp_path: Path) -> None:
    """A row says `native` only where transformers stores other tensors so."""
    names = []
    for form in ("hub", "native"):
        write_models(LAYOUTS[f"{family} ({form})"], tmp_path / form)
        with safe_open(tmp_path / form / "base" / "model.safetensors", "pt") as file:
            names.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert names[0] != names[1]
