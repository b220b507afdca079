"""What every merge method has to hold to. Another package tests its own by a class of these tests:

```python
class TestMethods(MethodConformance):
    names = ("my_method",)
```
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.merging.kernels import runner
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.runner import Runner
from evomerge.registry import METHODS, load
from evomerge.testing.suite import Suite, of

SHAPES = [(37, 23), (48,), (1,), (0,), (3, 4, 5), (7, 1), (1, 9)]

# where parameters say "this model, whole": weights of 1, the far end of a path, everything kept
WHOLE: dict[str, Any] = {
    "weight": 1.0, "density": 1.0, "lambda": 1.0, "t": 1.0, "scale": 1.0, "normalize": False, "select_topk": 1.0,
    "epsilon": 0.0, "r": 0.0, "isotropy": 0.0, "rank": 1.0,
}  # fmt: skip
# two sources at least, or only a part of the one model is ever taken
NOT_ALONE = {"arcee_fusion", "consensus", "model_stock", "nuslerp", "resmerge", "tsv"}
NOTHING: dict[str, Any] = {"weight": 0.0, "t": 0.0, "select_topk": 0.0, "epsilon": 100.0}

_SPECTRAL = 2e-6
"""How far sums in another order may move a merge by singular directions of deltas of 0.1."""

DRAW = Draw(3, "model.layers.0.mlp.up_proj.weight")


def parts(share: float) -> dict[str, Any]:
    """Values that let a method do only a part of what it can."""
    return dict.fromkeys(("density", "select_topk", "isotropy", "rank", "part"), share)


def stays(name: str) -> bool:
    """Whether parameters can say that nothing is taken from the models."""
    found = NOTHING.keys() & {p.name for p in METHODS[name].parameters}
    return bool(found) and METHODS[name].base in ("subtracted", "endpoint")


def tensors(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, count: int | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """(merged tensors, base) as the method takes them."""
    method = METHODS[name]
    least, most = method.sources
    number = count or int(min(max(least, 3), most))
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator)
    made = [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(number)]
    return made, None if method.base == "ordinary" else base.to(dtype)


def arguments(name: str, count: int, **values: Any) -> dict[str, Any]:
    """Every parameter at `values`, else at its default, else at where a search starts. Lists: one value a source."""
    found: dict[str, Any] = {}
    for p in METHODS[name].parameters:
        value = values.get(p.name, p.init if p.default is None else p.default)
        if p.scope == "source" and not isinstance(value, list):
            value = [value] * count
        found[p.argument] = value
    return found


def _remember(known: dict[Hashable, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in known:
        known[key] = make()
    return known[key]


def merge(
    name: str,
    merged: Sequence[Tensor],
    base: Tensor | None,
    out: torch.dtype | None = None,
    draw: Draw = DRAW,
    known: dict[Hashable, Any] | None = None,
    **values: Any,
) -> Tensor:
    """The merged tensor in the dtype `out` (default: the models'), as an execution makes it. `known`: what is
    remembered of these tensors."""
    work, runner_ = merged[0].dtype, Runner()
    inputs = Inputs(
        merged,
        base,
        draw=draw,
        keys=None if known is None else range(len(merged) + 1),
        remember=None if known is None else functools.partial(_remember, known),
        run=None if known is None else lambda blend: runner_.reduce(blend, work),
    )  # fmt: skip
    found = load(METHODS[name].function)(inputs, **arguments(name, len(merged), **values))
    if isinstance(found, Tensor):
        assert found.dtype in (torch.float64 if work == torch.float64 else torch.float32, work)
        return found.to(out or work)
    result = torch.empty(merged[0].shape, dtype=out or work)
    runner_.write(found, result, out or work)
    return result


def run(
    name: str,
    shape: tuple[int, ...] = (37, 23),
    dtype: torch.dtype = torch.float32,
    out: torch.dtype | None = None,
    **values: Any,
) -> Tensor:
    return merge(name, *tensors(name, shape, dtype), out, **values)


def unit(dtype: torch.dtype, values: Tensor) -> Tensor:
    """One unit in the last place of each value."""
    return values.abs().to(torch.float32).clamp_min(torch.finfo(dtype).tiny) * torch.finfo(dtype).eps


class MethodConformance(Suite):
    """Tests of the merge methods `names`."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_inputs_are_not_changed(self, name: str, dtype: torch.dtype) -> None:
        merged, base = tensors(name, (37, 23), dtype)
        given = [t.clone() for t in (*merged, *([base] if base is not None else []))]
        for density in (1.0, 0.4):
            merge(name, merged, base, **parts(density))
        kept = (*merged, *([base] if base is not None else []))
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_are_kept(self, name: str, shape: tuple[int, ...]) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            found = run(name, shape, dtype, **parts(0.5))
            assert found.shape == shape
            assert found.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_math_is_in_float32_and_rounded_once(self, name: str, dtype: torch.dtype) -> None:
        """Written in 16 bits is the float32 result, rounded: no step in between was."""
        merged, base = tensors(name, (37, 23), dtype)
        fine = merge(name, merged, base, torch.float32, scale=0.5)
        assert torch.equal(merge(name, merged, base, scale=0.5), fine.to(dtype))
        assert bool((fine.to(dtype) != fine).any()) or name in {"ram", "arcee_fusion", "passthrough"}

    def test_float64_stays_float64(self, name: str) -> None:
        merged, base = tensors(name, (37, 23), torch.float64)
        found = merge(name, merged, base, scale=0.3)
        assert found.dtype == torch.float64
        narrow = merge(name, [t.float() for t in merged], None if base is None else base.float(), scale=0.3)
        assert torch.allclose(found, narrow.double(), rtol=0, atol=2e-6)

    @pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (700, 131)), (torch.bfloat16, (91_700,))])
    def test_equal_inputs_give_equal_bits_on_any_number_of_threads(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                found.append(run(name, shape, dtype, **parts(0.37), rescale=True))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], other) for other in found[1:])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equal_inputs_give_equal_bits_in_any_chunks(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Thresholds, equals at a threshold and random masks go on across the chunks."""
        found = []
        for size in (1 << 17, 1000, 37):
            monkeypatch.setattr(runner, "_CACHED", size)
            found.append(run(name, (101, 23), dtype, **parts(0.37)))
        assert all(torch.equal(found[0], other) for other in found[1:])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_remembered_changes_nothing(self, name: str, dtype: torch.dtype) -> None:
        """Candidates over the same tensors share what is known of these; each comes out as if it were alone."""
        merged, base = tensors(name, (37, 23), dtype)
        known: dict[Hashable, Any] = {}
        for share in (0.4, 0.8, 0.4):
            values: dict[str, Any] = {
                **parts(share),
                "t": share,
                "weight": 1 - share,
                "rescale": True,
                "scale": share,
            }
            alone = merge(name, merged, base, **values)
            assert torch.equal(merge(name, merged, base, known=known, **values), alone)

    @of(lambda name: name not in NOT_ALONE)
    def test_one_model_alone_comes_back(self, name: str) -> None:
        (model, *_), base = tensors(name, (37, 23), count=1)
        assert torch.allclose(merge(name, [model], base, **WHOLE), model, rtol=0, atol=1e-6)

    @of(stays)
    def test_nothing_taken_is_the_base(self, name: str) -> None:
        merged, base = tensors(name, (37, 23))
        assert base is not None
        assert torch.allclose(merge(name, merged, base, **NOTHING), base, rtol=0, atol=1e-6)

    @of(lambda name: METHODS[name].base == "subtracted")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_models_equal_to_the_base_give_the_base(self, name: str, dtype: torch.dtype) -> None:
        _, base = tensors(name, (37, 23), dtype)
        assert base is not None
        count = int(min(2, METHODS[name].sources[1]))
        assert torch.equal(merge(name, [base] * count, base, **parts(0.5)), base)

    @of(lambda name: METHODS[name].base != "subtracted")
    def test_equal_models_give_themselves(self, name: str) -> None:
        (model, *_), base = tensors(name, (37, 23))
        count = int(min(max(METHODS[name].sources[0], 2), METHODS[name].sources[1]))
        found = merge(name, [model] * count, None if base is None else model, scale=1.0)
        assert torch.allclose(found, model, rtol=0, atol=2e-6)

    @of(lambda name: METHODS[name].sources[1] > 1 and not METHODS[name].stochastic)
    def test_the_order_of_the_sources_changes_nothing(self, name: str) -> None:
        """Beyond the last place: sums are added up in another order. (Random masks belong to a source's number.)"""
        merged, base = tensors(name, (37, 23))
        count = len(merged)
        values: dict[str, list[float]] = {
            "weight": [0.3, 0.5, 0.7],
            "density": [0.8, 0.6, 0.4],
            "gamma": [0.01, 0.02, 0.03],
            "rank": [0.8, 0.6, 0.4],
            "part": [0.8, 0.6, 0.4],
        }
        turn = [*range(1, count), 0]
        ordered: dict[str, Any] = {k: v[:count] for k, v in values.items()}
        first = merge(name, merged, base, **{**parts(0.6), **ordered})
        turned: dict[str, Any] = {k: [v[i] for i in turn] for k, v in values.items()}
        other = merge(name, [merged[i] for i in turn], base, **{**parts(0.6), **turned})
        scale = torch.maximum(first.abs(), first.abs() if base is None else base.abs()).clamp_min(0.1)
        most = 4 * unit(torch.float32, scale) + (_SPECTRAL if METHODS[name].spectral else 0.0)
        assert bool(((first - other).abs() <= most).all())

    def test_every_parameter_has_a_legal_start(self, name: str) -> None:
        for p in METHODS[name].parameters:
            assert p.scope in ("source", "tensor")
            assert p.kind is bool or p.low <= p.init <= p.high
            assert p.kind is bool or p.default is None or p.low <= p.default <= p.high
        check = METHODS[name].check
        assert check is None or check({p.name: p.init for p in METHODS[name].parameters}) is None
