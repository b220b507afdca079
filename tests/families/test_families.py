"""Every family merges, searches, takes slopes, round-trips and generates, in each form in which it is stored.

The whole table takes twenty minutes: `pytest -m families`. `pytest -m third` is a third of it. Without that, a few of
each kind run.
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
FEW = ("gemma3 (hub)", "jamba (hub)", "qwen3_moe (hub)")
"""What runs without being asked for."""

UNLIKE_MERGEKIT = {
    "gemma3n (hub)": "mergekit takes every numbered list of timm's tower for a stack of layers of its own",
    "qwen2_5_vl (hub)": "mergekit merges the projector's tensors twice, and the last layer's weights win",
    "qwen2_5_vl, tied (hub)": "mergekit merges the projector's tensors twice, and the last layer's weights win",
}
"""Layouts of which mergekit gives other tensors, and why."""

NATIVE = [layout.family for layout in LAYOUTS.values() if layout.form == "native"]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Mergekit | None]:
    process = mergekit()
    yield process
    if process is not None:
        process.close()


@pytest.fixture(autouse=True)
def _tools(request: pytest.FixtureRequest) -> None:
    """Gemma 3n's tower is one of timm, which is not among the project's own needs."""
    if "gemma3n" in request.node.name:
        pytest.importorskip("timm")


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
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.third][i % 3 :]) for i, n in enumerate(LAYOUTS)])
def test_a_layout_passes(name: str, tmp_path: Path, theirs: Mergekit | None, request: pytest.FixtureRequest) -> None:
    if name in UNLIKE_MERGEKIT and theirs is not None:
        request.applymarker(pytest.mark.xfail(reason=UNLIKE_MERGEKIT[name], strict=True))
    _check(name, tmp_path, theirs)


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len(LAYOUTS) == len(layouts()) >= 85


@pytest.mark.families
@pytest.mark.parametrize("family", NATIVE)
def test_a_native_row_is_one_of_other_tensors(family: str, tmp_path: Path) -> None:
    stored = []
    for form in ("hub", "native"):
        write_models(LAYOUTS[f"{family} ({form})"], tmp_path / form)
        with safe_open(tmp_path / form / "base" / "model.safetensors", "pt") as file:
            stored.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    assert stored[0] != stored[1]
