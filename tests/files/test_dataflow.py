"""The keys of a space of paths: what means nothing is refused with line and key; a run's own copy reads back equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.dataflow import KEYS
from evomerge.files.objects import Dataflow, Scales, SpaceSpec
from evomerge.files.resolved import space_data, to_yaml
from evomerge.files.space_file import read_space

GENES = {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources", "layers"]}}


def read(folder: Path, **changes: Any) -> SpaceSpec:
    data = {"space": "dataflow", "base": "base", "sources": {"a": "a", "b": "b"}, "fitness": "f.yaml", **changes}
    data = {key: value for key, value in data.items() if value != "left out"}
    (folder / "s.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return read_space(folder / "s.yaml")


LEGAL: dict[str, tuple[dict[str, Any], Dataflow]] = {
    "defaults": ({}, Dataflow(False, ("a", "b"))),
    "slots": (
        {"path": ["base", "b"], "repeats": 2, "max_layers": 9, "max_parameters": 1.5, "scales": "none"},
        Dataflow(False, ("base", "b"), 2, 9, 1.5, Scales("none")),
    ),
    "range": ({"scales": {"form": "pairs", "high": 3}}, Dataflow(False, ("a", "b"), scales=Scales("pairs", 0.5, 3.0))),
    "blocks": ({"blocks": 3, "scales": "shared"}, Dataflow(False, ("a", "b"), scales=Scales("shared"), blocks=3)),
    "one model": ({"path": ["base"], "sources": "left out"}, Dataflow(False, ("base",))),
    "no source": ({"path": ["base"], "sources": {}}, Dataflow(False, ("base",))),
    "winner": ({"path": ["b", "winner"]}, Dataflow(False, ("b", "winner"))),
    "both": ({"space": "both", "genes": GENES}, Dataflow(True, ("a", "b"), blocks=4)),
    "both, limits": (
        {"space": "both", "genes": GENES, "blocks": 2, "max_layers": 5, "modules": {"mlp": "mlp"}, "fixed": {}},
        Dataflow(True, ("a", "b"), 1, 5, blocks=2),
    ),
}


@pytest.mark.parametrize("name", LEGAL)
def test_keys_are_read_and_a_runs_copy_reads_back_equal(name: str, tmp_path: Path) -> None:
    changes, expected = LEGAL[name]
    spec = read(tmp_path, **changes)
    assert spec.dataflow == expected
    assert spec.stacks is not expected.both
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(space_data(spec), "as launched"))
    again = read_space(copy)
    assert again.dataflow == spec.dataflow
    assert (again.genes, again.sources, again.modules) == (spec.genes, spec.sources, spec.modules)
    assert space_data(again) == space_data(spec)


def test_a_space_of_weights_may_say_so(tmp_path: Path) -> None:
    spec = read(tmp_path, space="weights", genes=GENES)
    assert spec.dataflow is None
    assert "space" not in space_data(spec)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"space": "layers"}, r"s.yaml:1: space: unknown kind of space 'layers'"),
    **{
        f"{key} of weights": ({"space": "weights", "genes": GENES, key: value}, rf"{key}: says how layers are stacked")
        for key, value in {
            "path": ["a"],
            "repeats": 1,
            "max_layers": 4,
            "max_parameters": 2,
            "scales": "none",
            "blocks": 2,
        }.items()
    },
    **{
        f"{key} of dataflow": ({key: value}, rf"s.yaml:\d+: {key}: .*`space: dataflow` .*; remove it")
        for key, value in {
            "genes": GENES,
            "fixed": {},
            "layers": 2,
            "interpolate": True,
            "modules": {"mlp": "mlp"},
            "freeze": {"layers": [0]},
        }.items()
    },
    **{
        f"{key} of both": ({"space": "both", "genes": GENES, key: value}, rf"s.yaml:\d+: {key}: ")
        for key, value in {
            "layers": 2,
            "interpolate": True,
            "freeze": {"layers": [0]},
            "path": ["a"],
            "repeats": 2,
            "scales": "shared",
        }.items()
    },
    "both without genes": ({"space": "both"}, "has no 'genes'"),
    "no source and no path": ({"sources": "left out"}, "has no 'sources'"),
    "no source": ({"sources": {}}, "sources: names no source"),
    "unknown model": ({"path": ["a", "c"]}, r"path.1: unknown model of the path 'c'"),
    "a model twice": ({"path": ["a", "a"]}, r"path.1: a stands twice; list each model once; `repeats: 2`"),
    "empty path": ({"path": []}, "path: names no model"),
    "path that is no list": ({"path": "a"}, "path: is 'a', not a list"),
    "no repeat": ({"repeats": 0}, r"repeats: 0 is outside \[1, 100\]"),
    "repeated blocks": ({"repeats": 2, "blocks": 2}, "repeats: repeats slots, and `blocks` has none"),
    "one layer": ({"max_layers": 1}, r"max_layers: 1 is outside \[2, 10000\]"),
    "half a layer": ({"max_layers": 4.5}, "max_layers: is 4.5, not a whole number"),
    "no parameters": ({"max_parameters": 0}, "max_parameters: 0 leaves no parameter"),
    "half a parameter": ({"max_parameters": 1000.5}, "max_parameters: is 1000.5, not a whole number"),
    "pairs of blocks": ({"blocks": 2, "scales": "pairs"}, "scales: pairs are of slots, and blocks have borders"),
    "unknown form": ({"scales": "each"}, "scales: unknown form of scales 'each'"),
    "scales without 1": ({"scales": {"low": 1.5, "high": 2}}, "scales: 1.5 to 2 is no range of scales"),
    "scales from 0": ({"scales": {"low": 0}}, "scales: 0 to 2 is no range of scales"),
    "scales of any size": ({"scales": {"low": 1e-300, "high": 1e300}}, "scales: 1e-300 to 1e\\+300 is a wider ratio"),
    "unknown key of scales": ({"scales": {"least": 0.5}}, "scales.least: unknown key 'least'"),
    "no blocks": ({"blocks": 0}, r"blocks: 0 is outside \[1, 1000\]"),
    "tensors in blocks": (
        {"space": "both", "genes": {**GENES, "weight": {"low": 0, "high": 1, "per": ["tensors"]}}},
        "genes.weight: is per tensors, which are in their places, and blocks move",
    ),
    "unknown key": ({"max_layer": 3}, "unknown key 'max_layer'; did you mean 'max_layers'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_means_nothing_is_refused(name: str, tmp_path: Path) -> None:
    changes, line = WRONG[name]
    with pytest.raises(InputError, match=line):
        read(tmp_path, **changes)


PAGE = (Path(__file__).parents[2] / "docs/dataflow.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_the_pages_examples_are_legal(block: str, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(block)
    spec = read_space(tmp_path / "flow.yaml")
    assert spec.dataflow is not None


def test_the_page_has_every_key() -> None:
    table = PAGE[PAGE.index("| key |") :].split("\n\n")[0]
    assert {row.split("`")[1] for row in table.splitlines()[2:]} == {"space", *KEYS}
