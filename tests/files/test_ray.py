"""`ray:` of a search-space file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.objects import RaySpec
from evomerge.files.resolved import space_data
from evomerge.files.space_file import read_space

Study = Callable[..., Path]


def test_what_a_worker_takes_is_read_and_written_again(tiny_study: Study, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "num_gpus": 0.5,
        "resources": {"fast": 1},
        "labels": {"card": "x"},
        "runtime_env": {"env_vars": {"A": "b"}},
    }
    spec = read_space(tiny_study(lambda space, fitness: space.update(ray=asked)))
    assert spec.ray == RaySpec(None, 0.5, {"fast": 1}, {"card": "x"}, asked["runtime_env"])
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(space_data(spec)))
    assert read_space(tmp_path / "again.yaml").ray == spec.ray
    assert "ray" not in space_data(read_space(tiny_study()))


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        ({"num_gpu": 1}, "unknown key 'num_gpu'; did you mean 'num_gpus'"),
        ({"num_gpus": 1.5}, "ray.num_gpus: 1.5 is neither a part of one nor a whole number"),
        ({"num_cpus": -1}, r"ray.num_cpus: -1 is outside \[0, 10000\]"),
        ({"labels": ["a"]}, r"ray.labels: is \['a'\], not a mapping"),
        ({"labels": {"a": 1}}, "ray.labels.a: is 1, not a text"),
        (4, "ray: is 4, not a mapping"),
    ],
)
def test_what_it_cannot_say_is_an_error_with_its_place(tiny_study: Study, ray: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"space\.yaml:\d+: .*{said}"):
        read_space(tiny_study(lambda space, fitness: space.update(ray=ray)))
