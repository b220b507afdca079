"""The numbers: sums, masks, trimming, and the methods' formulas."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merge import arithmetic
from evomerge.merge.arithmetic import delta, dot, total, total_magnitude
from evomerge.merge.masks import Draw
from evomerge.merge.methods.dare import dare_linear
from evomerge.merge.methods.linear import linear
from evomerge.merge.methods.slerp import slerp
from evomerge.merge.methods.task_arithmetic import task_arithmetic
from evomerge.merge.methods.ties import ties
from evomerge.merge.sparsify import drop, largest, trim

sizes = st.integers(1, 300)
seeds = st.integers(0, 2**31)
densities = st.floats(0.0, 1.0)
floats = st.floats(-2.0, 2.0, width=32)


def noise(count, seed, dtype=torch.float32):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


class TestSums:
    @given(sizes, seeds)
    def test_total_is_the_sum(self, count, seed):
        values = noise(count, seed)
        assert total(values) == pytest.approx(math.fsum(values.tolist()), abs=1e-12)
        assert total_magnitude(values) == pytest.approx(math.fsum(map(abs, values.tolist())), abs=1e-12)
        assert dot(values, values) == pytest.approx(math.fsum(v * v for v in values.tolist()), rel=1e-12)

    def test_bits_do_not_depend_on_threads(self):
        values = noise(1_500_001, 3) * torch.logspace(-6, 6, 1_500_001)
        before = torch.get_num_threads()
        try:
            found = set()
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.add((total(values), total_magnitude(values), dot(values, values.flip(0))))
        finally:
            torch.set_num_threads(before)
        assert len(found) == 1

    def test_bits_do_not_depend_on_the_block(self, monkeypatch):
        values = noise(300_001, 4)
        first = total(values)
        monkeypatch.setattr(arithmetic, "_BLOCK", 3 * arithmetic._ROW)
        assert total(values) == first

    def test_nothing(self):
        assert total(torch.zeros(0)) == 0.0


class TestMasks:
    @given(seeds, st.integers(0, 5), densities, densities)
    @settings(max_examples=30)
    def test_lower_density_keeps_a_subset(self, seed, source, first, second):
        low, high = sorted((first, second))
        draw, like = Draw(seed, "model.layers.0.mlp.up_proj.weight"), torch.empty(50, 40)
        few, many = draw.mask(source, low, like), draw.mask(source, high, like)
        assert bool((few <= many).all())

    @given(seeds, st.integers(1, 999), st.floats(0.05, 0.95))
    @settings(max_examples=30)
    def test_any_part_can_be_drawn_alone(self, seed, chunk, density):
        draw, like = Draw(seed, "t"), torch.empty(1000)
        assert torch.equal(draw.mask(0, density, like), draw.mask(0, density, like, chunk=chunk))
        assert torch.equal(draw.words(0, 0, 1000)[chunk:], draw.words(0, chunk, 1000))

    @pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.9])
    def test_the_share_that_is_kept(self, density):
        count = 400_000
        kept = float(Draw(7, "t").mask(0, density, torch.empty(count)).float().mean())
        assert abs(kept - density) < 4 * math.sqrt(density * (1 - density) / count)

    def test_sources_tensors_seeds_and_neighbours_are_independent(self):
        like = torch.empty(400_000)
        first = Draw(0, "a").mask(0, 0.5, like)
        others = [Draw(0, "a").mask(1, 0.5, like), Draw(0, "b").mask(0, 0.5, like), Draw(1, "a").mask(0, 0.5, like)]
        others += [first.roll(n) for n in (1, 2, 48, 4096)]
        for other in others:
            both = float((first & other).float().mean())
            assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400_000)

    def test_the_hash_is_pinned(self):
        """Recipes that were exported rebuild their weights only while these numbers stay."""
        assert Draw(0, "model.norm.weight").words(0, 0, 4).tolist() == PINNED
        assert Draw(0, "model.norm.weight").words(0, 2, 4).tolist() == PINNED[2:]

    def test_elements_beyond_31_bits_have_numbers_of_their_own(self):
        edge = 1 << 31
        words = Draw(0, "t").words(0, edge - 3, edge + 3)
        assert words.shape == (6,)
        assert len(set(words.tolist())) == 6


PINNED = [1808629004, -1669819255, -228910910, 1546577705]


class TestTrim:
    def test_the_article_s_numbers(self):
        kept = trim(torch.tensor([0.1, -0.5, 0.02, 0.8]), 0.5)
        assert kept.tolist() == pytest.approx([0, -0.5, 0, 0.8])

    @given(sizes, seeds, densities)
    def test_exactly_k_are_kept_and_none_larger_is_dropped(self, count, seed, density):
        values = noise(count, seed).mul(4).round()  # many equals
        mask = largest(values, density)
        k = max(1, int(density * count)) if density > 0 else 0
        assert int(mask.sum()) == (k if density < 1 else count)
        if 0 < k < count:
            assert values[mask].abs().min() >= values[~mask].abs().max()

    @given(sizes, seeds, st.floats(0.01, 0.99))
    def test_equals_at_the_threshold_go_to_the_lower_index(self, count, seed, density):
        values = noise(count, seed).mul(2).round()
        order = sorted(range(count), key=lambda i: (-abs(float(values[i])), i))
        expected = torch.zeros(count, dtype=torch.bool)
        expected[order[: max(1, int(density * count))]] = True
        assert torch.equal(largest(values, density), expected)

    @given(sizes, seeds, densities)
    def test_rescaling_restores_the_l1_norm(self, count, seed, density):
        values = noise(count, seed)
        for kept in (trim(values, density, rescale=True), drop(values, density, Draw(seed, "t"), 0)):
            if bool(kept.any()):
                assert total_magnitude(kept) == pytest.approx(total_magnitude(values), rel=1e-5)

    def test_masks_of_16_bit_deltas_do_not_depend_on_threads(self):
        base, source = noise(200_000, 0, torch.bfloat16), noise(200_000, 1, torch.bfloat16)
        before, found = torch.get_num_threads(), set()
        try:
            for threads in (1, 3, 4):
                torch.set_num_threads(threads)
                mask = largest(delta(source, base), 0.37)
                found.add((int(mask.sum()), int(mask.nonzero().sum())))
        finally:
            torch.set_num_threads(before)
        assert len(found) == 1
        assert next(iter(found))[0] == int(0.37 * 200_000)


class TestMethods:
    def test_slerp_of_unit_axes(self):
        found = slerp([torch.tensor([0.0, 1.0])], torch.tensor([1.0, 0.0]), t=0.5)
        assert found.tolist() == pytest.approx([0.7071, 0.7071], abs=1e-4)

    @given(sizes, seeds, st.floats(0, 1))
    def test_slerp_of_collinear_models_is_straight(self, count, seed, t):
        base = noise(count, seed)
        assert torch.allclose(slerp([base * 2], base, t=t), base * (1 + t), rtol=1e-5, atol=1e-6)

    def test_slerp_of_zeros_is_straight(self):
        assert slerp([torch.ones(3)], torch.zeros(3), t=0.25).isfinite().all()

    @given(sizes, seeds, floats)
    def test_dense_ties_of_one_source_is_base_plus_weighted_delta(self, count, seed, weight):
        base, source = noise(count, seed), noise(count, seed + 1)
        found = ties([source], base, weight=[weight], density=[1.0], normalize=False, rescale=False, lambda_=1.0)
        assert torch.allclose(found, base + weight * (source - base), rtol=0, atol=1e-6)

    @given(sizes, seeds)
    def test_ties_adds_only_deltas_of_the_elected_sign(self, count, seed):
        base, a, b = torch.zeros(count), noise(count, seed), noise(count, seed + 1)
        found = ties([a, b], base, weight=[1, 1], density=[1, 1], normalize=False, rescale=False, lambda_=1.0)
        for value, x, y in zip(found.tolist(), a.tolist(), b.tolist(), strict=True):
            sign = 1 if x + y >= 0 else -1
            assert value == pytest.approx(sum(v for v in (x, y) if v * sign > 0), abs=1e-6)

    def test_ties_divides_by_the_weights_that_took_part(self):
        base, a, b = torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([3.0, -0.5])
        found = ties([a, b], base, weight=[1, 3], density=[1, 1], normalize=True, rescale=False, lambda_=1.0)
        assert found.tolist() == pytest.approx([(1 + 9) / 4, -0.5])

    @given(sizes, seeds, floats, floats)
    def test_task_arithmetic_is_linear_in_its_deltas(self, count, seed, v, w):
        base, a, b = noise(count, seed), noise(count, seed + 1), noise(count, seed + 2)
        found = task_arithmetic([a, b], base, weight=[v, w], normalize=False, lambda_=0.5)
        assert torch.allclose(found, base + 0.5 * (v * (a - base) + w * (b - base)), rtol=0, atol=1e-5)

    def test_weights_that_cancel_do_not_divide(self):
        found = task_arithmetic(
            [torch.ones(2), torch.zeros(2)], torch.zeros(2), weight=[1.0, -1.0], normalize=True, lambda_=1.0
        )
        assert found.tolist() == [1.0, 1.0]

    def test_linear_averages_in_float32_and_rounds_nowhere(self):
        a, b = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
        found = linear([a, b], None, weight=[1.0, 1.0], normalize=True)
        assert found.dtype == torch.float32
        assert found.item() == 1.00390625  # between two bfloat16 neighbours

    def test_dare_is_unbiased_over_seeds(self):
        base, source = torch.zeros(64), torch.linspace(0.5, 1.5, 64)
        runs = [
            dare_linear(
                [source], base, weight=[1.0], density=[0.5], normalize=False, rescale=True, lambda_=1.0,
                draw=Draw(seed, "t"),
            )
            for seed in range(400)
        ]  # fmt: skip
        means = torch.stack(runs).mean(0) / source
        assert statistics.fmean(means.tolist()) == pytest.approx(1.0, abs=0.05)
        assert float((means - 1).abs().max()) < 0.25
