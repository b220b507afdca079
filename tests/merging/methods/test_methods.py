"""The methods' formulas, against implementations that say them word for word."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels import runner
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.methods.arcee_fusion import _divergence
from evomerge.testing.methods import merge

sizes = st.integers(1, 120)
seeds = st.integers(0, 2**31)
shares = st.floats(0.0, 1.0)
weights = st.floats(-2.0, 2.0, width=32)


def noise(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ranked(values):
    """Places from the largest magnitude down, equals by place."""
    return sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))


def consensus(deltas, weight, normalize):
    """The sum of weighted deltas that agree in sign with it, element by element."""
    merged = []
    for row in zip(*deltas, strict=True):
        changes = [w * d for w, d in zip(weight, row, strict=True)]
        sign = 1 if sum(changes) >= 0 else -1
        took_part = [(c, w) for c, w in zip(changes, weight, strict=True) if c * sign > 0]
        divisor = sum(w for _, w in took_part) if normalize else 1.0
        merged.append(sum(c for c, _ in took_part) / (divisor or 1.0))
    return merged


class TestTheArticleSNumbers:
    def test_a_weighted_sum(self):
        base, sources = torch.tensor([2.0]), [torch.tensor([2.5]), torch.tensor([1.5])]
        assert merge("task_arithmetic", sources, base, weight=[0.6, 0.4]).item() == pytest.approx(2.1)
        assert merge("linear", sources, None, weight=[0.6, 0.4]).item() == pytest.approx(2.1)

    def test_trim(self):
        found = merge("ties", [torch.tensor([0.1, -0.5, 0.02, 0.8])], torch.zeros(4), weight=1.0, density=0.5)
        assert found.tolist() == pytest.approx([0, -0.5, 0, 0.8])

    def test_disjoint_merge(self):
        """Trimmed to two elements each; where signs differ, the mean of those that agree with the sum."""
        deltas = [[0.1, 1.0, 0.02, 0.8], [0.05, 1.2, -0.03, 0.7], [0.02, -0.5, 0.1, -0.4]]
        found = merge("ties", [torch.tensor(d) for d in deltas], torch.zeros(4), weight=1.0, density=0.5)
        assert found.tolist() == pytest.approx([0, 1.1, 0, 0.75])

    def test_slerp_of_unit_axes(self):
        found = merge("slerp", [torch.tensor([0.0, 1.0])], torch.tensor([1.0, 0.0]), t=0.5)
        assert found.tolist() == pytest.approx([0.7071, 0.7071], abs=1e-4)


class TestLinear:
    def test_averages_in_float32_and_rounds_once(self):
        a, b = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
        found = merge("linear", [a, b], None, torch.float32, weight=1.0)
        assert found.item() == 1.00390625  # between two bfloat16 neighbours

    @given(sizes, seeds, shares)
    def test_slerp_of_collinear_models_is_straight(self, count, seed, t):
        base = noise(count, seed)
        assert torch.allclose(merge("slerp", [base * 2], base, t=t), base * (1 + t), rtol=1e-5, atol=1e-6)

    def test_slerp_of_zeros_is_straight(self):
        assert merge("slerp", [torch.ones(3)], torch.zeros(3), t=0.25).isfinite().all()

    @given(sizes, seeds, weights, weights)
    def test_task_arithmetic_is_linear_in_its_deltas(self, count, seed, v, w):
        base, a, b = noise(count, seed), noise(count, seed + 1), noise(count, seed + 2)
        found = merge("task_arithmetic", [a, b], base, weight=[v, w], **{"lambda": 0.5})
        assert torch.allclose(found, base + 0.5 * (v * (a - base) + w * (b - base)), rtol=0, atol=1e-5)

    def test_weights_that_cancel_do_not_divide(self):
        sources = [torch.ones(2), torch.zeros(2)]
        found = merge("task_arithmetic", sources, torch.zeros(2), weight=[1.0, -1.0], normalize=True)
        assert found.tolist() == [1.0, 1.0]


class TestConsensus:
    def test_by_hand(self):
        """Sums 1.2, 1, 0.1, 0. The first is needed by one alone, the second by both; of opposite changes each is all
        that the other is, and nothing is nobody's."""
        deltas = [torch.tensor([1.1, 0.6, 0.5, 0.0]), torch.tensor([0.1, 0.4, -0.4, 0.0])]
        for k, expected in ((1, [1.2, 1.0, 0.1, 0]), (2, [0, 1.0, 0.1, 0]), (3, [0, 0, 0, 0])):
            found = merge("consensus", deltas, torch.zeros(4), weight=1.0, threshold=0.5, k=k)
            assert found.tolist() == pytest.approx(expected)

    @given(sizes, seeds, st.lists(weights, min_size=3, max_size=3), st.lists(shares, min_size=3, max_size=3))
    def test_the_formula(self, count, seed, weight, threshold):
        deltas = [noise(count, seed + i) for i in range(3)]
        changes = [w * d.double() for w, d in zip(weight, deltas, strict=True)]
        total = sum(changes)
        margins = [c.abs() - t * (total - c).abs() for c, t in zip(changes, threshold, strict=True)]
        kept = sum((margin > 0).int() for margin in margins) >= 2
        found = merge("consensus", deltas, torch.zeros(count), weight=weight, threshold=threshold, **{"lambda": 1.5})
        clear = torch.stack(margins).abs().amin(0) > 1e-5  # else rounding decides
        assert torch.allclose(found.double()[clear], (1.5 * total * kept)[clear], rtol=1e-5, atol=1e-5)


class TestStitch:
    def test_by_hand(self):
        """Two elements of each are kept; the one that both keep is averaged."""
        deltas = [torch.tensor([1.0, -3.0, 0.1, 0.0]), torch.tensor([0.2, 5.0, -2.0, 0.1])]
        found = merge("stitch", deltas, torch.zeros(4), weight=1.0, density=0.5)
        assert found.tolist() == pytest.approx([1.0, 1.0, -2.0, 0.0])
        found = merge("stitch", deltas, torch.zeros(4), weight=[0.5, 2.0], density=[0.5, 0.25], **{"lambda": 2.0})
        assert found.tolist() == pytest.approx([1.0, 8.5, 0.0, 0.0])

    @given(sizes, seeds, st.lists(shares, min_size=3, max_size=3))
    def test_the_formula(self, count, seed, density):
        deltas = [noise(count, seed + i).round(decimals=1) for i in range(3)]  # with equals
        total, keepers = [0.0] * count, [0] * count
        for delta, share in zip(deltas, density, strict=True):
            row = delta.tolist()
            for i in ranked(row)[: max(1, int(share * count)) if share > 0 else 0]:
                total[i] += 0.7 * row[i]
                keepers[i] += 1
        expected = [t / max(1, k) for t, k in zip(total, keepers, strict=True)]
        found = merge("stitch", deltas, torch.zeros(count), weight=0.7, density=density)
        assert torch.allclose(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


class TestTies:
    @given(sizes, seeds, weights)
    def test_dense_and_alone_it_is_base_plus_weighted_delta(self, count, seed, weight):
        base, source = noise(count, seed), noise(count, seed + 1)
        found = merge("ties", [source], base, weight=weight, density=1.0, normalize=False)
        assert torch.allclose(found, base + weight * (source - base), rtol=0, atol=1e-6)

    @given(sizes, seeds, st.lists(weights, min_size=3, max_size=3), shares, st.booleans())
    def test_trim_elect_merge(self, count, seed, weight, density, normalize):
        deltas = [noise(count, seed + i).round(decimals=1) for i in range(3)]  # with equals
        keep = max(1, int(density * count)) if density > 0 else 0
        trimmed = []
        for row in (delta.tolist() for delta in deltas):
            kept = set(ranked(row)[:keep])
            trimmed.append([v if i in kept else 0.0 for i, v in enumerate(row)])
        expected = consensus(trimmed, weight, normalize)
        found = merge("ties", deltas, torch.zeros(count), weight=weight, density=density, normalize=normalize)
        near = torch.tensor([abs(sum(w * d[i] for w, d in zip(weight, trimmed, strict=True))) for i in range(count)])
        clear = near > 1e-5  # else rounding elects
        assert torch.allclose(found[clear], torch.tensor(expected)[clear], rtol=1e-4, atol=1e-5)

    @given(sizes, seeds, st.floats(0.05, 1.0))
    def test_rescaling_restores_the_l1_norm(self, count, seed, density):
        source = noise(count, seed)
        for name in ("ties", "breadcrumbs", "dare_linear"):
            found = merge(
                name, [source], torch.zeros(count), weight=1.0, density=density, rescale=True, normalize=False
            )
            if bool(found.any()):
                assert float(found.abs().sum()) == pytest.approx(float(source.abs().sum()), rel=1e-4)


class TestBreadcrumbs:
    @given(sizes, seeds, shares, shares, st.booleans())
    def test_middle_magnitudes_are_kept(self, count, seed, density, gamma, elect):
        delta = noise(count, seed).round(decimals=1)
        target, top = int(density * count), int(gamma * count)
        bottom = count - target - top
        if bottom < 0:
            top, bottom = top + bottom, 0
        order = ranked(delta.tolist())
        expected = torch.zeros(count)
        kept = order if density >= 1 else order[top : count - bottom]
        expected[kept] = delta[kept]
        name = "breadcrumbs_ties" if elect else "breadcrumbs"
        found = merge(name, [delta], torch.zeros(count), weight=1.0, density=density, gamma=gamma)
        assert torch.equal(found, expected)

    def test_signs_are_elected_after_the_cut(self):
        deltas = [torch.tensor([9.0, 1.0, 2.0, 0.1]), torch.tensor([-8.0, -3.0, 4.0, 0.1])]
        values = {"weight": 1.0, "density": 0.5, "gamma": 0.25}
        assert merge("breadcrumbs", deltas, torch.zeros(4), **values).tolist() == [0, -2, 6, 0]
        assert merge("breadcrumbs_ties", deltas, torch.zeros(4), **values).tolist() == [0, -3, 6, 0]


class TestDare:
    @given(seeds, st.sampled_from([97, 1000, 4900]))
    @settings(max_examples=10, deadline=None)
    def test_masks_nest_in_any_chunks(self, seed, chunk):
        base, sources = torch.zeros(70, 70), [noise((70, 70), seed), noise((70, 70), seed + 1)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "_CACHED", chunk)
            for weight in ([1.0, 0.0], [0.0, 1.0]):
                few, many = (
                    merge("dare_linear", sources, base, draw=Draw(seed, "t"), weight=weight, density=d) != 0
                    for d in (0.3, 0.6)
                )
                assert bool((few <= many).all())
                assert 0.2 < float(few.float().mean()) < 0.4 < 0.5 < float(many.float().mean()) < 0.7

    def test_it_is_unbiased_over_seeds(self):
        base, source = torch.zeros(64), torch.linspace(0.5, 1.5, 64)
        runs = [merge("dare_linear", [source], base, draw=Draw(s, "t"), weight=1.0, density=0.5) for s in range(400)]
        means = torch.stack(runs).mean(0) / source
        assert statistics.fmean(means.tolist()) == pytest.approx(1.0, abs=0.05)
        assert float((means - 1).abs().max()) < 0.25


def della(source, **values):
    """The delta that DELLA leaves of one source, not rescaled unless asked for."""
    parameters = {"weight": 1.0, "density": 0.5, "epsilon": 0.3, "rescale": False, **values}
    return merge("della_linear", [source], torch.zeros_like(source), **parameters)


class TestDella:
    def test_larger_magnitudes_of_a_row_are_kept_more_often(self):
        source = noise((400, 1000), 1) * torch.logspace(-3, 3, 400)[:, None]  # rows of different sizes
        kept = della(source, density=0.4, epsilon=0.3) != 0
        by_rank = kept.gather(1, source.abs().argsort(dim=1)).float().mean(0).reshape(10, 100).mean(1)
        expected = torch.linspace(0.1, 0.7, 1001)[:-1].reshape(10, 100).mean(1)
        assert torch.allclose(by_rank, expected, atol=4 * 0.5 / math.sqrt(400 * 100))

    @pytest.mark.parametrize("shape", [(40_000,), (300, 40), (30, 40, 25)])
    def test_rows_run_along_the_second_dimension(self, shape):
        source = noise(shape, 2)
        kept = della(source, density=0.5, epsilon=0.4999) != 0
        row = 1 if len(shape) > 1 else 0
        largest = kept.gather(row, source.abs().argmax(dim=row, keepdim=True))
        smallest = kept.gather(row, source.abs().argmin(dim=row, keepdim=True))
        assert float(largest.float().mean()) > 0.98
        assert float(smallest.float().mean()) < 0.02
        assert abs(float(kept.float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(kept.numel())

    def test_a_row_of_one_element_is_kept_at_the_density(self):
        kept = della(noise((20_000, 1), 3), density=0.3, epsilon=0.1) != 0
        assert abs(float(kept.float().mean()) - 0.3) < 4 * math.sqrt(0.21 / 20_000)

    @given(seeds, st.floats(0.31, 0.69), st.floats(0.0, 0.3))
    @settings(max_examples=20, deadline=None)
    def test_masks_nest_in_the_density(self, seed, density, epsilon):
        source, draw = noise((30, 40), seed), Draw(seed, "t")
        few, many = (della(source, density=d, epsilon=epsilon, draw=draw) != 0 for d in (0.31, density))
        assert bool((few <= many).all())

    @given(seeds, st.floats(0.05, 0.95), st.booleans())
    @settings(max_examples=20, deadline=None)
    def test_without_epsilon_it_is_dare(self, seed, density, elect):
        sources, base = [noise((20, 30), seed), noise((20, 30), seed + 1)], noise((20, 30), seed + 2)
        values = {"density": density, "normalize": False, "rescale": True}
        names = ("della", "dare_ties") if elect else ("della_linear", "dare_linear")
        one, other = (merge(name, sources, base, epsilon=0.0, **values) for name in names)
        assert torch.equal(one, other)

    @given(seeds, st.sampled_from([(17,), (9, 11), (3, 4, 5)]))
    @settings(max_examples=20, deadline=None)
    def test_rescaling_restores_the_l1_norm(self, seed, shape):
        source = noise(shape, seed, 1e-3)
        found = della(source, rescale=True)
        if bool(found.any()):
            assert float(found.abs().sum()) == pytest.approx(float(source.abs().sum()), rel=1e-4)

    def test_a_dense_source_is_whole_beside_a_thinned_one(self):
        sources = [noise((30, 40), 4), noise((30, 40), 5)]
        found = merge("della_linear", sources, torch.zeros(30, 40), weight=[1.0, 0.0], density=[1.0, 0.5])
        assert torch.equal(found, sources[0])

    def test_the_pieces_in_which_rows_are_ranked_change_nothing(self, monkeypatch):
        source = noise((37, 41), 6).round(decimals=1)
        first = della(source)
        monkeypatch.setattr("evomerge.merging.methods.della._CHUNK", 100)
        assert torch.equal(della(source), first)


class TestSce:
    @given(st.integers(1, 60), seeds, st.integers(1, 4), st.floats(0.0, 1.0), st.sampled_from([1.0, 1e-4]))
    @settings(deadline=None)
    def test_select_calculate_erase(self, count, seed, number, share, scale):
        deltas = [noise(count, seed + i, scale) for i in range(number)]
        rows = [delta.double().tolist() for delta in deltas]
        variance = [statistics.pvariance(values) for values in zip(*rows, strict=True)]
        if share < 1:
            keep = int(torch.tensor(sum(v > 0 for v in variance)) * share)
            chosen = set(sorted(range(count), key=lambda i: -variance[i])[:keep])
            rows = [[v if i in chosen else 0.0 for i, v in enumerate(row)] for row in rows]
        squares = [sum(v * v for v in row) / count for row in rows]
        total = sum(squares)
        weight = [s / total if total >= 1e-6 else 1 / number for s in squares]
        expected = []
        for values in zip(*rows, strict=True):
            sign = 1 if sum(values) >= 0 else -1
            took_part = [(w, v) for w, v in zip(weight, values, strict=True) if v * sign > 0]
            expected.append(sum(w * v for w, v in took_part) / max(sum(w for w, _ in took_part), 1e-6))
        found = merge("sce", deltas, torch.zeros(count), select_topk=share)
        assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-5 * scale)

    def test_equals_in_variance_go_to_the_lower_index(self):
        deltas = [torch.tensor([1.0, -1.0, 1.0, 3.0, 0.5]), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5])]
        found = merge("sce", deltas, torch.zeros(5), select_topk=0.5)  # two of the four that differ
        assert (found != 0).tolist() == [True, False, False, True, False]


class TestRam:
    @given(
        st.integers(1, 60),
        seeds,
        st.integers(1, 4),
        st.floats(-1, 1),
        st.floats(0, 3),
        st.sampled_from([0.0, 0.8, 9.0]),
    )
    @settings(deadline=None)
    def test_what_one_alone_has_learned_is_not_averaged(self, count, seed, number, r, alpha, epsilon):
        deltas = [noise(count, seed + i) for i in range(number)]
        rows = [delta.tolist() for delta in deltas]
        counts = [sum(abs(v) > epsilon for v in values) for values in zip(*rows, strict=True)]
        shared = [sum(abs(v) > epsilon and c > 1 for v, c in zip(row, counts, strict=True)) for row in rows]
        alone = [sum(abs(v) > epsilon and c == 1 for v, c in zip(row, counts, strict=True)) for row in rows]
        boosts = [1 + r * min(s / max(a, 1e-9, epsilon), alpha) for s, a in zip(shared, alone, strict=True)]
        for name, factors in (("ram", [1.0] * number), ("ramplus_tl", boosts)):
            expected = [
                sum((v if c > 1 else v * f) for v, f in zip(values, factors, strict=True) if abs(v) > epsilon)
                / max(c, 1)
                for values, c in zip(zip(*rows, strict=True), counts, strict=True)
            ]
            found = merge(name, deltas, torch.zeros(count), r=r, alpha=alpha, epsilon=epsilon)
            assert torch.allclose(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


class TestArceeFusion:
    @pytest.mark.parametrize("shape", [(60, 40), (500,), (7, 9, 11), (1, 30), (4, 1), (1,), (3,)])
    def test_only_the_important_differences_are_taken(self, shape):
        base = noise(shape, 1, 0.3)
        source = base + noise(shape, 2, 0.1)
        p, q = source.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
        importance = (source - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
        values = importance.reshape(-1).sort().values
        q1, middle, q3 = (values[int(share * (values.numel() - 1))] for share in (0.25, 0.5, 0.75))
        important = importance >= middle + 1.5 * (q3 - q1)
        found = merge("arcee_fusion", [source], base)
        # elements at the threshold stand or fall with the last place of their row's divergence
        near = (importance - (middle + 1.5 * (q3 - q1))).abs() <= 1e-6 * importance.abs().max()
        assert torch.equal((found != base)[~near], important[~near])
        assert torch.allclose(found[important & ~near], source[important & ~near], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_a_row_s_divergence_does_not_depend_on_threads(self, rows):
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.append(_divergence(noise((rows, 400_000), 1), noise((rows, 400_000), 2)))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], other) for other in found)

    def test_the_pieces_change_nothing(self, monkeypatch):
        base, source = noise((37, 41), 1), noise((37, 41), 2)
        first = merge("arcee_fusion", [source], base)
        monkeypatch.setattr("evomerge.merging.methods.arcee_fusion._CHUNK", 100)
        assert torch.equal(merge("arcee_fusion", [source], base), first)


class TestNearSwap:
    @given(sizes, seeds, st.sampled_from([0.0, 1e-7, 1e-3, 0.1, 5.0]))
    def test_each_element_moves_by_t_at_most(self, count, seed, t):
        base, source = noise(count, seed), noise(count, seed + 1)
        found = merge("nearswap", [source], base, t=t)
        step = (source - base).clamp(-t, t)
        assert torch.allclose(found, base + step, rtol=0, atol=1e-6)

    def test_a_distance_below_one_millionth_counts_as_one(self):
        base, source = torch.zeros(1), torch.full((1,), 1e-8)
        assert merge("nearswap", [source], base, t=5e-7).item() == pytest.approx(0.5e-8)
