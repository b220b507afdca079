"""Samples of deltas: what is estimated from a part is what the whole has, within its error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.samples.deltas import Deltas, measure
from evomerge.checkpoints.samples.segments import Drawing, Reader, decoded, draw, draw_rows, rounded
from evomerge.checkpoints.samples.spectrum import effective_rank, largest, overlap, spectrum
from evomerge.checkpoints.samples.sums import Estimate, TensorSums, estimate
from evomerge.checkpoints.samples.training import dare_doubts, mean_delta
from tests.checkpoints.sparse_models import write_sparse
from tests.checkpoints.variants import reordered_copy, write_adapter

NAMES = ("french", "gsm8k", "shakespeare")


@pytest.fixture(scope="module")
def specialists(shared: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    root = shared / "specialists"
    return Checkpoint.open(str(root / "base")), {name: Checkpoint.open(str(root / name)) for name in NAMES}


def exact(base: Checkpoint, sources: dict[str, Checkpoint]) -> tuple[np.ndarray, list[np.ndarray]]:
    """All elements of base and deltas, in float64."""
    whole = [
        np.concatenate([c.read(n).double().numpy().reshape(-1) for n in base.tensors])
        for c in (base, *sources.values())
    ]
    return whole[0], [source - whole[0] for source in whole[1:]]


def test_what_was_read_whole_is_exact(specialists: tuple[Checkpoint, dict[str, Checkpoint]]) -> None:
    base, sources = specialists
    deltas = measure(base, sources)
    weights, moved = exact(base, sources)
    assert deltas.sampled == deltas.elements == len(weights)
    for name, delta in zip(NAMES, moved, strict=True):
        assert_near(deltas.mean_size(name), np.abs(delta).mean())
        assert_near(deltas.relative(name), np.linalg.norm(delta) / np.linalg.norm(weights))
    cosine = moved[0] @ moved[1] / np.linalg.norm(moved[0]) / np.linalg.norm(moved[1])
    assert_near(deltas.cosine("french", "gsm8k"), cosine)
    assert_near(deltas.conflict("french", "gsm8k"), (np.sign(moved[0]) * np.sign(moved[1]) < 0).mean())
    total = np.abs(moved).sum()
    assert_near(deltas.cancelled(), 1 - np.abs(np.sum(moved, axis=0)).sum() / total)
    mean = np.mean(moved, axis=0)
    assert_near(deltas.spread(), np.sqrt(np.mean([((d - mean) ** 2).sum() for d in moved]) / (weights**2).sum()))


def assert_near(found: Estimate | None, value: float) -> None:
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.error == 0


def test_samples_of_larger_models_are_within_five_percent(tmp_path: Path) -> None:
    """Tensors of a million elements of which a sixtieth is read; rows are moved unequally, as training moves them."""
    base, sources = fabricated(tmp_path, rows=1000, columns=1024)
    sampled, full = measure(base, sources), measure(base, sources, Drawing(whole=1 << 30))
    assert sampled.sampled < 0.05 * full.sampled == 0.05 * full.elements
    told: list[Callable[[Deltas], Estimate | None]] = [
        *(lambda d, s=s: d.mean_size(s) for s in sources),
        *(lambda d, s=s: d.relative(s) for s in sources),
        *(lambda d, s=s: d.changed(s) for s in sources),
        *(lambda d, s=s: d.with_base(s) for s in sources),
        lambda d: d.cosine("a", "b"),
        lambda d: d.conflict("a", "b"),
        lambda d: d.cancelled(),
        lambda d: d.any_conflict(),
        lambda d: d.spread(),
    ]
    for number in told:
        part, whole = number(sampled), number(full)
        assert part is not None
        assert whole is not None
        assert whole.error == 0 < part.error or part.value == whole.value
        assert part.value == pytest.approx(whole.value, rel=0.05)
        assert abs(part.value - whole.value) <= 4 * part.error + 1e-12


def fabricated(root: Path, rows: int, columns: int) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """A state dict of eight matrices, and two fine-tunes with a common part, unequal rows and untouched elements."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    weights = {f"blocks.{i}.weight": 0.02 * normal(rows, columns) for i in range(8)}
    states = {"base": weights, "a": {}, "b": {}}
    for name, weight in weights.items():
        common, scale = normal(rows, columns), torch.exp(0.5 * normal(rows, 1))
        for source in ("a", "b"):
            delta = 0.002 * scale * (0.6 * common + 0.8 * normal(rows, columns))
            states[source][name] = weight + delta * (torch.rand(rows, columns, generator=random) < 0.7)
    for name, state in states.items():
        (root / name).mkdir()
        save_file(state, root / name / "model.safetensors")
    return Checkpoint.open(str(root / "base")), {s: Checkpoint.open(str(root / s)) for s in ("a", "b")}


def test_errors_cover_the_truth() -> None:
    """Of 95 % intervals from 200 samples of one population about 95 % hold the true ratio."""
    random = np.random.default_rng(0)
    population = np.abs(random.standard_normal((2, 64_000))) * np.repeat(np.exp(random.standard_normal(250)), 256)
    truth = population[0].sum() / population[1].sum()
    inside = 0
    for _ in range(200):
        runs = random.choice(250, 40, replace=False)
        sums = population.reshape(2, 250, 256)[:, runs].sum(axis=2).T
        found = estimate([TensorSums("t", 0, "t", True, 64_000, 40 * 256, sums)], {"y": 0, "x": 1}, "y", {"x": -1})
        assert found is not None
        inside += abs(found.value - truth) <= 1.96 * found.error
    assert 175 <= inside <= 200


@given(st.integers(1, 1 << 22), st.integers(4, 64), st.sampled_from([16, 256, 1000]))
def test_runs_are_inside_and_apart(elements: int, segments: int, length: int) -> None:
    runs = draw("x", elements, Drawing(1 << 12, segments, length))
    ends = runs.starts + runs.length
    assert (runs.starts >= 0).all()
    assert (ends <= elements).all()
    assert (runs.starts[1:] >= ends[:-1]).all()
    assert runs.whole or len(runs.starts) == segments


@pytest.mark.parametrize("width", [300, 511, 512, 1000])
def test_all_columns_are_read_equally_often(width: int) -> None:
    """What fine-tuning changes may stand in some columns, the first of a row or the last."""
    drawing = Drawing(whole=1 << 12, segments=64, length=256)
    read = {"rows": np.zeros(width), "runs": np.zeros(width)}
    for seed in range(100):
        chosen, columns, length = draw_rows(f"x{seed}", np.arange(500), width, drawing)
        assert len(chosen) == len(columns) == 64
        runs = draw(f"x{seed}", 4096 * width, drawing)
        for kind, starts, many in (("rows", columns, length), ("runs", runs.starts, runs.length)):
            np.add.at(read[kind], (starts[:, None] + np.arange(many)) % width, 1)
    for times in read.values():
        ends = np.concatenate([times[: width // 16], times[-width // 16 :]])
        assert ends.mean() == pytest.approx(times.mean(), rel=0.05)


@settings(max_examples=20)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50), st.sampled_from(["bfloat16", "float16"])
)
def test_rounding_and_decoding_are_torchs(values: list[float], dtype: str) -> None:
    import torch

    exact = torch.tensor(values, dtype=torch.float32)
    stored = exact.to(getattr(torch, dtype))
    with np.errstate(over="ignore"):
        found = rounded(exact.numpy(), dtype)
    np.testing.assert_array_equal(found, stored.float().numpy())
    np.testing.assert_array_equal(decoded(stored.view(torch.uint8).numpy().tobytes(), dtype), stored.float().numpy())


def test_an_adapter_is_sampled_as_it_is_merged(tiny_models: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(str(tiny_models / "base"))
    adapter = write_adapter(tmp_path / "lora", base)
    adapted = Checkpoint.open(f"{tiny_models / 'base'}+{adapter}")
    name = "model.layers.0.mlp.up_proj.weight"
    starts = np.array([0, 5, 30, 100])
    with Reader() as reader:
        found = reader.runs(adapted, name, starts, 20)
    whole = adapted.read(name).float().numpy().reshape(-1)
    np.testing.assert_allclose(found, whole[starts[:, None] + np.arange(20)], rtol=1e-6)
    deltas = measure(base, {"lora": adapted})
    assert name not in deltas.untouched()
    assert "model.layers.1.mlp.up_proj.weight" in deltas.untouched()


def test_tokens_are_compared_row_by_row(tiny_models: Path, tmp_path: Path) -> None:
    """A source that holds the same rows under other ids has not moved them."""
    swapped = reordered_copy(tiny_models / "base", tmp_path / "swapped")
    base = Checkpoint.open(str(tiny_models / "base"))
    deltas = measure(base, {"swapped": Checkpoint.open(str(swapped))})
    size = deltas.mean_size("swapped")
    assert size is not None
    assert size.value == 0


def test_nan_is_named_and_counts_for_nothing(tiny_models: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_models / "one", broken)
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    deltas = measure(Checkpoint.open(str(tiny_models / "base")), {"broken": Checkpoint.open(str(broken))})
    assert deltas.broken == {"broken": ["model.norm.weight"]}
    size = deltas.mean_size("broken")
    assert size is not None
    assert np.isfinite(size.value)


def test_quantized_weights_are_sampled_as_they_are_read(tmp_path: Path) -> None:
    from quantized_models import FP8, fp8_blocks, write

    base = Checkpoint.open(str(write(tmp_path / "base", lambda weight: {"weight": weight.bfloat16()}, {})))
    source = Checkpoint.open(str(write(tmp_path / "fp8", fp8_blocks, FP8)))
    assert source.quantization is not None
    deltas = measure(base, {"fp8": source})
    assert deltas.unread == {}
    _, (moved,) = exact(base, {"fp8": source})
    size = deltas.mean_size("fp8")
    assert size is not None
    assert size.value == pytest.approx(np.abs(moved).mean(), rel=1e-4)


# Directions


@given(st.integers(1, 12), st.integers(0, 1000))
def test_equal_directions_are_counted(rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left, _ = np.linalg.qr(random.standard_normal((40, rank)))
    right, _ = np.linalg.qr(random.standard_normal((30, rank)))
    found = effective_rank(left @ right.T)
    assert found == pytest.approx(rank)


def test_the_largest_directions_are_found_and_compared() -> None:
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.standard_normal((64, 8)))
    right, _ = np.linalg.qr(random.standard_normal((48, 8)))
    delta = 3 * left @ right.T + 0.01 * random.standard_normal((64, 48))
    again = 2 * left @ right.T + 0.01 * random.standard_normal((64, 48))
    other = random.standard_normal((64, 48))
    tops = [largest(matrix, 8, "x") for matrix in (delta, again, other)]
    assert overlap(tops[0], tops[1]) > 0.99
    assert overlap(tops[0], tops[2]) < 0.35


def test_blocks_of_low_rank_deltas_show_their_rank(tiny_models: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(str(tiny_models / "base"))
    adapted = Checkpoint.open(f"{tiny_models / 'base'}+{write_adapter(tmp_path / 'lora', base)}")
    found = spectrum(base, {"lora": adapted})
    assert found is not None
    assert found.rank["lora"].value <= 2 / 16 + 1e-9


# What size says of training


def test_large_deltas_are_a_doubt_about_dare_only(tiny_models: Path) -> None:
    base, one = (Checkpoint.open(str(tiny_models / name)) for name in ("base", "one"))
    size = mean_delta(base, one)
    assert size is not None
    assert size > 0.1
    (line,) = dare_doubts(base, {"one": one}, ["dare_ties", "ties"])
    assert "one" in line
    assert "0.002" in line
    assert dare_doubts(base, {"one": one}, ["ties"]) == []
    assert dare_doubts(base, {"same": base}, ["dare_linear"]) == []


def test_a_model_of_70_billion_parameters_is_read_in_part(tmp_path: Path) -> None:
    models = [Checkpoint.open(str(write_sparse(tmp_path / name))) for name in ("base", "a")]
    deltas = measure(models[0], {"a": models[1]})
    assert deltas.elements > 70e9
    assert deltas.sampled < 15e6
    assert len(deltas.untouched()) == len(models[0].tensors)
