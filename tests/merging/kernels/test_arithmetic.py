"""The numbers that all methods share: rounding, sums, random masks, and exact ranks of magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels import arithmetic, inputs, magnitudes
from evomerge.merging.kernels.arithmetic import delta, dot, fixed_point, fixed_scale, gram
from evomerge.merging.kernels.deltas import middle_ranks, trim_count, values_at, window
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.magnitudes import Cut, Magnitudes
from evomerge.merging.kernels.masks import BLOCK, Draw, limit, limits
from evomerge.merging.kernels.runner import Runner

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
sizes = st.integers(1, 300)
seeds = st.integers(0, 2**31)
densities = st.floats(0.0, 1.0)


def noise(count, seed, dtype=torch.float32):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


class TestRounding:
    @given(sizes, seeds)
    def test_a_16_bit_delta_is_the_stored_dtype_s(self, count, seed):
        source, base = noise(count, seed, torch.bfloat16), noise(count, seed + 1, torch.bfloat16)
        assert torch.equal(delta(source, base), (source - base).float())
        assert torch.equal(delta(source.float(), base.float()), source.float() - base.float())


class TestSums:
    @given(sizes, seeds)
    def test_dot_is_the_inner_product(self, count, seed):
        a, b = noise(count, seed), noise(count, seed + 1)
        exact = math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
        assert dot(a, b) == pytest.approx(exact, rel=1e-12, abs=1e-12)

    def test_gram_has_all_products(self):
        vectors = [noise(10_000, seed) for seed in range(3)]
        found = gram(lambda span: [v[span] for v in vectors], 10_000)
        assert found == tuple(tuple(dot(a, b) for b in vectors) for a in vectors)

    @given(sizes, seeds, st.sampled_from([torch.float32, torch.float64]))
    def test_fixed_point_is_close_and_the_same_in_any_order(self, count, seed, dtype):
        values = noise(count, seed, dtype).abs() * 3e-4
        scale = fixed_scale(float(values.max()))
        assert bool((fixed_point(values, scale) % 1 == 0).all())
        total = fixed_point(values, scale).sum(dtype=torch.float64)
        assert float(total) == float(fixed_point(values.flip(0), scale).cumsum(0, dtype=torch.float64)[-1])
        assert float(total) / scale == pytest.approx(math.fsum(values.tolist()), rel=1e-5)

    @pytest.mark.parametrize("largest", [0.0, 1e-40, 2**-126, 1e-3, 1.0, 65504.0, 3e38, math.inf])
    def test_any_largest_magnitude_has_a_unit(self, largest):
        scale = fixed_scale(largest)
        assert scale > 0
        assert math.log2(scale) == int(math.log2(scale))
        assert math.isinf(largest) or float(fixed_point(torch.tensor([largest]), scale)) <= 2**30

    def test_bits_do_not_depend_on_threads(self):
        values = noise(1_500_001, 3) * torch.logspace(-6, 6, 1_500_001)
        before, found = torch.get_num_threads(), set()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.add(
                    (
                        float(fixed_point(values.abs(), fixed_scale(1e7)).sum(dtype=torch.float64)),
                        dot(values, values.flip(0)),
                    )
                )
        finally:
            torch.set_num_threads(before)
        assert len(found) == 1

    def test_bits_do_not_depend_on_the_block(self, monkeypatch):
        values = noise(300_001, 4)
        first = dot(values, values)
        monkeypatch.setattr(arithmetic, "_BLOCK", 3 * arithmetic._ROW)
        assert dot(values, values) == first

    def test_nothing(self):
        assert dot(torch.zeros(0), torch.zeros(0)) == 0.0


class TestMasks:
    @given(seeds, st.integers(0, 5), densities, densities)
    @settings(max_examples=30)
    def test_lower_density_keeps_a_subset(self, seed, source, first, second):
        low, high = sorted((first, second))
        draw, like = Draw(seed, "model.layers.0.mlp.up_proj.weight"), torch.empty(50, 40)
        few, many = draw.mask(source, low, like), draw.mask(source, high, like)
        assert bool((few <= many).all())

    @given(seeds, st.integers(1, 999))
    @settings(max_examples=30)
    def test_any_part_can_be_drawn_alone(self, seed, start):
        draw = Draw(seed, "t")
        assert torch.equal(draw.words(0, 0, 1000)[start:], draw.words(0, start, 1000))

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
        words = Draw(0, "t").words(0, BLOCK - 3, BLOCK + 3)
        assert words.shape == (6,)
        assert len(set(words.tolist())) == 6
        ints = inputs.mask_ints(Draw(0, "t"), [0.5, 0.5])(BLOCK + 7)
        assert ints[0] == [7, 7]
        assert [ints[1][1], ints[2][1]] == list(Draw(0, "t").keys(1, 1))

    @given(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=20))
    def test_many_densities_have_each_its_own_limit(self, many):
        assert limits(torch.tensor(many, dtype=torch.float64)).tolist() == [limit(d) for d in many]

    @given(sizes, seeds, densities, st.integers(1, 50))
    @settings(max_examples=50, deadline=None)
    def test_a_merge_keeps_what_the_mask_says(self, count, seed, density, chunk):
        """The kernel of DARE and `Draw.mask` are one rule, in any chunks."""
        base, source, draw = torch.zeros(count), torch.ones(count), Draw(seed, "t")
        options = (("work", torch.float32), ("keep", "drawn"), ("elect", False), ("normalize", False))
        blend = Blend(Kernel("deltas", options), base, [source], [[1.0]] * 3, inputs.mask_ints(draw, [density]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evomerge.merging.kernels.runner._CACHED", chunk)
            found = torch.empty(count)
            Runner().write(blend, found, torch.float32)
        expected = draw.mask(0, density, base).float()
        # the one hash that even density 0 keeps, one of 2^32, is left to the method
        assert torch.equal(found, expected) or density == 0


PINNED = [664036635, 65835812, 1588979574, -2053594188]


def block(values):
    """As `Inputs` gives a delta to its histogram: chunks of their own."""
    return lambda span: values[span].clone()


def kept_by(cut, values):
    size, index = values.abs(), torch.arange(values.numel())
    return (size > cut.value) | ((size == cut.value) & (index < cut.position))


def largest(values, keep):
    """Which elements have the `keep` largest magnitudes, by a stable sort."""
    order = torch.sort(values.abs().double(), descending=True, stable=True).indices
    expected = torch.zeros(values.numel(), dtype=torch.bool)
    expected[order[:keep]] = True
    return expected


values_of = st.builds(
    lambda count, seed, grain, scale: (noise(count, seed) * grain).round() / max(grain, 1) * scale,
    sizes,
    seeds,
    st.sampled_from([0.0, 0.3, 1.0, 4.0, 1e6]),  # all zeros, nearly all, many equals, ..., none
    st.sampled_from([1e-6, 1e-3, 1.0, 100.0]),
)


class TestMagnitudes:
    @given(values_of, densities, st.sampled_from(DTYPES), st.sampled_from([1, 7, 64, 1000]))
    @settings(max_examples=200, deadline=None)
    def test_a_cut_is_a_stable_sort_s(self, values, density, dtype, chunk):
        """Exactly as many as asked are kept, none smaller than one that is dropped, equals by index."""
        values = values.to(dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(magnitudes, "_CHUNKS", (chunk, chunk))
            patch.setattr(magnitudes, "_SCANNED", 3 * chunk)
            known = Magnitudes(block(values), values.numel(), dtype)
            for keep in {0, 1, int(density * values.numel()), values.numel() - 1, values.numel()}:
                assert torch.equal(kept_by(known.cut(keep, block(values)), values), largest(values, keep))
        assert known.nonzero == int((values != 0).sum())
        assert known.largest == float(values.abs().max())

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("value", [0.0, -0.5])
    def test_equals_only(self, dtype, value):
        values = torch.full((70_000,), value, dtype=dtype)
        known = Magnitudes(block(values), 70_000, dtype)
        for keep in (1, 65_535, 65_536, 69_999):
            assert torch.equal(kept_by(known.cut(keep, block(values)), values), torch.arange(70_000) < keep)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_many_chunks(self, dtype):
        values = (noise(200_000, 5) * 8).round().to(dtype) / 8
        known = Magnitudes(block(values), 200_000, dtype)
        for keep in (1, 10, 65_472, 74_000, 131_000, 199_999):
            assert torch.equal(kept_by(known.cut(keep, block(values)), values), largest(values, keep))

    @given(values_of, densities, st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    @settings(deadline=None)
    def test_the_norm_of_what_is_kept(self, values, density, dtype):
        base = torch.zeros_like(values, dtype=dtype)
        delta_inputs = Inputs([values.to(dtype)], base)
        keep = int(density * values.numel())
        for drop in (0, keep // 3):
            kept = largest(values.to(dtype), keep) & ~largest(values.to(dtype), drop)
            expected = math.fsum(values.to(dtype)[kept].abs().double().tolist())
            resolution = float(values.abs().max()) * values.numel() * 2**-20
            assert delta_inputs.kept_norm(0, drop, keep) == pytest.approx(expected, rel=1e-5, abs=resolution)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_cuts_of_several_deltas_are_located_together(self, dtype):
        """Deltas of several lengths, with few and with many elements of one magnitude in a chunk."""
        deltas = [
            ((noise(count, seed) * grain).round() / grain).to(dtype)
            for seed, (count, grain) in enumerate([(9_000, 1e3), (9_000, 3.0), (20_001, 64.0), (5_000, 0.4)])
        ]
        known = [Magnitudes(block(values), values.numel(), dtype) for values in deltas]
        pairs = [(i, keep) for i, values in enumerate(deltas) for keep in (1, 2_000, 4_500, values.numel() - 1)]
        cuts = [known[i].cut(keep, block(deltas[i])) for i, keep in pairs]
        magnitudes.locate(cuts)
        for (i, keep), cut in zip(pairs, cuts, strict=True):
            assert torch.equal(kept_by(cut, deltas[i]), largest(deltas[i], keep))

    def test_nothing(self):
        known = Magnitudes(block(torch.zeros(0)), 0, torch.float32)
        assert (known.count, known.nonzero, known.largest) == (0, 0, 0.0)
        assert Inputs([torch.zeros(0)], torch.zeros(0)).norm(0) == 0.0

    def test_masks_of_16_bit_deltas_do_not_depend_on_threads(self):
        base, source = noise(200_000, 0, torch.bfloat16), noise(200_000, 1, torch.bfloat16)
        before, found = torch.get_num_threads(), set()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                cut = Inputs([source], base).cut(0, 74_000)
                found.add((cut.value, cut.position))
        finally:
            torch.set_num_threads(before)
        assert len(found) == 1
        assert int(kept_by(Cut(*found.pop()), delta(source, base)).sum()) == 74_000


class TestCounts:
    def test_the_article_s_numbers(self):
        values = torch.tensor([0.1, -0.5, 0.02, 0.8])
        delta_inputs = Inputs([values], torch.zeros(4))
        assert kept_by(delta_inputs.cut(0, trim_count(0.5, 4)), values).tolist() == [False, True, False, True]

    @given(st.integers(0, 1000), densities)
    def test_trimming_keeps_one_at_least(self, count, density):
        keep = trim_count(density, count)
        assert keep == (count if density >= 1 else max(1, int(density * count)) if density > 0 and count else 0)

    @given(st.integers(0, 1000), densities, densities)
    def test_outliers_are_spared_for_the_density(self, count, density, gamma):
        drop, keep = middle_ranks(density, gamma, count)
        assert 0 <= drop <= keep <= count
        assert keep - drop == (count if density >= 1 else int(density * count))
        assert drop == int(gamma * count) or keep == count

    @given(st.integers(1, 200), seeds, st.integers(0, 200))
    def test_a_piece_s_positions_count_from_its_start(self, count, seed, start):
        values = noise(count, seed).round()
        delta_inputs = Inputs([values], torch.zeros(count))
        kept = window(delta_inputs, [(count + 1) // 2], [count // 4])
        if kept["keep"] == "all":
            return
        for row, (now, then) in enumerate(zip(kept["ints"](0), kept["ints"](start), strict=True)):
            assert then == [max(0, now[0] - start)], row

    @given(values_of, seeds, st.sampled_from([torch.float32, torch.float64]))
    def test_ranked_is_a_sort(self, values, seed, dtype):
        values = values.to(dtype)
        ranks = [0, values.numel() // 2, seed % values.numel(), values.numel() - 1]
        assert torch.equal(values_at(values, ranks), values.sort().values[ranks])
