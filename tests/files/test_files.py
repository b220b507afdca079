"""Both input files: what they say, and that their resolved copies say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import PRUNERS, ModelRef
from evomerge.files.pair import read_files
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


def test_by_default_the_costs_decide_whether_candidates_are_pruned(files: tuple[Path, Path]) -> None:
    files[1].write_text(yaml.safe_dump({key: value for key, value in FITNESS.items() if key != "pruning"}))
    specs = [read_fitness(files[1], settings) for settings in ([], ["pruning=auto"], ["pruning=true"])]
    assert [spec.auto_pruning for spec in specs] == [True, True, False]
    assert [spec.pruning for spec in specs] == [PRUNERS] * 3
    assert fitness_data(specs[0])["pruning"] == "auto"


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
        ("genes", {"method": "linear", "weight": {"low": -1e308, "high": 1e308}}, "is wider than any number"),
        (
            "genes",
            {"method": "linear", "weight": {"low": 1e-300, "high": 1e300, "log": True}},
            "is a wider ratio than any number",
        ),
        ("genes", {"method": "TIES"}, "unknown merge method 'TIES'; did you mean 'ties'?"),
        ("genes", {"method": "Dare-TIES"}, "did you mean 'dare_ties'?"),
        ("genes", {"method": ["ties", "linear"]}, "is a list; write {choices: ['ties', 'linear']}"),
        ("genes", ["ties"], "for example {method: ties, weight: {low: 0, high: 1}}"),
        ("optimizer", "CMA_ES", "unknown optimizer 'CMA_ES'; did you mean 'cma-es'?"),
        ("optimizer", {"name": 5}, "is 5, not the name of an optimizer; use one of: "),
        ("sources", "../a", "each source needs a name; write for example sources: {code: path/of/it}"),
        ("sources", {"a/b": "x"}, "sources.a/b: 'a/b' is a path, so it cannot name a source"),
        ("sources", {"a" * 200: "x"}, "has 200 characters, so it cannot name a source"),
        ("sources", {"one": "~nosuchuser/x"}, "sources.one: ~nosuchuser/x"),
        ("sources", {"one": "a" * 300}, "sources.one: "),
        ("modules", {"a/b": "mlp"}, "modules.a/b: 'a/b' is a path, so it cannot name a module"),
        ("budget", 200, "is 200, not a mapping; write it as `key: value` lines, for example {trials: 200, time: 4h}"),
        ("budget", {"trials": "010x"}, "budget.trials: is '010x', not a number; give a whole number, such as 4"),
        ("budget", {"trials": 10**15}, "budget.trials: 1000000000000000 is outside [1, 10000000]"),
        ("budget", {"time": "9e9d"}, "budget.time: '9e9d' is not a span of time; write for example 90s"),
        ("budget", {"time": [1]}, "budget.time: is [1], not a span of time"),
        ("layers", 10**9, "layers: 1000000000 is outside [1, 10000]"),
        ("layers", [[0, 10**9]], "layers.0.1: 1000000000 is outside [1, 10000]"),
        ("freeze", {"layers": [[0, 10**9]]}, "freeze.layers.0.1: 1000000000 is outside [1, 10000]"),
        ("freeze", {"sources": [["one"]]}, "freeze.sources.0: is ['one'], not a text"),
        ("dtype", None, "dtype: is empty, not the name of a dtype; use one of: bfloat16, float16, float32"),
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
        ({"metric": "acc"}, "needs one of `task`"),
        ({"task": "t", "python": "a:b", "metric": "acc"}, "needs one of `task`"),
        ({"python": "nocolon", "data": "x"}, "is not module:function"),
        ({"python": "a:b"}, "has no 'data'"),
        ({"python": "a:b", "data": "x", "num_fewshot": 1}, "only goes with an lm-eval `task`"),
        ({"task": "t", "metric": "acc", "floor": "high"}, "give a number or {of: base"),
        ({"task": "t", "metric": "acc", "floor": {"of": "base", "keep": 1, "margin": 1}}, "needs either `keep`"),
        ({"task": "t", "metric": "acc", "weight": -1}, "outside [0, inf)"),
        ({"task": "t", "metric": "acc", "items": 0}, "outside [1, inf)"),
        ({"task": "t", "metric": "acc", "direction": "up"}, "unknown direction 'up'"),
        ({"task": "t", "metric": "acc", "floor": {"of": "base", "keep": 97}}, "write 0.97 for 97 %"),
        ({"task": "t", "metric": "acc", "items": 10**30}, "is larger than any number that is meant"),
        ({"task": "t", "metric": "acc", "num_fewshot": 10**9}, "num_fewshot: 1000000000 is outside [0, 1000]"),
        ({"task": ["t"], "metric": "acc"}, "is ['t'], not a text"),
        ("t", "is 't', not a mapping; write it as `key: value` lines, for example {task: wikitext"),
    ],
)
def test_what_a_slice_cannot_say(files: tuple[Path, Path], piece: Any, message: str) -> None:
    files[1].write_text(yaml.safe_dump({"slices": {"s": piece}}))
    with pytest.raises(InputError) as caught:
        read_fitness(files[1])
    assert message in str(caught.value)
    assert "slices.s" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": ["a"]}, "slices: is ['a'], and each slice needs a name; write for example slices: {english: "),
        ({"slices": {"../a": {}}}, "slices.../a: '../a' is a path, so it cannot name a slice"),
        ({"slices": {"a\x1b[31m": {}}}, r"'a\x1b[31m' has characters that do not print, so it cannot name a slice"),
        ({"slices": {"-a": {}}}, "'-a' begins with '-', so it cannot name a slice"),
        ({"confidence": 95}, "confidence: 95 is a percentage, and a share is meant; write 0.95 for 95 %"),
        ({"split": {"search": 50}}, "split.search: 50 is a percentage, and a share is meant; write 0.5 for 50 %"),
        ({"split": 0.5}, "split: is 0.5, not a mapping; write it as `key: value` lines, for example {search: "),
        ({"objective": ["mean"]}, "objective: is ['mean'], not the name of an objective; use one of: "),
        ({"objective": "Weighted Mean"}, "did you mean 'weighted_mean'?"),
    ],
)  # fmt: skip
def test_what_a_fitness_file_cannot_say(files: tuple[Path, Path], change: dict[str, Any], message: str) -> None:
    files[1].write_text(yaml.safe_dump({**FITNESS, **change}, sort_keys=False))
    with pytest.raises(InputError) as caught:
        read_fitness(files[1])
    assert message in str(caught.value)
    assert f"fitness.yaml:{caught.value.where.line}: " in str(caught.value)


def test_a_fitness_file_that_is_none_is_named_where_it_stands(files: tuple[Path, Path]) -> None:
    files[0].write_text(yaml.safe_dump({**SPACE, "fitness": "/dev/zero"}, sort_keys=False))
    with pytest.raises(InputError, match=r"space.yaml:\d+: fitness: /dev/zero is a device or a pipe, not a file"):
        read_files(files[0])


def test_numbers_are_read_as_they_are_written(files: tuple[Path, Path]) -> None:
    text = yaml.safe_dump({key: value for key, value in SPACE.items() if key != "budget"})
    for trials, number in (("010", 10), ("0o10", 8), ("1_000", 1000), ("1e3", 1000)):
        files[0].write_text(f"{text}budget: {{trials: {trials}, time: 1e3}}\n")
        assert (read_space(files[0]).trials, read_space(files[0]).seconds) == (number, 1000.0)
