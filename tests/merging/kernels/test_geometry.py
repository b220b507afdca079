"""The spherical methods and Model Stock against the formulas, written out for vectors in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.merging.kernels import geometry
from evomerge.merging.kernels.geometry import arc, by_rows, length
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.methods.karcher import karcher
from evomerge.merging.methods.model_stock import model_stock
from evomerge.merging.methods.multislerp import multislerp
from evomerge.merging.methods.nuslerp import nuslerp
from evomerge.merging.methods.slerp import slerp

SHAPES = [(7,), (1,), (5, 6), (4, 3, 5), (1, 9), (9, 1)]
shapes, seeds = st.sampled_from(SHAPES), st.integers(0, 10_000)
spreads = st.sampled_from([1e-3, 0.1, 1.0, 30.0])
fractions = st.floats(-0.5, 1.5)


def family(seed, shape, spread, count):
    """(base, sources): sources that differ from the base by `spread` times its size."""
    generator = torch.Generator().manual_seed(seed)
    base, *noise = (torch.randn(shape, generator=generator) for _ in range(count + 1))
    return base, [base + spread * n for n in noise]


def merged(method, tensors, base=None, work=None, **parameters):
    made = method(Inputs(tensors, base, work=work), **parameters)
    if isinstance(made, torch.Tensor):
        return made
    out = torch.empty_like(tensors[0])
    Runner().write(made, out, work or tensors[0].dtype)
    return out


def agree(found, expected, scale=None):
    size = scale if scale is not None else float(expected.abs().max()) if expected.numel() else 0.0
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected.double(), rtol=0, atol=2e-6 * max(size, 1e-30))


def on_arc(a, b, t):
    """The point at `t` on the arc from a to b, float64 vectors."""
    cosine = (a / a.norm()).dot(b / b.norm()).clamp(-1, 1)
    theta = cosine.acos()
    return (((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin()


def sensitive(a, b, t):
    """How much larger than its result an arc's parts are: by so much float32 rounding grows."""
    theta = float((a / a.norm()).dot(b / b.norm()).clamp(-1, 1).acos())
    return float(max(a.abs().max(), b.abs().max())) * (1 + abs(t)) / max(math.sin(theta), 1e-3)


def flat(tensors):
    return [t.double().flatten() for t in tensors]


def test_unit_axes_at_one_half():
    axes = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    wanted = torch.tensor([0.70710678, 0.70710678])
    agree(merged(slerp, axes[1:], axes[0], t=0.5), wanted)
    agree(merged(nuslerp, axes, weight=[1, 1], nuslerp_flatten=True, nuslerp_row_wise=False), wanted)
    agree(merged(multislerp, axes, weight=[1, 1], normalize_weights=True, eps=1e-8), wanted)
    agree(merged(karcher, axes, max_iter=10, tol=1e-5), wanted)


@given(seeds, spreads, fractions)
def test_slerp_is_the_point_on_the_arc(seed, spread, t):
    base, (other,) = family(seed, (11,), spread, 1)
    a, b = flat([base, other])
    cosine = a.dot(b) / a.norm() / b.norm()
    expected = (1 - t) * a + t * b if abs(cosine) > 0.9995 else on_arc(a, b, t)
    agree(merged(slerp, [other], base, t=t), expected, sensitive(a, b, t))


@given(seeds, spreads, st.sampled_from([s for s in SHAPES if s != (1,)]), st.floats(0.1, 2), st.floats(0.1, 2))
def test_nuslerp_of_deltas_is_the_point_on_their_arc(seed, spread, shape, first, second):
    base, sources = family(seed, shape, spread, 2)
    t, (a, b) = second / (first + second), flat([s - base for s in sources])
    found = merged(nuslerp, sources, base, weight=[first, second], nuslerp_flatten=True, nuslerp_row_wise=False)
    expected = base.double() + on_arc(a, b, t).reshape(shape)
    agree(found, expected, sensitive(a, b, t) + float(base.abs().max()))


@settings(deadline=None)
@given(seeds, st.sampled_from([(5, 6), (4, 3, 5), (6, 300)]), st.booleans(), st.booleans(), st.floats(0, 1))
def test_nuslerp_along_one_dimension(seed, shape, first_dimension, with_base, t):
    base, sources = family(seed, shape, 1.0, 2)
    dim = 0 if first_dimension else -1
    inner = [s - base for s in sources] if with_base else sources
    a, b = (x.double().movedim(dim, -1) for x in inner)
    rows = [on_arc(x, y, t) for x, y in zip(a.flatten(0, -2), b.flatten(0, -2), strict=True)]
    scale = max(sensitive(x, y, t) for x, y in zip(a.flatten(0, -2), b.flatten(0, -2), strict=True))
    expected = torch.stack(rows).reshape(a.shape).movedim(-1, dim) + (base if with_base else 0)
    parameters = {"weight": [1 - t, t], "nuslerp_flatten": False, "nuslerp_row_wise": first_dimension}
    found = merged(nuslerp, sources, base if with_base else None, **parameters)
    agree(found, expected, scale + float(base.abs().max()))


def test_nuslerp_takes_a_tensor_of_one_dimension_whole():
    base, sources = family(0, (48,), 1.0, 2)
    made = [
        merged(nuslerp, sources, base, weight=[0.3, 0.6], nuslerp_flatten=f, nuslerp_row_wise=r)
        for f, r in [(True, False), (False, False), (False, True)]
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_nuslerp_weights_that_cancel_count_equally():
    _, sources = family(0, (4, 4), 1.0, 2)
    made = [
        merged(nuslerp, sources, weight=w, nuslerp_flatten=True, nuslerp_row_wise=False)
        for w in ([1, -1], [0, 0], [2, 2])
    ]
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[2])


def tangent_mean(vectors, weight, eps):
    """The steps of mergekit 0.1.5: mean direction, tangent vectors at it, their mean, back to the sphere. Where
    there is no mean direction, the weighted sum."""
    norms = [v.norm() for v in vectors]
    units = [v / (n + eps) for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weight, units, strict=True))
    if mean.norm() < eps:
        return sum(w * v for w, v in zip(weight, vectors, strict=True))
    mean = mean / mean.norm()
    tangent = sum(w * (u - u.dot(mean) * mean) for w, u in zip(weight, units, strict=True))
    size = tangent.norm() + eps
    direction = mean * size.cos() + tangent * size.sin() / size
    return direction * sum(w * n for w, n in zip(weight, norms, strict=True))


@given(
    seeds,
    st.sampled_from([0.1, 1.0]),
    st.lists(st.floats(0.05, 2), min_size=2, max_size=5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-8, 1e-3, 0.5]),
)
def test_multislerp_is_the_tangent_mean(seed, spread, weight, normalize, with_base, eps):
    base, sources = family(seed, (6, 40), spread, len(weight))
    used = [w / sum(weight) for w in weight] if normalize else weight
    vectors = flat([s - base for s in sources] if with_base else sources)
    expected = tangent_mean(vectors, used, eps).reshape(base.shape) + (base if with_base else 0)
    found = merged(
        multislerp, sources, base if with_base else None, weight=weight, normalize_weights=normalize, eps=eps
    )
    agree(found, expected)


def test_multislerp_of_directions_that_cancel_is_the_weighted_sum():
    _, (a, b) = family(0, (5, 4), 1.0, 2)
    for weight in ([0.5, 0.5], [1.0, 1.0]):
        found = merged(multislerp, [a, -3 * a], weight=weight, normalize_weights=True, eps=1e-8)
        agree(found, -a)
    found = merged(multislerp, [a + b, b - a, -2 * b], weight=[1, 1, 1], normalize_weights=False, eps=1e-8)
    assert found.isfinite().all()
    three = [torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 0.75**0.5]), torch.tensor([-1.0, -(3**0.5)])]
    agree(merged(multislerp, three, weight=[1, 1, 1], normalize_weights=False, eps=1e-8), sum(three), 2.0)


def test_multislerp_refuses_weights_that_sum_to_zero():
    _, sources = family(0, (5, 4), 1.0, 2)
    with pytest.raises(TrialError, match="sum to 0"):
        merged(multislerp, sources, weight=[1, -1], normalize_weights=True, eps=1e-8)


def karcher_steps(vectors, steps):
    """Mean direction after some steps, by vectors."""
    units = [v / v.norm() for v in vectors]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(steps):
        tangent = torch.zeros_like(mean)
        for u in units:
            theta = u.dot(mean).clamp(-1, 1).acos()
            tangent += theta / theta.sin() * (u - u.dot(mean) * mean) / len(units)
        mean = tangent.norm().cos() * mean + tangent.norm().sin() * tangent / tangent.norm()
    return mean


@given(seeds, st.integers(2, 5), st.integers(1, 4), st.sampled_from([0.5, 2.0]))
def test_karcher_takes_the_steps_of_the_gradient(seed, count, steps, spread):
    _, sources = family(seed, (8, 40), spread, count)
    vectors = flat(sources)
    size = sum(float(v.norm()) for v in vectors) / count
    expected = size * karcher_steps(vectors, steps)
    agree(merged(karcher, sources, max_iter=steps, tol=1e-12), expected.reshape(8, 40))


@given(seeds, st.integers(2, 5))
def test_karcher_ends_where_the_tangents_cancel(seed, count):
    _, sources = family(seed, (8, 40), 1.0, count)
    found = merged(karcher, [s.double() for s in sources], max_iter=100, tol=1e-10).flatten()
    size = sum(float(s.double().norm()) for s in sources) / count
    assert float(found.norm()) == pytest.approx(size, rel=1e-9)
    mean, tangent = found / found.norm(), torch.zeros(320, dtype=torch.float64)
    for v in flat(sources):
        cosine = (v / v.norm()).dot(mean)
        tangent += cosine.acos() / cosine.acos().sin() * (v / v.norm() - cosine * mean)
    assert float(tangent.norm()) < 1e-7


def test_karcher_of_models_without_a_direction():
    _, (a, b) = family(0, (5, 4), 1.0, 2)
    zero = torch.zeros_like(a)
    agree(merged(karcher, [zero, zero], max_iter=10, tol=1e-5), zero)
    agree(merged(karcher, [zero, a], max_iter=10, tol=1e-5), a / 2)
    agree(merged(karcher, [a, 2 * a], max_iter=10, tol=1e-5), 1.5 * a)
    for tol in (0.0, 1e-5):
        agree(merged(karcher, [a, a, a], max_iter=10, tol=tol), a)
        agree(merged(karcher, [a, -a], max_iter=10, tol=tol), a)
        assert merged(karcher, [a, -a, b], max_iter=10, tol=tol).isfinite().all()


@given(seeds, st.floats(0.1, 10))
def test_karcher_of_antipodes_is_the_first_direction(seed, factor):
    _, (a, b) = family(seed, (5, 4), 1.0, 2)
    opposite = (-factor * a.double()).float()
    found = merged(karcher, [a, opposite], max_iter=10, tol=1e-5)
    agree(found, a * (1 + factor) / 2)
    assert merged(karcher, [a, opposite, b], max_iter=10, tol=1e-5).isfinite().all()


def stock(base, sources):
    """Model Stock of vectors."""
    count, deltas = len(sources), [s - base for s in sources]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = sum(float(deltas[i].dot(deltas[j]) / (deltas[i].norm() * deltas[j].norm())) for i, j in pairs) / len(pairs)
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * sum(sources) / count + (1 - t) * base


def related(seed, shape, count):
    """Sources whose deltas point more or less the same way, as fine-tunes do: the ratio is far from its pole."""
    base, noise = family(seed, shape, 1.0, count + 1)
    return base, [noise[0] + 0.5 * (n - base) for n in noise[1:]]


@settings(deadline=None)
@given(seeds, st.integers(2, 5), st.sampled_from([(64,), (6, 32), (2, 3, 32)]), st.booleans())
def test_model_stock_is_the_papers_interpolation(seed, count, shape, filter_wise):
    base, sources = related(seed, shape, count)
    rows = [t.double().reshape(-1, shape[-1]) if filter_wise else t.double().reshape(1, -1) for t in (base, *sources)]
    expected = torch.stack([stock(row[0], row[1:]) for row in zip(*rows, strict=True)]).reshape(shape)
    agree(merged(model_stock, sources, base, filter_wise=filter_wise), expected, 10 * float(base.abs().max()))


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_of_opposite_models_keeps_the_base(filter_wise):
    base, (a,) = family(0, (6, 32), 1.0, 1)
    moved = a - base
    assert torch.allclose(
        merged(model_stock, [base + moved, base - moved], base, filter_wise=filter_wise), base, atol=1e-5
    )


@pytest.mark.parametrize("filter_wise", [False, True])
def test_short_deltas_stay_near_the_base(filter_wise):
    """Two equal deltas have cosine 1, but a product of norms below 1e-6 counts as 1e-6 (mergekit)."""
    base = torch.zeros(1, 4)
    source = torch.tensor([[1e-4, 0, 0, 0]])
    ratio = 2 * 0.01 / 1.01  # cos = 1e-8 / 1e-6
    agree(merged(model_stock, [source, source], base, filter_wise=filter_wise), ratio * source, 1e-4)


ROW_WISE = [
    (nuslerp, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": False}),
    (nuslerp, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    (model_stock, 3, {"filter_wise": True}),
]
WHOLE = [
    (nuslerp, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": True, "nuslerp_row_wise": False}),
    (multislerp, 3, {"weight": [0.3, 0.9, 0.2], "normalize_weights": True, "eps": 1e-8}),
    (model_stock, 3, {"filter_wise": False}),
]


@pytest.mark.parametrize(("method", "count", "parameters"), ROW_WISE)
@pytest.mark.parametrize("shape", [(700, 131), (1, 70_000), (3, 40_000), (15_000, 3), (20, 30, 70)])
def test_rows_have_equal_bits_on_any_number_of_threads_and_in_any_block(method, count, parameters, shape, monkeypatch):
    base, sources = family(0, shape, 0.1, count)
    before, found = torch.get_num_threads(), []
    try:
        for threads, elements in ((1, 1 << 20), (2, 1 << 20), (4, 1 << 20), (2, 5_000)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(geometry, "_ELEMENTS", elements)
            found.append(merged(method, sources, base, **parameters))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(("method", "count", "parameters"), ROW_WISE + WHOLE)
@pytest.mark.parametrize("shape", [(0,), (1,), (0, 5), (5, 0), (1, 1), (4, 1), (1, 4)])
def test_no_elements_few_elements_and_no_change(method, count, parameters, shape):
    base, sources = family(0, shape, 0.1, count)
    found = merged(method, sources, base, **parameters)
    assert found.shape == shape
    assert found.isfinite().all()
    assert torch.equal(merged(method, [base] * count, base, **parameters), base)


def test_models_without_length_and_without_eps():
    zero = torch.zeros(3, 4)
    assert torch.equal(merged(multislerp, [zero] * 3, weight=[1, 1, 1], normalize_weights=True, eps=0.0), zero)
    assert torch.equal(merged(nuslerp, [zero] * 2, weight=[1, 1], nuslerp_flatten=False, nuslerp_row_wise=False), zero)


def test_one_model_alone_comes_back():
    base, (a,) = family(0, (4, 3), 1.0, 1)
    assert torch.equal(merged(karcher, [a], max_iter=10, tol=1e-5), a)
    assert torch.equal(merged(multislerp, [a], base, weight=[0.2], normalize_weights=False, eps=1e-8), a)


def test_a_16_bit_delta_is_rounded_as_mergekit_rounds_it():
    base, sources = family(0, (6, 40), 1e-3, 3)
    base, sources = base.bfloat16(), [s.bfloat16() for s in sources]
    vectors = flat([(s - base) for s in sources])
    expected = tangent_mean(vectors, [1.0, 1.0, 1.0], 1e-8).reshape(6, 40) + base
    found = merged(multislerp, sources, base, weight=[1, 1, 1], normalize_weights=False, eps=1e-8)
    assert torch.allclose(found.double(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("cosine", [1.0, -1.0, math.nan, 1 - 2**-26])
def test_an_arc_without_an_angle_is_a_line(cosine):
    assert arc(cosine, 0.25, 1 - 2**-25) == (0.75, 0.25)


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2, 4095, 4096, 4097, 9000]))
@settings(max_examples=25, deadline=None)
def test_by_rows_gives_every_row_its_inner_products(seed, rows, count, width):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(2, rows, width, generator=generator) for _ in range(count)]
    found = by_rows([v.double() for v in vectors], lambda products: [p for row in products for p in row])
    stacked = torch.stack(vectors, dim=-2).double()
    expected = stacked @ stacked.transpose(-1, -2)
    assert torch.allclose(found, expected.flatten(-2), rtol=1e-12, atol=1e-9)


@given(seeds, st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_the_length_of_a_combination(seed, coefficients):
    vectors = flat(family(seed, (9,), 1.0, 2)[1] + [torch.ones(9)])
    products = [[float(a.dot(b)) for b in vectors] for a in vectors]
    combined = sum(c * v for c, v in zip(coefficients, vectors, strict=True))
    assert length(products, coefficients) == pytest.approx(float(combined.norm()), abs=1e-6)
