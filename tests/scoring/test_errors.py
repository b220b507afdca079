"""Every metric that lm-eval aggregates has a standard error, found from its items."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from lm_eval.api import metrics as lm_metrics

from evomerge.scoring.gates import lower_bound
from evomerge.scoring.tasks.metrics import Metric

N = 120


def read(aggregate: Any, raws: list[Any], clusters: dict[str, str] | None = None, sign: int = 1) -> Any:
    metric = Metric("m", "none", sign, {"t": aggregate}, clusters=clusters or {})
    return metric.read({"t": [(str(i), {"m": raw}) for i, raw in enumerate(raws)]})


def gold_and_guess(seed: int = 0) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    golds = [draw.randrange(2) for _ in range(N)]
    return [(gold, gold if draw.random() < 0.7 else 1 - gold) for gold in golds]


def sentences() -> list[tuple[str, str]]:
    draw = random.Random(4)
    words = ["the", "cat", "sat", "on", "a", "red", "mat", "under", "one", "old", "tree"]
    pairs = []
    for _ in range(20):
        target = draw.choices(words, k=8)
        pairs.append((" ".join(target), " ".join(w if draw.random() < 0.8 else "dog" for w in target)))
    return pairs


@pytest.mark.parametrize(
    ("aggregate", "raws"),
    [
        (lm_metrics.f1_score, gold_and_guess()),
        (lm_metrics.matthews_corrcoef, gold_and_guess()),
        (lm_metrics.median, [random.Random(i).random() for i in range(N)]),
        (lm_metrics.bleu, sentences()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_metrics_that_are_no_mean(aggregate: Any, raws: list[Any]) -> None:
    score = read(aggregate, raws)
    assert score.value == pytest.approx(float(aggregate(raws)))
    assert 0.005 * max(1, abs(score.value)) < score.stderr < 0.5 * max(1, abs(score.value))
    assert read(aggregate, raws).stderr == score.stderr
    assert lower_bound(score, 1, 0.95) == pytest.approx(score.value - 1.645 * score.stderr, rel=1e-3)


def test_the_error_of_f1_is_that_of_new_samples() -> None:
    """Of 150 samples drawn from the same source."""
    drawn = [float(lm_metrics.f1_score(gold_and_guess(seed))) for seed in range(1, 151)]
    mean = sum(drawn) / len(drawn)
    spread = math.sqrt(sum((d - mean) ** 2 for d in drawn) / (len(drawn) - 1))
    assert read(lm_metrics.f1_score, gold_and_guess()).stderr == pytest.approx(spread, rel=0.3)


def test_perplexities() -> None:
    draw = random.Random(0)
    raws = [-draw.gauss(2, 0.5) for _ in range(N)]
    mean = sum(raws) / N
    spread = math.sqrt(sum((r - mean) ** 2 for r in raws) / (N - 1) / N)
    assert read(lm_metrics.perplexity, raws, sign=-1).stderr == pytest.approx(spread * math.exp(-mean), rel=0.15)
    sized = [(raw * 20, 20) for raw in raws]
    weighted = read(lm_metrics.weighted_perplexity, sized, sign=-1)
    assert weighted.stderr == pytest.approx(spread * math.exp(-mean), rel=0.15)
    assert weighted.value == pytest.approx(-math.exp(-mean))


def test_texts_without_bytes_take_nothing_from_the_error() -> None:
    raws = [(-20.0, 10), (-30.0, 12), (0.0, 0)]
    known = read(lm_metrics.bits_per_byte, raws[:2]).stderr
    assert read(lm_metrics.bits_per_byte, raws).stderr == pytest.approx(known)


@pytest.mark.parametrize("aggregate", [lm_metrics.mean, lm_metrics.median, lm_metrics.perplexity])
def test_clusters_count_once(aggregate: Any) -> None:
    draw = random.Random(9)
    raws = [value for value in (-draw.random() for _ in range(30)) for _ in range(4)]
    shared = {f"t/{i}": str(i // 4) for i in range(N)}
    together, alone = read(aggregate, raws, shared), read(aggregate, raws)
    assert together.value == alone.value
    assert together.stderr > 1.5 * alone.stderr
    assert [i.cluster for i in together.items[:5]] == ["0", "0", "0", "0", "1"]
