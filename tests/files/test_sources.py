"""Sources by name, by list and by pattern: which models they are, what they are called, what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError
from evomerge.files.objects import GeneSpec, SpaceSpec
from evomerge.files.resolved import space_data, to_yaml
from evomerge.files.space_file import read_space

WEIGHT = {"low": 0.0, "high": 1.0, "per": ["sources"]}


def model(folder: Path, config: str = "config.json") -> None:
    folder.mkdir(parents=True)
    (folder / config).write_text("{}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "one", "two", "7b chat"):
        model(tmp_path / "models" / name)
    model(tmp_path / "models" / "lora", "adapter_config.json")
    (tmp_path / "models" / "README.md").write_text("no model")
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "latest").symlink_to("one")
    for step in (100, 20, 1000, 3):
        model(tmp_path / "run" / f"ckpt-{step}")
    (tmp_path / "run" / "best").symlink_to("ckpt-20")
    return tmp_path


def read(folder: Path, sources: Any, genes: Any = None, known: Any = None, **keys: Any) -> SpaceSpec:
    data = {
        "base": "models/base",
        "sources": sources,
        "genes": genes or {"method": "task_arithmetic", "weight": WEIGHT},
        "fitness": "fitness.yaml",
        **keys,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(data))
    return read_space(folder / "space.yaml", known=known)


def names(spec: SpaceSpec) -> dict[str, str]:
    return {name: Path(ref.path).name for name, ref in spec.sources.items()}


def gene(spec: SpaceSpec, name: str) -> GeneSpec | None:
    return next((gene for gene in spec.genes if gene.name == name), None)


def run_of(spec: SpaceSpec) -> list[str]:
    return [Path(ref.path).name for ref in spec.trajectories["run"].checkpoints]


def again(folder: Path, spec: SpaceSpec) -> SpaceSpec:
    """As a run's own copy says it."""
    (folder / "resolved.yaml").write_text(to_yaml(space_data(spec), "resolved"))
    return read_space(folder / "resolved.yaml")


def same(one: SpaceSpec, other: SpaceSpec) -> bool:
    return space_data(one) == space_data(other) and one.genes == other.genes


# Pools


def test_a_pool_is_all_models_that_match_but_the_base(folder: Path) -> None:
    spec = read(folder, {"pool": "models/*"})
    assert names(spec) == {"_7b_chat": "7b chat", "lora": "lora", "one": "one", "two": "two"}
    assert spec.matched is not None
    said = " ".join(spec.matched.notes)
    assert "README.md (no checkpoint)" in said
    assert "empty (no checkpoint)" in said
    assert "latest (a link to one)" in said
    assert "base is the base" in said
    assert gene(spec, "include") == GeneSpec("include", ("sources",), 0.0, 1.0, 1.0)
    assert same(again(folder, spec), spec)


def test_a_list_is_a_pool_of_models_and_patterns(folder: Path) -> None:
    sources = ["models/o*", {"path": "org/chat", "revision": "v1"}, "models/two", "models/*wo"]
    spec = read(folder, sources)
    assert names(spec) == {"one": "one", "chat": "chat", "two": "two"}
    assert spec.sources["chat"].revision == "v1"
    assert same(read(folder, {"pool": sources}), spec)


def test_folders_of_one_name_are_called_by_their_parents_too(folder: Path) -> None:
    for run in ("a", "b"):
        model(folder / run / "final")
    assert list(names(read(folder, ["*/final"]))) == ["a-final", "b-final"]


def test_a_pool_in_a_run_is_what_it_was_at_the_launch(folder: Path) -> None:
    launched = read(folder, {"pool": "models/*"})
    assert launched.matched is not None
    model(folder / "models" / "another")
    later = read(folder, {"pool": "models/*"}, known=launched.matched.models)
    assert same(later, launched)
    assert later.matched is not None
    assert str(folder / "models" / "another") in later.matched.models


def test_a_source_can_be_called_pool(folder: Path) -> None:
    spec = read(folder, {"pool": "models/one", "other": "models/two"})
    assert names(spec) == {"pool": "one", "other": "two"}
    assert gene(spec, "include") is None
    (folder / "models" / "odd[1]").mkdir()
    assert names(read(folder, {"pool": "models/odd[1]"})) == {"pool": "odd[1]"}


def test_named_sources_can_be_left_out_if_the_file_says_so(folder: Path) -> None:
    sources, genes = {"one": "models/one", "two": "models/two"}, {"method": "ties", "weight": WEIGHT, "include": True}
    spec = read(folder, sources, genes)
    assert gene(spec, "include") is not None
    assert same(again(folder, spec), spec)
    pool = read(folder, {"pool": "models/*"}, {**genes, "include": False})
    assert gene(pool, "include") is None


@pytest.mark.parametrize("method", ["tsv", "model_stock"])
def test_methods_that_need_two_sources_leave_none_out(folder: Path, method: str) -> None:
    genes: dict[str, Any] = {"method": {"choices": [method, "linear"]}, "weight": WEIGHT}
    assert gene(read(folder, {"pool": "models/*"}, genes), "include") is None
    with pytest.raises(InputError, match=rf"genes.include: {method} needs more than one source"):
        read(folder, {"pool": "models/*"}, {**genes, "include": True})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"pool": "nothing/*"}, r"sources.pool: nothing/\*: matches nothing; a checkpoint is a folder"),
        ({"pool": "models/*.md"}, r"1 matches, and none is a checkpoint \(README.md\)"),
        ({"pool": "models/*", "more": "models/one"}, r"sources.more: stands beside a pool; list it in the pool"),
        ([], "names no source"),
        (["models/base*"], "names no source"),
        ("models/*", "each source needs a name; write for example"),
        ([f"org/model{i}" for i in range(51)], "51 models are more than the 50 of a pool"),
    ],
)
def test_what_is_no_pool_is_said(folder: Path, sources: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, sources)


# Trajectories


def test_checkpoints_stand_in_natural_order_and_bring_two_genes(folder: Path) -> None:
    spec = read(folder, {"run": {"glob": "run/*", "curve": "decay"}}, {"method": "linear"})
    assert run_of(spec) == ["ckpt-3", "ckpt-20", "ckpt-100", "ckpt-1000"]
    assert names(spec) == {"run": "ckpt-1000"}
    assert spec.fixed == {"weight": 1.0}
    window, exponent = gene(spec, "window"), gene(spec, "exponent")
    assert window is not None
    assert exponent is not None
    assert (window.low, window.high, window.init) == (1, 4, 4)
    assert (exponent.low, exponent.high, exponent.log) == (0.25, 4, True)
    assert same(again(folder, spec), spec)


def test_the_last_checkpoints_take_part(folder: Path) -> None:
    for step in range(2000, 2030):
        model(folder / "run" / f"ckpt-{step}")
    genes = {"method": "linear", "window": {"low": 2, "high": 3}, "exponent": {"low": 1, "high": 2, "log": False}}
    run = {"glob": "run/ckpt-*"}
    assert run_of(read(folder, {"run": run}, genes)) == ["ckpt-2027", "ckpt-2028", "ckpt-2029"]
    assert len(run_of(read(folder, {"run": run}, {"method": "linear"}))) == 16


def test_checkpoints_can_be_listed(folder: Path) -> None:
    run = {"checkpoints": ["org/model@step1", {"path": "org/model", "revision": "step2"}, "run/ckpt-3"]}
    spec = read(folder, {"run": run, "one": "models/one"})
    assert [str(ref) for ref in spec.trajectories["run"].checkpoints][:2] == ["org/model@step1", "org/model@step2"]
    assert names(spec) == {"run": "ckpt-3", "one": "one"}
    assert same(again(folder, spec), spec)


def test_the_base_may_be_the_oldest_checkpoint(folder: Path) -> None:
    run = {"run": {"glob": "run/ckpt-*"}}
    spec = read(folder, run, {"method": "linear"}, base="run/ckpt-3")
    assert run_of(spec) == ["ckpt-20", "ckpt-100", "ckpt-1000"]
    with pytest.raises(InputError, match="the base is ckpt-100, which is not the oldest of these checkpoints"):
        read(folder, run, {"method": "linear"}, base="run/ckpt-100")


@pytest.mark.parametrize(
    ("run", "genes", "message"),
    [
        ({"glob": "run/*", "checkpoints": []}, {}, r"sources.run: needs `glob` or `checkpoints`"),
        ({"curve": "decay"}, {}, r"sources.run: needs `glob` or `checkpoints`"),
        ({"glob": "run/ckpt-2*"}, {}, r"sources.run.glob: 1 checkpoint beside the base, and an average needs two"),
        ({"glob": "run/*", "curve": "cosine"}, {}, r"sources.run.curve: unknown curve 'cosine'; .*decay"),
        ({"glob": "run/*"}, {"method": "ties", "weight": WEIGHT}, "ties does not average the checkpoints of run"),
        ({"glob": "run/*"}, {"window": {"low": 9, "high": 12}}, "9 to 4 leaves nothing to search"),
        ({"glob": "run/*"}, {"exponent": {"low": 0, "high": 2}}, "0 to 2 is no range of exponents"),
        ({"glob": "run/*"}, {"window": {"low": 1, "high": 3, "per": ["layers"]}}, "is one value for each trajectory"),
    ],
)
def test_what_is_no_trajectory_is_said(folder: Path, run: Any, genes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder, {"run": run}, {"method": "linear", **genes})


def test_genes_of_trajectories_need_one(folder: Path) -> None:
    genes = {"method": "task_arithmetic", "weight": WEIGHT, "window": {"low": 1, "high": 3}}
    with pytest.raises(InputError, match=r"genes.window: is of a trajectory, and no source is one"):
        read(folder, {"one": "models/one"}, genes)


@pytest.mark.parametrize("kind", ["dataflow", "both"])
def test_paths_have_no_trajectories(folder: Path, kind: str) -> None:
    genes = {"genes": {"method": "linear"}} if kind == "both" else {}
    data = {"base": "models/base", "sources": {"run": {"glob": "run/*"}}, "space": kind, "fitness": "f", **genes}
    (folder / "space.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"space: .* a trajectory is an average"):
        read_space(folder / "space.yaml")
