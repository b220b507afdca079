"""Paths through the layers of several models: whatever the genome, a legal recipe within the limits."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.files.space_file import read_space
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.space.base import FORMER_WINNER, Models, PathModel, PathModels, SearchSpace
from evomerge.space.build import space_of
from evomerge.space.reference_genomes import ReferenceKind
from evomerge.types import Genome

DEPTHS = {"base": 6, "a": 6, "b": 4, "winner": 5}
SIZES = {"base": 100, "a": 100, "b": 80, "winner": 100}
OUTSIDE = 50
WRITERS = ("o_proj", "down_proj")
GENES = {
    "method": {"choices": ["task_arithmetic", "ties"], "per": ["layers"]},
    "weight": {"low": 0.0, "high": 1.0, "init": 0.5, "per": ["sources", "layers"]},
    "density": {"low": 0.5, "high": 1.0, "init": 1.0},
}


def make(**changes: Any) -> SearchSpace:
    """A space over models of several depths, whose layers have `SIZES` elements."""
    data = {"space": "dataflow", "base": "base", "sources": {"a": "a", "b": "b"}, "fitness": "f.yaml", **changes}
    writers = data.pop("writers", WRITERS)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "s.yaml"
        file.write_text(yaml.safe_dump(data))
        spec = read_space(file)
    assert spec.dataflow is not None
    names = ("base",) if spec.dataflow.both else spec.dataflow.path
    path = {n: PathModel("winner" if n == "winner" else f"/m/{n}", (SIZES[n],) * DEPTHS[n], OUTSIDE) for n in names}
    winner = (Document("linear", (Slice((Input("/m/a"),)),), name="winner"),) if "winner" in names else ()
    models = PathModels(path, writers, "" if writers else "nobody has looked", winner)
    sources = {name: f"/m/{name}" for name in data["sources"]}
    return space_of(spec, Models("/m/base", sources, DEPTHS["base"], "float32", path=models))


SPACES: dict[str, dict[str, Any]] = {
    "slots": {},
    "slots of one model": {"path": ["base"], "sources": {}},
    "slots twice, shared scales": {"repeats": 2, "scales": "shared", "max_layers": 7},
    "slots without scales": {"scales": "none", "path": ["b", "base", "a"], "max_layers": 5},
    "pruning": {"path": ["base"], "max_layers": 4, "scales": "none"},
    "pruning by parameters": {"path": ["a"], "max_parameters": 0.6},
    "winner first": {"path": ["winner", "base"], "max_layers": 9},
    "blocks": {"blocks": 3},
    "blocks of one model": {"blocks": 3, "path": ["a"], "scales": "shared"},
    "blocks with scales": {"blocks": 5, "scales": {"form": "shared", "high": 4.0}, "max_layers": 4},
    "blocks and parameters": {"blocks": 2, "max_parameters": 401},
    "both": {"space": "both", "genes": GENES},
    "both, shallow": {"space": "both", "genes": GENES, "blocks": 3, "max_layers": 3},
    "both, one block": {"space": "both", "genes": GENES, "blocks": 1},
    "both, parameters": {"space": "both", "genes": GENES, "blocks": 6, "max_parameters": 0.5},
}


def genomes(space: SearchSpace) -> st.SearchStrategy[Genome]:
    def values(d: Any) -> st.SearchStrategy[Any]:
        if d.choices:
            return st.sampled_from(d.choices)
        ends = st.sampled_from([d.low, d.high, float(d.init), (d.low + d.high) / 2])
        return (st.floats(d.low, d.high, allow_nan=False) | ends).map(d.tidy)

    return st.fixed_dictionaries({d.key: values(d) for d in space.dimensions})


def places(recipe: Recipe) -> list[tuple[str, int]]:
    """The layers that a passthrough document stacks."""
    document = recipe.output
    assert document.method == "passthrough"
    assert document.base is None
    if document.whole:
        name = document.slices[0].inputs[0].model
        return [(name, layer) for layer in range(DEPTHS[name.removeprefix("/m/")])]
    ranges = [(i.model, i.layers) for slice_ in document.slices for i in slice_.inputs]
    return [(model, layer) for model, span in ranges if span for layer in range(*span)]


def elements(stack: list[tuple[str, int]]) -> int:
    return OUTSIDE + sum(SIZES[model.removeprefix("/m/")] for model, _ in stack)


def check_limits(space: SearchSpace, layers: int, parameters: float) -> None:
    flow = space.spec.dataflow
    assert flow is not None
    first = "base" if flow.both else flow.path[0]
    assert 2 <= layers <= (flow.max_layers or 2 * DEPTHS[first])
    if flow.max_parameters is not None:
        whole = OUTSIDE + SIZES[first] * DEPTHS[first]
        assert parameters <= flow.max_parameters * (1 if flow.max_parameters > 1000 else whole)


@pytest.mark.parametrize("name", SPACES)
def test_any_genome_is_a_legal_recipe_within_the_limits(name: str) -> None:
    space = make(**SPACES[name])
    flow = space.spec.dataflow
    assert flow is not None

    @settings(max_examples=60, deadline=None)
    @given(genome=genomes(space))
    def holds(genome: Genome) -> None:
        recipe = space.recipe(genome)
        assert parse_recipe(write_recipe(recipe)).id == recipe.id
        assert space.recipe(dict(genome)).id == recipe.id
        if flow.both:
            blocks = recipe.documents[0].slices
            spans = [slice_.inputs[0].layers or (0, DEPTHS["base"]) for slice_ in blocks]
            assert all(i.layers in (None, span) for s, span in zip(blocks, spans, strict=True) for i in s.inputs)
            assert (spans[0][0], spans[-1][1]) == (0, DEPTHS["base"])
            assert [i.model for i in blocks[0].inputs] == ["/m/a", "/m/b", "/m/base"]
            layers = sum(end - begin for begin, end in spans)
            check_limits(space, layers, OUTSIDE + layers * SIZES["base"])
            if len(recipe.documents) > 1:
                ranges = [i.layers for slice_ in recipe.output.slices for i in slice_.inputs]
                assert [span for span in ranges if span][-1][1] == layers
        else:
            stack, first = places(recipe), space.models.path.models[flow.path[0]].reference  # type: ignore[union-attr]
            assert (stack[0], stack[-1]) == ((first, 0), (first, DEPTHS[flow.path[0]] - 1))
            check_limits(space, len(stack), elements(stack))
            assert all(layer < DEPTHS[model.removeprefix("/m/")] for model, layer in stack)

    holds()


@pytest.mark.parametrize("name", [name for name in SPACES if "both" not in name])
def test_the_start_is_the_first_models_own_stack(name: str) -> None:
    space = make(**SPACES[name])
    flow, recipe = space.spec.dataflow, space.recipe(space.start)
    assert flow is not None
    first = flow.path[0]
    stack = places(recipe)
    assert {model for model, _ in stack} == {"winner" if first == "winner" else f"/m/{first}"}
    assert [layer for _, layer in stack] == sorted({layer for _, layer in stack})
    assert all(not i.parameters for slice_ in recipe.output.slices for i in slice_.inputs)
    known = space.reference_genomes
    if len(stack) < DEPTHS[first]:
        assert known == {}
        return
    label = FORMER_WINNER if first == "winner" else first
    assert list(known) == [label]
    assert known[label].genome == space.start
    assert known[label].kind is (ReferenceKind.BASE if first == "base" else ReferenceKind.SOURCE)
    assert space.references()[label].id == recipe.id


def test_a_pruned_start_leaves_out_late_layers_but_the_last() -> None:
    space = make(**SPACES["pruning"])
    kept = [layer for _, layer in places(space.recipe(space.start))]
    assert kept == [0, 1, 2, 5]


def test_both_starts_as_the_base_with_the_initial_weights() -> None:
    space = make(**SPACES["both"])
    assert space.recipe(space.start).documents[0].whole
    known = space.reference_genomes
    assert {"base", "a", "b"} <= known.keys()
    zero = space.recipe(known["base"].genome).documents[0]
    assert {i.parameters.get("weight", 0.0) for s in zero.slices for i in s.inputs} == {0.0}
    shallow = make(**SPACES["both, shallow"]).reference_genomes  # a part of the base is not the base
    assert {r.kind for r in shallow.values()} == {ReferenceKind.EQUAL_WEIGHTS}


def test_the_smallest_indicators_are_left_out_first() -> None:
    space = make(scales="none", path=["base"], max_layers=4)
    genome = {"use[base,1]": 0.9, "use[base,2]": 0.2, "use[base,3]": 0.9, "use[base,4]": 0.3}
    assert places(space.recipe(genome)) == [("/m/base", layer) for layer in (0, 1, 3, 5)]
    tie = dict.fromkeys(genome, 0.4)
    assert places(space.recipe(tie)) == [("/m/base", layer) for layer in (0, 1, 2, 5)]
    unused = dict.fromkeys(genome, 0.0)
    assert places(space.recipe(unused)) == [("/m/base", 0), ("/m/base", 5)]


def test_input_scales_divide_all_that_follows() -> None:
    space = make(path=["base", "a"], scales="pairs")
    genome = space.start | {"use[a,2]": 0.5, "scale[base,4,a,2]": 0.5, "scale[a,2,base,5]": 2.0}
    slices = space.recipe(genome).output.slices
    assert [(i.model, i.layers) for s in slices for i in s.inputs] == [
        ("/m/base", (0, 5)),
        ("/m/a", (2, 3)),
        ("/m/base", (5, 6)),
    ]
    entries = [{"filter": "o_proj", "value": 2.0}, {"filter": "down_proj", "value": 2.0}, {"value": 1.0}]
    assert [s.inputs[0].parameters for s in slices] == [{}, {"scale": entries}, {}]
    scaled = space.recipe(space.start | {"scale[base,1,base,2]": 0.3}).output.slices
    assert [s.inputs[0].layers for s in scaled] == [(0, 2), (2, 6)]
    assert scaled[1].inputs[0].parameters["scale"][0]["value"] == 3.33333


def test_scales_whose_product_is_no_number_any_more_end_before() -> None:
    space = make(path=["base", "a"], scales={"form": "pairs", "low": 1e-100, "high": 1e100})
    for value, most in ((1e-100, 1e30), (1e100, 1e-30)):
        recipe = space.recipe(space.start | {d.key: value for d in space.dimensions if d.gene == "scale"})
        found = [s.inputs[0].parameters["scale"][0]["value"] for s in recipe.output.slices[1:]]
        assert set(found) == {most}
        assert parse_recipe(write_recipe(recipe, "")).id == recipe.id


def test_the_form_of_the_scales_follows_from_their_number() -> None:
    assert {d.gene for d in make(path=["b"]).dimensions} == {"use", "scale"}
    few, many = make(path=["base", "a"]), make(path=["base", "a", "b", "winner"], repeats=3)
    assert few.facts()["scales"] == f"pairs, {1 + 10 * 9 // 2 + 20} values: 66 pairs of layers are few"
    keys = {d.key for d in many.dimensions if d.gene == "scale"}
    assert len(keys) == 4 * 4 * 3  # of four models to four, back, on and ahead
    assert "scale[a,b,ahead]" in keys
    assert "shared, 48 values" in many.facts()["scales"]
    assert make(writers=()).facts()["scales"] == "none: nobody has looked"
    with pytest.raises(InputError, match=r"scales: input scales cannot be written into the weights: nobody has looked"):
        make(writers=(), scales="shared")


def test_a_border_inside_a_model_has_no_scale() -> None:
    space = make(blocks=2, path=["base"], scales={"form": "shared", "high": 8.0})
    genome = space.start | {d.key: 8.0 for d in space.dimensions if d.gene == "scale"}
    assert space.recipe(genome).output.whole
    again = space.recipe(genome | {"begin[1]": 1.0}).output.slices
    assert [s.inputs[0].layers for s in again] == [(0, 3), (1, 5), (5, 6)] or len(again) > 1
    assert any(s.inputs[0].parameters for s in again)


WRONG = [
    ({"sources": {"a": "a"}, "path": ["a"], "max_parameters": 0.1}, "max_parameters: 65 parameters, and"),
    ({"space": "both", "genes": GENES, "blocks": 7}, "blocks: 7 blocks, but the base has 6 layers"),
    ({"space": "both", "genes": GENES, "blocks": 1, "max_layers": 4}, "blocks: 1 block is the whole model"),
    ({"repeats": 100, "path": ["base"], "scales": "pairs"}, None),
]


@pytest.mark.parametrize(("changes", "line"), WRONG)
def test_what_does_not_fit_the_models_is_refused(changes: dict[str, Any], line: str | None) -> None:
    if line is None:
        assert len(make(**changes).dimensions) == 400 + 4 * 4 + 2 * 4 + 1
        return
    with pytest.raises(InputError, match=line):
        make(**changes)


def test_memory_is_planned_for_what_is_written() -> None:
    for name, changes in SPACES.items():
        space = make(**changes)
        flow = space.spec.dataflow
        assert flow is not None
        if flow.both:
            spans = [s.inputs[0].layers or (0, DEPTHS["base"]) for s in space.largest().documents[0].slices]
            layers = sum(end - begin for begin, end in spans)
            most = [flow.max_layers or 12, 6 if flow.blocks == 1 else 12, 3 if flow.max_parameters else 12]
            assert layers <= min(most), name
            assert (layers == min(most)) or flow.max_parameters, name
            assert space.stack() is None
        else:  # stacks take the models' own memory
            assert space.largest().output.whole
            stack = space.stack()
            assert stack is not None
            assert {model for model, _ in places(stack)} == {space.models.path.models[n].reference for n in flow.path}  # type: ignore[union-attr]
            assert [d.name for d in stack.documents] == (["winner", None] if "winner" in flow.path else [None])
