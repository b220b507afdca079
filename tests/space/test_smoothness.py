import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.optimize.distribution import Distribution, default_population
from evomerge.space.smoothness import correlation, covariance, smooth_root
from evomerge.space.vector import Encoding
from evomerge.types import Dimension


def layered(layers: int, smooth: float, sources: tuple[str, ...] = ("a", "b")) -> list[Dimension]:
    places = [{"sources": s, "layers": str(n)} for s in sources for n in range(layers)]
    return [Dimension(f"weight[{p['sources']},{p['layers']}]", gene="weight", place=p, smooth=smooth) for p in places]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.floats(0.01, 50.0))
def test_a_correlation(layers: int, smooth: float) -> None:
    dimensions = [*layered(layers, smooth), Dimension("lambda", gene="lambda")]
    found = correlation(dimensions)
    assert found is not None
    assert np.array_equal(found, found.T)
    assert np.array_equal(np.diag(found), np.ones(len(dimensions)))
    assert np.linalg.eigvalsh(found).min() > 0
    assert not found[:layers, layers:].any()  # sources, and other genes, are independent
    encoding = Encoding([*dimensions, Dimension("method", choices=("ties", "dare"), init="ties")])
    root, whole = smooth_root(encoding), covariance(encoding)
    assert root is not None
    assert whole is not None
    assert np.allclose(root @ root, whole, atol=1e-9)
    assert np.array_equal(whole[-2:], np.eye(encoding.size)[-2:])


def test_neighbours_are_alike_and_more_so_the_smoother() -> None:
    rough, fine = (correlation(layered(6, smooth)) for smooth in (1.0, 3.0))
    assert rough is not None
    assert fine is not None
    assert list(rough[0, :6]) == sorted(rough[0, :6], reverse=True)
    assert (fine[0, 1:6] > rough[0, 1:6]).all()
    assert correlation(layered(6, 0.0)) is None


def test_cma_es_starts_with_it() -> None:
    encoding = Encoding(layered(8, 3.0, ("a",)))
    generator = np.random.default_rng(0)
    mean, population = np.full(encoding.size, 0.5), default_population(encoding)
    samples = np.array(Distribution(encoding, mean, 0.1, population, generator).sample(2000)) - mean
    found, wanted = np.corrcoef(samples.T), covariance(encoding)
    assert wanted is not None
    assert np.abs(found - wanted).max() < 0.1
