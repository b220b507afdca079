"""State dicts merge in memory to the bits that a recipe merges to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import evomerge
from evomerge.errors import InputError

NAMES = ("one", "two")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": [0.3, 0.9]}),
        ("ties", {"weight": {"one": 0.7, "two": 0.4}, "density": 0.5, "lambda": 1.2}),
        ("dare_ties", {"weight": 0.5, "density": [0.6, 0.3]}),
        ("della", {"weight": 0.5, "density": 0.5, "epsilon": 0.1, "normalize": False}),
        ("task_arithmetic", {"weight": [[{"filter": "mlp", "value": 0.1}, {"value": 0.8}], 0.4]}),
        ("slerp", {"t": 0.3}),
        ("model_stock", {}),
    ],
)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_bits_are_those_of_a_recipe(
    method: str, parameters: dict[str, Any], dtype: str | None, tiny_models: Path, tmp_path: Path
) -> None:
    names = NAMES[:1] if method == "slerp" else NAMES
    base, sources = stored(tiny_models / "base"), {name: stored(tiny_models / name) for name in names}
    merged = evomerge.merge_tensors(
        base, sources, method, parameters, dtype=None if dtype is None else getattr(torch, dtype), seed=7
    )
    per_source: dict[str, dict[str, Any]] = {name: {} for name in names}
    shared: dict[str, Any] = {}
    for key, value in parameters.items():
        if key in ("weight", "density", "epsilon"):
            for at, name in enumerate(names):
                one = value[name] if isinstance(value, dict) else value[at] if isinstance(value, list) else value
                per_source[name][key] = one
        else:
            shared[key] = value
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(tiny_models / name), "parameters": per_source[name]} for name in names],
        "parameters": shared,
        "random_seed": 7,
        **({} if dtype is None else {"dtype": dtype}),
        **({} if method == "linear" else {"base_model": str(tiny_models / "base")}),
    }
    if method == "slerp":
        recipe["models"].append({"model": str(tiny_models / "base")})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    evomerge.merge(tmp_path / "recipe.yaml", tmp_path / "out")
    written = stored(tmp_path / "out")
    assert merged.keys() == written.keys()
    for name, tensor in written.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor), name


def test_what_is_given_stays_as_it_is() -> None:
    base, source = (
        {"w": torch.ones(4, 4)},
        {
            "w": torch.full((4, 4), 3.0),
        },
    )
    merged = evomerge.merge_tensors(base, [source], "task_arithmetic", {"weight": 0.5})
    assert torch.equal(merged["w"], torch.full((4, 4), 2.0))
    assert torch.equal(base["w"], torch.ones(4, 4))
    assert torch.equal(source["w"], torch.full((4, 4), 3.0))
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not evomerge.merge_tensors(None, [{"w": parameter}], "linear", {"weight": 1.0})["w"].requires_grad


def test_whole_numbers_are_copied() -> None:
    given = {"count": torch.tensor([3, 4]), "w": torch.ones(2)}
    merged = evomerge.merge_tensors(None, [given, given], "linear", {"weight": 1.0})
    assert torch.equal(merged["count"], given["count"])
    with pytest.raises(InputError, match=r"count is torch.int64 and differs"):
        evomerge.merge_tensors(None, [given, {**given, "count": torch.tensor([1, 1])}], "linear", {"weight": 1.0})


ONE = {"w": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("base", "sources", "method", "parameters", "message"),
    [
        (ONE, [ONE], "tise", {}, "no method 'tise'; did you mean 'ties'"),
        (ONE, [], "ties", {}, "ties merges at least 1 sources, not 0"),
        (ONE, [ONE, ONE], "slerp", {"t": 0.5}, "slerp merges 1 sources, not 2"),
        (None, [ONE], "ties", {"weight": 1.0}, "ties needs a base"),
        (ONE, [{}], "ties", {"weight": 1.0}, "'w' is in the base and not in 0"),
        (ONE, {"a": {"w": torch.ones(3, 2)}}, "ties", {"weight": 1.0}, r"'w' is \[3, 2\] in a, \[2, 2\] in the base"),
        (ONE, [ONE], "ties", {"weigth": 1.0}, "no parameter 'weigth'; did you mean 'weight'"),
        (ONE, [ONE], "ties", {}, "has no weight for w"),
        (ONE, [ONE], "ties", {"weight": [1.0, 2.0]}, "weight has 2 values for 1 sources"),
        (ONE, [ONE], "ties", {"weight": {"b": 1.0}}, "weight and the sources differ in '0'"),
        (ONE, [ONE], "ties", {"weight": 1.0, "density": -1}, "density is -1 for w, outside"),
        (ONE, [{"w": torch.full((2, 2), float("nan"))}], "linear", {"weight": 1.0}, "'w' of 0 holds NaN"),
        ({"w": torch.full((2, 2), float("inf"))}, [ONE], "ties", {"weight": 1.0}, "'w' of the base holds NaN"),
        (ONE, [{"w": [1.0, 2.0]}], "ties", {"weight": 1.0}, "'w' of 0 is no tensor"),
        (ONE, {"a": None}, "ties", {"weight": 1.0}, "a is no state dict"),
        (ONE, 5, "ties", {"weight": 1.0}, "neither a mapping nor a list"),
        (ONE, [ONE], "ties", [1.0], "the parameters are no mapping"),
        (ONE, [ONE], "ties", {"weight": "x"}, "weight is 'x', not a number"),
        (ONE, [ONE], "ties", {"weight": 1.0, "lambda": ""}, "lambda is '', not a number"),
        (ONE, [ONE], "ties", {"weight": 1.0, "lambda": []}, "lambda is a list with nothing in it"),
        (ONE, [ONE], "ties", {"weight": [{"filtr": "w", "amount": 1}]}, "weight has an entry without a value"),
        (ONE, [ONE], "ties", {"weight": {"filter": "w"}}, "weight has a filter entry without a value"),
    ],
)
def test_what_is_wrong_is_one_line(base: Any, sources: Any, method: str, parameters: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evomerge.merge_tensors(base, sources, method, parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("place", "message"), [
    ({"dtype": "bfloat16"}, "'bfloat16' is no dtype"),
    ({"dtype": torch.int8}, "torch.int8 is no dtype"),
    ({"device": "nowhere"}, "there is no device 'nowhere'"),
])  # fmt: skip
def test_a_wrong_dtype_or_device_is_one_line(place: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evomerge.merge_tensors(ONE, [ONE], "ties", {"weight": 1.0}, **place)
    assert "\n" not in str(caught.value)
