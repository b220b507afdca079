"""Both input files: what they say, and that their resolved copies say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import ModelRef
from evomerge.files.resolved import current_keys, fitness_data, space_data, to_yaml
from evomerge.files.space_file import read_space

SPACE: dict[str, Any] = {
    "base": "../models/base",
    "sources": {"shipping": "../models/shipping", "catalog": {"path": "org/catalog", "revision": "v1"}},
    "dtype": "bfloat16",
    "layers": [[0, 2], [2, 6]],
    "modules": {"attention": "self_attn", "mlp": "mlp"},
    "interpolate": True,
    "genes": {
        "method": {"choices": ["task_arithmetic", "ties"], "per": ["layers"]},
        "weight": {"low": 0.0, "high": 1.2, "init": 0.4, "per": ["modules", "sources", "layers"]},
        "density": {"low": 0.1, "high": 1.0, "log": True},
    },
    "fixed": {"normalize": False},
    "optimizer": {"name": "cma-es", "sigma": 0.2, "seed": 5},
    "budget": {"trials": 200, "time": "4h"},
    "fitness": "fitness.yaml",
}
FITNESS: dict[str, Any] = {
    "include": ["tasks"],
    "objective": "weighted_mean",
    "split": {"search": 0.6, "seed": 2},
    "confidence": 0.95,
    "slices": {
        "a": {"task": "t", "metric": "acc", "floor": 0.9, "num_fewshot": 3},
        "b": {
            "task": "u",
            "metric": "bits_per_byte",
            "floor": {"of": "base", "margin": 0.05},
            "items": 20,
            "weight": 2,
        },
        "c": {"python": "mine:score", "data": "items.jsonl", "floor": {"of": "best_source", "keep": 0.97}},
    },
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "tasks").mkdir()
    space, fitness = tmp_path / "space.yaml", tmp_path / "fitness.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    fitness.write_text(yaml.safe_dump(FITNESS))
    return space, fitness


def test_a_space_file(files: tuple[Path, Path]) -> None:
    spec = read_space(files[0])
    assert spec.base == ModelRef(str(files[0].parent.parent / "models/base"))
    assert str(spec.sources["catalog"]) == "org/catalog@v1"
    assert spec.methods == ("task_arithmetic", "ties")
    weight = next(g for g in spec.genes if g.name == "weight")
    assert weight.per == ("sources", "layers", "modules")
    assert (spec.trials, spec.seconds) == (200, 4 * 3600)
    assert spec.fitness == files[1]


def test_a_fitness_file(files: tuple[Path, Path]) -> None:
    spec = read_fitness(files[1])
    assert spec.slices["a"].options == {"num_fewshot": 3}
    assert spec.slices["b"].floor is not None
    assert spec.slices["b"].floor.margin == 0.05
    assert spec.slices["c"].data == files[1].parent / "items.jsonl"


def test_resolved_copies_say_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "folder"
    elsewhere.mkdir(parents=True)
    space, fitness = read_space(files[0]), read_fitness(files[1])
    for name, data in (("s.yaml", space_data(space)), ("f.yaml", fitness_data(fitness))):
        (elsewhere / name).write_text(to_yaml(data, "copy"))
    assert space_data(read_space(elsewhere / "s.yaml")) == space_data(space)
    assert fitness_data(read_fitness(elsewhere / "f.yaml")) == fitness_data(fitness)


@pytest.mark.parametrize("key", ["pruning", "economy"])
@pytest.mark.parametrize(("value", "pruners"), [(False, ()), (["racing", "early_stop"], ("early_stop", "racing"))])
def test_pruning_is_read_by_its_old_name_and_written_by_its_name(
    files: tuple[Path, Path], key: str, value: Any, pruners: tuple[str, ...]
) -> None:
    files[1].write_text(yaml.safe_dump({**FITNESS, key: value}))
    spec = read_fitness(files[1])
    assert spec.pruning == pruners
    assert spec.at("pruning").line is not None
    data = fitness_data(spec)
    assert data["pruning"] == (list(pruners) or False)
    assert current_keys({"fitness file": {**data, key: data["pruning"]}})["fitness file"] == data
    for setting in ("pruning=[representative]", "economy=[representative]", " economy = [representative]"):
        assert read_fitness(files[1], [setting]).pruning == ("representative",)


def test_pruning_under_both_names_is_an_error(files: tuple[Path, Path]) -> None:
    files[1].write_text(yaml.safe_dump({**FITNESS, "economy": False, "pruning": True}))
    with pytest.raises(
        InputError, match="economy: is the old name of 'pruning', which is given, too; keep one of them"
    ):
        read_fitness(files[1])


@pytest.mark.parametrize("log", [None, False, True])
def test_a_scale_that_was_left_open_is_settled_in_the_copy(files: tuple[Path, Path], log: bool | None) -> None:
    gene = {"low": 1e-4, "high": 0.1, **({} if log is None else {"log": log})}
    genes = {"method": "nearswap", "t": gene}
    one = {"shipping": "../models/shipping"}
    files[0].write_text(yaml.safe_dump({**SPACE, "sources": one, "genes": genes, "fixed": {}}))
    copy = files[0].with_name("copy.yaml")
    copy.write_text(to_yaml(space_data(read_space(files[0])), "copy"))
    assert [read_space(file).genes[0].log for file in (files[0], copy)] == [log is not False] * 2


def test_an_optimizer_without_a_name_is_the_default(files: tuple[Path, Path]) -> None:
    space = {key: value for key, value in SPACE.items() if key != "optimizer"}
    files[0].write_text(yaml.safe_dump(space))
    default = read_space(files[0]).optimizer
    files[0].write_text(yaml.safe_dump({**space, "optimizer": {"seed": 7, "startup": 3}}))
    assert read_space(files[0]).optimizer == {**default, "seed": 7, "startup": 3}


def test_another_optimizer_keeps_the_seed_and_drops_the_options(files: tuple[Path, Path]) -> None:
    assert read_space(files[0], optimizer="tpe").optimizer == {"name": "tpe", "seed": 5}
    with pytest.raises(InputError, match="--optimizer: unknown optimizer 'tp'"):
        read_space(files[0], optimizer="tp")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sources", {}, "names no source"),
        ("sources", {"base": "x"}, "'base' cannot name a source"),
        ("tokenizer", "shiping", "did you mean 'shipping'?"),
        ("layers", [[0, 2], [3, 6]], "does not follow on layer 2"),
        ("layers", "all", "give a number of groups, each, or ranges"),
        ("modules", {"other": "x"}, "`other` is the name of all remaining tensors"),
        ("budget", {"time": "4 fortnights"}, "is not a span of time"),
        ("fixed", {"normalise": True}, "did you mean 'normalize'?"),
        ("fixed", {"weight": 1}, "is both fixed and a gene"),
        ("fixed", {"normalize": 1}, "is 1, not true or false"),
        ("dtype", "int4", "unknown dtype 'int4'"),
        ("genes", {"weight": {"low": 0, "high": 1}}, "has no 'method'"),
        (
            "genes",
            {"method": "slerp", "t": {"low": 0, "high": 1}},
            "slerp merges the base with 1 source, this space has 2",
        ),
        ("genes", {"method": "ties", "weight": 0.5}, "put it under `fixed: {weight: ...}`"),
        ("genes", {"method": "linear", "weight": {"low": 1, "high": 1}}, "not searched goes under `fixed"),
        ("genes", {"method": "linear", "weight": {"low": 0, "high": 1, "log": True}}, "has no logarithm"),
        ("genes", {"method": "linear", "weight": {"low": 0, "high": 1, "init": 2}}, "2 is outside [0, 1]"),
        ("genes", {"method": "ties", "normalize": {"low": 0, "high": 1}}, "is a flag, not a gene"),
        ("genes", {"method": {"choices": ["ties", "ties"]}}, "name each method once"),
        ("genes", {"method": {"choices": ["ties"], "per": ["modules"]}}, "can differ by layer group only"),
    ],
)
def test_what_a_space_cannot_say(files: tuple[Path, Path], key: str, value: Any, message: str) -> None:
    files[0].write_text(yaml.safe_dump({**SPACE, key: value}))
    with pytest.raises(InputError) as caught:
        read_space(files[0])
    assert message in str(caught.value)
    assert f"space.yaml:{caught.value.where.line}: {key}" in str(caught.value)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ({"metric": "acc"}, "needs either `task`"),
        ({"task": "t", "python": "a:b", "metric": "acc"}, "needs either `task`"),
        ({"python": "nocolon", "data": "x"}, "is not module:function"),
        ({"python": "a:b"}, "has no 'data'"),
        ({"python": "a:b", "data": "x", "num_fewshot": 1}, "only goes with an lm-eval `task`"),
        ({"task": "t", "metric": "acc", "floor": "high"}, "give a number or {of: base"),
        ({"task": "t", "metric": "acc", "floor": {"of": "base", "keep": 1, "margin": 1}}, "needs either `keep`"),
        ({"task": "t", "metric": "acc", "weight": -1}, "outside [0, inf)"),
        ({"task": "t", "metric": "acc", "items": 0}, "outside [1, inf)"),
        ({"task": "t", "metric": "acc", "direction": "up"}, "unknown direction 'up'"),
    ],
)
def test_what_a_slice_cannot_say(files: tuple[Path, Path], piece: dict[str, Any], message: str) -> None:
    files[1].write_text(yaml.safe_dump({"slices": {"s": piece}}))
    with pytest.raises(InputError) as caught:
        read_fitness(files[1])
    assert message in str(caught.value)
    assert "slices.s" in str(caught.value)
