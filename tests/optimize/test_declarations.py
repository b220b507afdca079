import inspect
import subprocess
import sys

import pytest

from evomerge.optimize.build import build
from evomerge.optimize.declarations import OPTIONS, OptionError, check_options
from evomerge.registry import OPTIMIZERS, load
from evomerge.types import Dimension


def test_defaults_are_filled_in_and_types_made_one() -> None:
    assert check_options("cma-es", {}) == {"population": "auto", "sigma": "auto", "repeats": 0, "warm_start": True}
    assert check_options("cma-es", {"population": 8.0, "sigma": 1}) == {
        "population": 8,
        "sigma": 1.0,
        "repeats": 0,
        "warm_start": True,
    }
    assert check_options("random", {}) == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cma-es", {"sigma": 0}, r"sigma: 0 is not legal for cma-es; give 'auto' or a number above 0 to 1$"),
        ("cma-es", {"sigma": float("nan")}, "sigma: nan is not legal"),
        ("cma-es", {"sigma": True}, "sigma: True is not legal"),
        ("cma-es", {"population": 1}, r"population: 1 .* give 'auto' or a whole number from 3 to 10000"),
        ("cma-es", {"population": 7.5}, "population: 7.5"),
        ("cma-es", {"population": float("inf")}, "population: inf"),
        ("cma-es", {"population": "many"}, "population: 'many'"),
        ("cma-es", {"population": [8]}, r"population: \[8\]"),
        (
            "cma-es",
            {"popluation": 8},
            r"popluation: cma-es takes no such option \(got 8\); did you mean 'population'",
        ),
        ("tpe", {"startup": 0}, "startup: 0"),
        ("tpe", {"asynchonous": True}, "did you mean 'asynchronous'"),
        ("random", {"sed": 3}, "did you mean 'seed'"),
        ("random", {"sigma": 0.2}, r"sigma: random takes no such option \(got 0.2\); remove it"),
    ],
)
def test_messages(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        check_options(name, options)
    assert caught.value.key == next(iter(options))
    with pytest.raises(ValueError, match=message):
        build(name, [Dimension("w")], 0, options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_are_the_keyword_arguments_of_the_class(name: str) -> None:
    """All but `warm_start`, which comes before any of them."""
    parameters = inspect.signature(load(OPTIMIZERS[name])).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == {key: option.default for key, option in OPTIONS.get(name, {}).items() if key != "warm_start"}


def test_options_and_ranking_are_light() -> None:
    code = (
        "import sys, evomerge.optimize.declarations, evomerge.optimize.ordering;"
        "print([m for m in ('numpy', 'torch', 'cma', 'optuna') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
