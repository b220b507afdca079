"""Slices of a fitness file that measure a size: what they say, and what is refused with a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec, FloorSpec
from evomerge.files.resolved import fitness_data, to_yaml

QUALITY = {"task": "t", "metric": "acc"}


def read(folder: Path, slices: dict[str, Any], **keys: Any) -> FitnessSpec:
    file = folder / "fitness.yaml"
    file.write_text(yaml.safe_dump({"slices": slices, **keys}))
    return read_fitness(file)


def test_the_resolved_copy_says_the_same(tmp_path: Path) -> None:
    depth = {"measure": "layers", "floor": 10, "weight": 0}
    size = {"measure": "parameters", "floor": {"of": "base", "keep": 1.25}}
    spec = read(tmp_path, {"quality": QUALITY, "depth": depth, "size": size}, objective="pareto")
    assert (spec.slices["depth"].measure, spec.slices["depth"].weight) == ("layers", 0.0)
    assert spec.slices["depth"].floor == FloorSpec(value=10.0)
    assert spec.traded == ("quality", "size")
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(fitness_data(spec), "a copy"))
    assert read_fitness(copy).slices == spec.slices
    assert "measure" not in fitness_data(spec)["slices"]["quality"], "runs of older versions have no such key"


@pytest.mark.parametrize(
    ("slice_", "says"),
    [
        ({"measure": "layer"}, "layers"),
        ({"measure": "bytes"}, "parameters"),
        ({"measure": "layers", "metric": "acc"}, "metric: does not go with `measure`"),
        ({"measure": "layers", "items": 20}, "items: does not go with `measure`"),
        ({"measure": "layers", "filter": "none"}, "filter: does not go with `measure`"),
        ({"measure": "layers", "direction": "higher"}, "direction: does not go with `measure`"),
        ({"measure": "layers", "range": [0, 1]}, "range: does not go with `measure`"),
        ({"measure": "layers", "task": "t"}, "needs one of"),
        ({"measure": "layers", "python": "my:score", "data": "x.jsonl"}, "needs one of"),
        ({"metric": "acc"}, "`measure` (of its size)"),
        ({"measure": "layers", "floor": 0.9}, "the most that is allowed"),
        ({"measure": "layers", "floor": "few"}, "give a number"),
        ({"measure": "layers", "weight": -1}, "weight"),
    ],
)
def test_what_a_measure_cannot_be_given(tmp_path: Path, slice_: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, {"quality": QUALITY, "depth": slice_})
    assert says in str(error.value)
    assert "slices.depth" in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_alone_are_no_fitness(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say nothing of what a model can do"):
        read(tmp_path, {"depth": {"measure": "layers"}, "size": {"measure": "parameters"}})


def test_the_layers_of_a_model_of_ones_own_are_unknown(tmp_path: Path) -> None:
    own = {"python": "my:score", "data": "items.jsonl"}
    sized = read(tmp_path, {"own": own, "size": {"measure": "parameters"}}, model="my:build")
    assert sized.slices["size"].measure == "parameters"
    with pytest.raises(InputError, match="use `measure: parameters`"):
        read(tmp_path, {"own": own, "depth": {"measure": "layers"}}, model="my:build")
