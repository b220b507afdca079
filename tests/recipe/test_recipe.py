"""Recipes: canonical identity, YAML round trips, precedence of parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.recipe.mergekit import parse_recipe, read_recipe, recipe_from_data, write_recipe
from evomerge.recipe.parameters import Levels, at_position, of_tensor
from evomerge.recipe.recipe import Document, Input, Module, Recipe, Slice, TokenizerPolicy, TokenRule, to_data

numbers = st.floats(-3, 3, allow_nan=False)
values = st.one_of(
    numbers,
    st.lists(numbers, min_size=1, max_size=4).map(tuple),
    st.lists(st.fixed_dictionaries({"filter": st.sampled_from(["mlp", "self_attn"]), "value": numbers}), min_size=1),
)
parameters = st.dictionaries(st.sampled_from(["weight", "density"]), values, max_size=2)


rules = st.lists(
    st.sampled_from([
        TokenRule("a"), TokenRule("b", "/m/a"), TokenRule("c", "/m/a", "x", force=True), TokenRule("d", "/m/a", 3),
        TokenRule("e", zero=True, force=True),
    ]),
    unique_by=lambda rule: rule.token,
    max_size=3,
)  # fmt: skip
tokenizers = st.one_of(
    st.none(),
    st.builds(
        lambda source, tokens, multiple: TokenizerPolicy(source, tuple(tokens), multiple),
        st.sampled_from(["base", "union", "org/b@main"]),
        rules,
        st.sampled_from([None, 64]),
    ),
)


@st.composite
def recipes(draw: Any) -> Recipe:
    layers = draw(st.sampled_from([None, (0, 2)]))
    names = draw(st.lists(st.sampled_from(["/m/a", "org/b@main", "/m/c d"]), min_size=1, max_size=3, unique=True))
    inputs = [Input(name, layers, draw(parameters)) for name in names] + [Input("/m/base", layers)]
    base = None if layers is None else draw(st.sampled_from([None, "/m/base"]))
    slice_ = Slice(tuple(inputs), {} if layers is None else draw(parameters), base=base)
    keys: dict[str, Any] = {
        "base": "/m/base", "parameters": draw(parameters), "out_dtype": "float32", "seed": draw(st.integers(0, 9)),
        "tokenizer": draw(tokenizers), "chat_template": draw(st.sampled_from([None, "auto", "chatml"])),
    }  # fmt: skip
    if draw(st.booleans()):
        return Recipe((Document("ties", (slice_,), **keys),))
    modules = tuple(Module(name, (slice_,), draw(parameters)) for name in ("text_decoder", "vision_tower"))
    return Recipe((Document("ties", modules=modules, **keys),))


@given(recipes())
def test_yaml_and_data_round_trips_keep_the_identity(recipe: Recipe) -> None:
    assert parse_recipe(write_recipe(recipe, "a\nheader")).id == recipe.id
    assert recipe_from_data(to_data(recipe)).id == recipe.id


@pytest.mark.parametrize(
    "name", ["a\n- x: 1", "a\r- x: 1", "a\x85b: 1", "a\u2028b: 1", "\x1b[31m\x07", "\ud800", "\ufeff"]
)
def test_a_name_in_the_header_ends_no_comment(name: str) -> None:
    """Nor does it bring a control character, which YAML refuses."""
    recipe = Recipe((Document("linear", (Slice((Input("/m/base"), Input("/m/a"))),)),))
    assert parse_recipe(write_recipe(recipe, f"trial 7 ({name})\nmore")).id == recipe.id


@given(recipes(), recipes())
def test_identity_is_content(one: Recipe, other: Recipe) -> None:
    assert (one.id == other.id) == (to_data(one) == to_data(other))


def test_every_recipe_of_the_peer_that_uses_known_methods_is_read(shared: Path) -> None:
    read = 0
    for file in sorted((shared / "parity/cases").glob("*.yml")):
        try:
            recipe = read_recipe(file)
        except InputError as error:
            if "merge method" in str(error):
                continue
            raise
        assert parse_recipe(write_recipe(recipe)).id == recipe.id
        read += 1
    assert read >= 20


HEAD = "merge_method: linear\nmodels: [{model: a}]\n"


def test_both_spellings_of_a_tokenizer_are_one() -> None:
    short, long = (parse_recipe(HEAD + f"{text}\n") for text in ("tokenizer_source: base", "tokenizer: {source: base}"))
    assert short.id == long.id
    assert parse_recipe(HEAD + "tokenizer: {}\n").output.tokenizer == TokenizerPolicy("union")


def test_token_rules() -> None:
    recipe = parse_recipe(HEAD + """
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>: {source: a, force: true}
    <pad>: {source: {kind: zero}}
    <x>: {source: {kind: model_token, model: a, token: <y>}}
    <z>: {source: {kind: model_token, model: {model: {path: a, revision: v1}}, token_id: 7}}
    <new>: {}
""")  # fmt: skip
    policy = recipe.output.tokenizer
    assert policy is not None
    assert policy.pad_to_multiple_of == 64
    assert policy.tokens == (
        TokenRule("<|im_start|>", "a", force=True),
        TokenRule("<pad>", zero=True),
        TokenRule("<x>", "a", "<y>"),
        TokenRule("<z>", "a@v1", 7),
        TokenRule("<new>"),
    )


def test_references_may_be_spelt_out() -> None:
    text = "merge_method: linear\nmodels: [{model: {model: {path: org/a, revision: v1}, lora: ./b}}]\n"
    assert parse_recipe(text).models() == ["org/a@v1+./b"]


def test_documents_may_stand_in_any_order() -> None:
    text = """
merge_method: slerp
base_model: two
models: [{model: one}, {model: two}]
---
{name: two, merge_method: linear, models: [{model: one}, {model: c}]}
---
{name: one, merge_method: linear, models: [{model: a}, {model: b}]}
"""
    recipe = parse_recipe(text)
    assert [d.name for d in recipe.documents] == ["one", "two", None]
    assert recipe.models() == ["a", "b", "c"]
    circle = text.replace("{model: a}", "{model: two}")
    with pytest.raises(InputError, match="use each other in a circle"):
        parse_recipe(circle)


def test_values_take_the_forms_that_yaml_gives_them() -> None:
    text = (
        "merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: '1e-1', lambda: [1, '2.5'], normalize: 'no'}\n"
    )
    assert parse_recipe(text).output.parameters == {"weight": 0.1, "lambda": (1.0, 2.5), "normalize": False}


@pytest.mark.parametrize(
    ("text", "dtype"), [("torch.float64", "float64"), ("bfloat16", "bfloat16"), ("half", "float16")]
)
def test_dtypes(text: str, dtype: str) -> None:
    assert parse_recipe(HEAD + f"dtype: {text}\n").output.dtype == dtype


@pytest.mark.parametrize(("t", "expected"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 5.0), (1.0, 8.0)])
def test_gradients(t: float, expected: float) -> None:
    assert at_position([1.0, 2.0, 8.0], t) == pytest.approx(expected)
    assert at_position([4.0], t) == 4.0


def test_filters_first_match_wins_and_no_match_falls_through() -> None:
    entries = [{"filter": "mlp", "value": 1.0}, {"filter": "*", "value": [2.0, 4.0]}, {"value": 9.0}]
    assert of_tensor(entries, "model.layers.0.mlp.up_proj.weight", 0.5) == 1.0
    assert of_tensor(entries, "model.norm.weight", 0.5) == 3.0
    source = Input("a", None, {"weight": [{"filter": "mlp", "value": 1.0}]})
    document = Document("ties", (Slice((source,), {}),), "b", {"weight": 0.5})
    levels = Levels(document, document.slices[0])
    assert levels.of_source(source, "weight", "x.mlp.y", 0) == 1.0
    assert levels.of_source(source, "weight", "x.attn.y", 0) == 0.5
    assert levels.of_source(source, "density", "x.attn.y", 0) is None


def test_precedence_is_source_slice_module_document() -> None:
    source = Input("a")
    slice_ = Slice((source,))
    module = Module("default", (slice_,))
    for depth in range(4):
        levels = [{"weight": float(i)} if i >= depth else {} for i in range(4)]
        chosen = Levels(
            Document("ties", parameters=levels[3]),
            replace(slice_, parameters=levels[1]),
            replace(module, parameters=levels[2]),
        )
        own = replace(source, parameters=levels[0])
        assert chosen.of_source(own, "weight", "x", 0) == float(depth)
        assert chosen.of_tensor("weight", "x", 0) == float(max(depth, 1))


def test_flags_do_not_blend() -> None:
    assert [at_position((True, False), t, bool) for t in (0.0, 0.5, 1.0)] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("merge_method: ties\n", "needs exactly one of models, slices and modules"),
        (
            "merge_method: tise\nmodels: [{model: a}]\n",
            "r:1: merge_method: unknown merge method 'tise'; did you mean 'ties'?",
        ),
        ("models: [{model: a}]\n", "has no 'merge_method'"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]\n", "the model 'a' is listed twice"),
        ("merge_method: linear\nmodels: []\n", "names no model"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {wieght: 1}}]\n", "did you mean 'weight'?"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]\n", "models.0.parameters.weight: is 'x'"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}]\n", "is an empty list"),
        ("merge_method: linear\ndtype: int3\nmodels: [{model: a}]\n", "unknown dtype 'int3'"),
        (
            "merge_method: linear\nslices:\n"
            "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]\n",
            "r:3: slices.0: its layer ranges differ in length",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [2, 2]}]}]\n",
            "slices: has empty slices only",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: b}]\n",
            "has no 'name'",
        ),
        (HEAD + "tokenizer: {source: union}\ntokenizer_source: base\n", "stands beside tokenizer_source"),
        (HEAD + "tokenizer: {sauce: union}\n", "did you mean 'source'?"),
        (HEAD + "tokenizer: {pad_to_multiple_of: 0}\n", "tokenizer.pad_to_multiple_of: 0 is outside [1, inf)"),
        (HEAD + "tokenizer: {tokens: {'': {source: {kind: zero}}}}\n", "an empty text is no token"),
        (HEAD + "tokenizer: {tokens: {x: {force: true}}}\n", "tokenizer.tokens.x: is forced without a source"),
        (HEAD + "tokenizer: {tokens: {x: {source: {kind: zeros}}}}\n", "unknown kind 'zeros'; did you mean 'zero'?"),
        (
            HEAD + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
            "needs exactly one of token and token_id",
        ),
        ("merge_method: linear\nmodules: {}\n", "names no module"),
        ("name: ../victim\n" + HEAD, "r:1: name: '../victim' is a path, so it cannot name a document"),
        ("name: /tmp/victim\n" + HEAD, "r:1: name: '/tmp/victim' is a path, so it cannot name a document"),
        ("name: ..\n" + HEAD, "r:1: name: '..' begins with '.', so it cannot name a document"),
        ("merge_method: TIES\nmodels: [{model: a}]\n", "unknown merge method 'TIES'; did you mean 'ties'?"),
        ("merge_method: [ties]\nmodels: [{model: a}]\n", "is ['ties'], not the name of a merge method; use one of: "),
        (HEAD + "random_seed: 010\n", "random_seed: 010 is 8 to mergekit (YAML 1.1) and 10 in YAML 1.2; write 8"),
        (HEAD + "chat_template: 1:30\n", "chat_template: 1:30 is 90 to mergekit (YAML 1.1) and a text in YAML 1.2"),
        (HEAD + "tokenizer: {pad_to_multiple_of: 1000000000}\n", "give at most 65,536"),
        (HEAD + "parameters: {weight: 0x" + "1" * 6000 + "}\n", "r:3: parameters.weight: 0x1111"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1000000000]}]}]\n",
            "r:2: slices.0.sources.0.layer_range.1: 1000000000 is outside [0, 10000]",
        ),
        (
            "merge_method: passthrough\nslices:\n" + "- sources: [{model: a, layer_range: [0, 100]}]\n" * 101,
            "r:103: slices.100: the slices up to this one have 10,100 layers, more than 10,000; give fewer",
        ),
        ("merge_method: linear\nmodules: {default: {}}\n", "modules.default: needs exactly one of models and slices"),
    ],
)
def test_what_a_recipe_cannot_say(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "r")
    assert message in str(caught.value)


def test_words_and_numbers_that_mergekit_reads() -> None:
    text = "int8_mask: yes, normalize: on, rescale: No, weight: 1_0, density: 1e-1, lambda: 0x1, epsilon: .5"
    recipe = parse_recipe(f"{HEAD}parameters: {{{text}}}\n")
    assert dict(recipe.output.parameters) == {
        "int8_mask": True, "normalize": True, "rescale": False, "weight": 10, "density": 0.1, "lambda": 1,
        "epsilon": 0.5,
    }  # fmt: skip


def test_a_seed_keeps_all_its_digits() -> None:
    assert parse_recipe(f"{HEAD}random_seed: 9007199254740993\n").output.seed == 9007199254740993


def test_a_merged_mapping_of_parameters() -> None:
    text = "merge_method: linear\nmodels:\n- {model: a, parameters: &p {weight: 1, density: 0.5}}\n"
    recipe = parse_recipe(text + "- {model: b, parameters: {<<: *p, weight: 2}}\n")
    assert dict(recipe.output.slices[0].inputs[1].parameters) == {"weight": 2, "density": 0.5}


def test_many_documents_and_models_are_read_in_seconds() -> None:
    document = "name: d{0}\nmerge_method: linear\nmodels: [{{model: d{1}}}]\n---\n"
    chain = "".join(document.format(i, i + 1) for i in range(300))
    assert len(parse_recipe(chain + HEAD).documents) == 301
    models = "".join(f"- model: m{i}\n" for i in range(5_000))
    assert len(parse_recipe(f"merge_method: linear\nmodels:\n{models}").models()) == 5_000
