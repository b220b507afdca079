"""Which models, parameters and dtypes each output tensor gets; and what a recipe may not say."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.merging.plan import settings as plan_settings
from evomerge.merging.plan.jobs import COPY, MergeJob, Read
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS

UP = "model.layers.{}.mlp.up_proj.weight"


class Checked:
    """A method with a check of its values together."""

    def __init__(self, method, check):
        self._method, self.check = method, check

    def __getattr__(self, name):
        return getattr(self._method, name)


@pytest.fixture
def planned(models):
    def make(text):
        for name in ("base", "a", "b", "c"):
            text = text.replace(f"<{name}>", str(models[name]))
        return plan(parse_recipe(text, "recipe.yaml"), SourceBank().open)

    return make


def weights(merge_plan, name):
    return merge_plan.jobs[name].parameters["weight"]


def test_gradients_filters_and_precedence(planned):
    merge_plan = planned("""
merge_method: linear
models:
- {model: <a>, parameters: {weight: [0.0, 1.0]}}
- {model: <b>, parameters: {weight: [{filter: mlp, value: 0.7}]}}
parameters: {weight: 0.2}
""")
    assert [weights(merge_plan, UP.format(i))[0] for i in range(3)] == [0.0, 0.5, 1.0]
    assert weights(merge_plan, UP.format(0))[1] == 0.7
    assert weights(merge_plan, "model.norm.weight") == (0.0, 0.2)  # outside the stack a gradient gives its first value


def test_tensors_outside_the_stack_follow_the_first_and_the_last_slice(planned):
    merge_plan = planned("""
merge_method: task_arithmetic
base_model: <base>
slices:
- sources:
  - {model: <a>, layer_range: [0, 1], parameters: {weight: 0.1}}
  - {model: <base>, layer_range: [0, 1]}
- sources:
  - {model: <b>, layer_range: [1, 3], parameters: {weight: 0.9}}
  - {model: <base>, layer_range: [1, 3]}
""")
    assert weights(merge_plan, "model.embed_tokens.weight") == (0.1,)
    assert weights(merge_plan, "model.norm.weight") == weights(merge_plan, "lm_head.weight") == (0.9,)
    assert merge_plan.jobs["lm_head.weight"].inputs[0].model.endswith("/b")
    assert merge_plan.stack.layers == merge_plan.config["num_hidden_layers"] == 3


def test_stacked_layers_are_renumbered(planned):
    merge_plan = planned("""
merge_method: passthrough
slices:
- sources: [{model: <a>, layer_range: [0, 3]}]
- sources: [{model: <b>, layer_range: [1, 3]}]
""")
    assert merge_plan.stack.layers == merge_plan.config["num_hidden_layers"] == 5
    read = merge_plan.jobs[UP.format(4)].inputs[0]
    assert isinstance(read, Read)
    assert (read.model.rpartition("/")[2], read.tensor) == ("b", UP.format(2))
    assert next(iter(merge_plan.jobs)) == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "listed", ["[{model: <a>}, {model: <base>}]", "[{model: <base>}, {model: <a>}]", "[{model: <a>}]"]
)
def test_the_base_of_slerp_may_be_listed_or_not(planned, listed):
    merge_plan = planned(f"merge_method: slerp\nbase_model: <base>\nparameters: {{t: 0.3}}\nmodels: {listed}")
    job = merge_plan.jobs[UP.format(0)]
    assert isinstance(job.base, Read)
    assert job.base.model.endswith("/base")
    assert [i.model.rpartition("/")[2] for i in job.inputs] == ["a"]


def test_a_base_that_slices_do_not_list_gives_the_same_layers(models):
    slices = (Slice((Input(str(models["a"]), (1, 3), {"weight": 1.0}),)),)
    recipe = Recipe((Document("task_arithmetic", slices, base=str(models["base"])),))
    job = plan(recipe, SourceBank().open).jobs[UP.format(0)]
    assert job.base.tensor == job.inputs[0].tensor == UP.format(1)


def test_the_base_takes_no_part_in_the_sum_even_if_listed_with_a_weight(planned):
    merge_plan = planned("""
merge_method: task_arithmetic
base_model: <base>
models:
- {model: <base>, parameters: {weight: 5}}
- {model: <a>, parameters: {weight: 1}}
""")
    assert weights(merge_plan, UP.format(0)) == (1.0,)


def test_dtypes(planned, models_bf16, models):
    text = "merge_method: passthrough\nmodels: [{model: <a>}]\n"
    assert {(j.work, j.out) for j in planned(text).jobs.values()} == {("float32", "float32")}
    merge_plan = planned(text + "dtype: bfloat16\nout_dtype: float16\n")
    assert {(j.work, j.out) for j in merge_plan.jobs.values()} == {("bfloat16", "float16")}
    assert merge_plan.config["dtype"] == "float16"
    mixed = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {models_bf16['a']}}}, {{model: <b>}}]"
    assert {j.work for j in planned(mixed).jobs.values()} == {"float32"}


def test_later_documents_read_earlier_ones(planned):
    merge_plan = planned("""
name: first
merge_method: linear
models: [{model: <a>, parameters: {weight: 1}}, {model: <b>, parameters: {weight: 1}}]
out_dtype: bfloat16
---
merge_method: slerp
base_model: first
models: [{model: first}, {model: <c>}]
parameters: {t: 0.5}
""")
    job = merge_plan.jobs[UP.format(1)]
    assert isinstance(job.base, MergeJob)
    assert (job.base.method, job.base.out, job.work) == ("linear", "bfloat16", "float32")
    assert merge_plan.donor.path.name == "a"
    assert [c.path.name for c in merge_plan.checkpoints] == ["a", "b", "c"]


def test_per_layer_settings_follow_the_layers(tmp_path):
    kinds = ["full", "sliding", "full"]
    folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), layer_types=kinds)
    slices = (Slice((Input(str(folder), (1, 3)),)), Slice((Input(str(folder), (1, 2)),)))
    merge_plan = plan(Recipe((Document("passthrough", slices),)), SourceBank().open)
    assert merge_plan.config["layer_types"] == ["sliding", "full", "sliding"]


def test_an_untied_source_unties_the_output(tied_models, models):
    inputs = tuple(Input(str(m["a"]), None, {"weight": 0.5}) for m in (tied_models, models))
    merge_plan = plan(Recipe((Document("linear", (Slice(inputs),)),)), SourceBank().open)
    assert merge_plan.config["tie_word_embeddings"] is False
    assert [i.tensor for i in merge_plan.jobs["lm_head.weight"].inputs] == [
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]


def test_whole_numbers_are_copied(tmp_path):
    tensors = tiny_models.base_tensors() | {"model.layers.0.positions": torch.arange(4)}
    folder = tiny_models.write(tmp_path / "m", tensors)
    merge_plan = plan(Recipe((Document("passthrough", (Slice((Input(str(folder)),)),)),)), SourceBank().open)
    assert merge_plan.jobs["model.layers.0.positions"].method == COPY


def test_a_slice_may_have_a_base_of_its_own(planned):
    merge_plan = planned("""
merge_method: task_arithmetic
base_model: <base>
parameters: {weight: 1}
slices:
- sources: [{model: <a>, layer_range: [0, 1]}, {model: <base>, layer_range: [0, 1]}]
- base_model: <c>
  sources: [{model: <a>, layer_range: [1, 3]}, {model: <c>, layer_range: [1, 3]}]
""")
    bases = [merge_plan.jobs[UP.format(i)].base.model.rpartition("/")[2] for i in range(3)]
    assert bases == ["base", "c", "c"]
    assert merge_plan.jobs["model.embed_tokens.weight"].base.model.endswith("/base")
    assert merge_plan.donor.path.name == "base"


def test_the_one_module_of_a_plain_model_is_called_default(planned):
    text = "models: [{model: <a>, parameters: {weight: 1}}, {model: <b>}]"
    merge_plan = planned(f"""
merge_method: linear
parameters: {{weight: 3}}
modules: {{default: {{{text}, parameters: {{weight: 2}}}}}}
""")
    assert {job.parameters["weight"] for job in merge_plan.jobs.values()} == {(1.0, 2.0)}
    assert list(merge_plan.jobs) == list(planned(f"merge_method: linear\nparameters: {{weight: 3}}\n{text}").jobs)


class TestModules:
    """A model with a vision tower of two layers beside its three."""

    @pytest.fixture
    def seeing(self, tmp_path):
        found = {}
        for number, name in enumerate("ab"):
            tensors = tiny_models.base_tensors(number)
            tensors |= {f"visual.blocks.{i}.w.weight": torch.full((2,), float(number)) for i in range(2)}
            tensors |= {"visual.patch.weight": torch.zeros(2), "visual.merger.weight": torch.zeros(2)}
            found[name] = tiny_models.write(tmp_path / name, tensors, vision_config={"depth": 2})
        return found

    def plan(self, seeing, text):
        for name, folder in seeing.items():
            text = text.replace(f"<{name}>", str(folder))
        return plan(parse_recipe(text, "recipe.yaml"), SourceBank().open)

    def test_models_merge_every_module_over_its_own_depth(self, seeing):
        merge_plan = self.plan(seeing, """
merge_method: linear
models: [{model: <a>, parameters: {weight: [0, 1]}}, {model: <b>, parameters: {weight: 1}}]
""")  # fmt: skip
        assert [weights(merge_plan, f"visual.blocks.{i}.w.weight")[0] for i in range(2)] == [0.0, 1.0]
        assert [weights(merge_plan, UP.format(i))[0] for i in range(3)] == [0.0, 0.5, 1.0]
        assert set(merge_plan.jobs) == set(merge_plan.checkpoints[0].tensors)

    def test_modules_have_their_own_slices_and_parameters(self, seeing):
        merge_plan = self.plan(seeing, """
merge_method: passthrough
base_model: <a>
modules:
  text_decoder:
    parameters: {scale: 2}
    slices: [{sources: [{model: <a>, layer_range: [0, 3]}]}, {sources: [{model: <b>, layer_range: [1, 2]}]}]
  vision_tower:
    slices: [{sources: [{model: <b>, layer_range: [1, 2], parameters: {scale: 3}}]}]
""")  # fmt: skip
        assert merge_plan.config["num_hidden_layers"] == merge_plan.stack.layers == 4
        assert merge_plan.config["vision_config"]["depth"] == 1
        assert merge_plan.jobs[UP.format(3)].parameters["scale"] == (2.0,)
        block = merge_plan.jobs["visual.blocks.0.w.weight"]
        assert (block.inputs[0].tensor, block.parameters["scale"]) == ("visual.blocks.1.w.weight", (3.0,))
        assert "visual.blocks.1.w.weight" not in merge_plan.jobs
        # The projector is not named, so it is the base's.
        assert merge_plan.jobs["visual.merger.weight"].inputs[0].model == str(seeing["a"])

    def test_a_module_that_is_not_there_names_those_that_are(self, seeing):
        with pytest.raises(
            InputError, match="no module 'default'; use one of: multi_modal_projector, text_decoder, vis"
        ):
            self.plan(seeing, "merge_method: passthrough\nmodules: {default: {models: [{model: <a>}]}}")


def test_values_become_what_the_method_declares(planned):
    merge_plan = planned("""
merge_method: ties
base_model: <base>
models: [{model: <a>}]
parameters: {weight: true, density: 1.5, normalize: [1, 0], lambda: '2e-1'}
""")
    first, last = merge_plan.jobs[UP.format(0)].parameters, merge_plan.jobs[UP.format(2)].parameters
    assert (first["weight"], first["density"], first["lambda"]) == ((1.0,), (1.0,), 0.2)
    assert (first["normalize"], last["normalize"]) == (True, False)


def test_a_path_may_go_on_beyond_its_ends(planned):
    merge_plan = planned("merge_method: slerp\nbase_model: <base>\nmodels: [{model: <a>}]\nparameters: {t: 1.5}")
    assert merge_plan.jobs[UP.format(0)].parameters["t"] == 1.5


class TestBad:
    def problem(self, planned, text):
        with pytest.raises(InputError) as caught:
            planned(text)
        assert str(caught.value).startswith("recipe.yaml:")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_required_parameter_is_missing(self, planned):
        text = self.problem(planned, "merge_method: linear\nmodels: [{model: <a>}]")
        assert "has no weight for model.embed_tokens.weight" in text
        assert "/a" in text
        text = self.problem(planned, "merge_method: slerp\nbase_model: <base>\nmodels: [{model: <a>}]")
        assert "slerp has no t" in text

    def test_no_filter_matches(self, planned):
        entry = "{weight: [{filter: mlp, value: 1}]}"
        text = self.problem(planned, f"merge_method: linear\nmodels: [{{model: <a>, parameters: {entry}}}]")
        assert "has no weight for model.embed_tokens.weight" in text
        assert "a filter entry without filter" in text

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("-0.1", "density is -0.1 for model.embed_tokens.weight, outside [0, 1]"),
            ("[0.5, -1]", "density is -0.25 for model.layers.1.input_layernorm.weight, outside [0, 1]"),
        ],
    )
    def test_a_value_that_the_method_cannot_take(self, planned, value, message):
        text = self.problem(
            planned,
            "merge_method: ties\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    weight: 1\n"
            f"    density: {value}\n",
        )
        assert text.startswith("recipe.yaml:7: models.0.parameters.density: ")
        assert message in text

    def test_a_flag_that_is_none(self, planned):
        text = self.problem(
            planned,
            "merge_method: linear\nparameters:\n  weight: 1\n  normalize: 0.5\nmodels: [{model: <a>}]\n",
        )
        assert text.startswith("recipe.yaml:4: parameters.normalize: ")
        assert "0.5, not true or false" in text

    def test_values_that_do_not_go_together(self, planned, monkeypatch):
        def check(values):
            return "too much of both" if values["weight"] + values["lambda"] > 3 else None

        checked = {**METHODS, "task_arithmetic": Checked(METHODS["task_arithmetic"], check)}
        monkeypatch.setattr(plan_settings, "METHODS", checked)
        text = "merge_method: task_arithmetic\nbase_model: <base>\nmodels: [{model: <a>}, {model: <b>}]\n"
        planned(text + "parameters: {weight: 1, lambda: 2}")
        message = self.problem(planned, text + "parameters: {weight: [1, 2], lambda: 2}")
        assert "task_arithmetic of" in message
        assert "too much of both" in message

    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            ("[{filter: q_proj, bands: [1, 2], sizes: [1, 999]}, {value: 1}]", "self_attn.q_proj.weight of"),
            ("[{filter: q_proj, bands: [1, 2], sizes: [1, 999]}, {value: 1}]", "let the sizes sum to the directions"),
            (f"[{{filter: q_proj, bands: {[1] * 999}}}, {{value: 1}}]", "999 bands, and the matrix has"),
            ("[{bands: [1, 2]}]", "is no matrix"),
        ],
    )
    def test_bands_that_a_tensor_does_not_have(self, planned, weight, message):
        head = "merge_method: band_arithmetic\nbase_model: <base>\nmodels:\n- {model: <b>, parameters: {weight: 1}}\n"
        text = self.problem(planned, f"{head}- model: <a>\n  parameters:\n    weight: {weight}\n")
        assert text.startswith("recipe.yaml:7: models.1.parameters.weight: ")
        assert message in text

    def test_a_module_that_the_models_do_not_have(self, planned):
        text = self.problem(planned, "merge_method: passthrough\nmodules: {decoder: {models: [{model: <a>}]}}")
        assert "the models have no module 'decoder'; use one of: default" in text

    def test_one_model_twice_under_two_names(self, planned, models):
        listed = f"[{{model: <a>}}, {{model: {models['a']}/../a}}]"
        text = self.problem(planned, f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: {listed}")
        assert "is listed twice" in text

    def test_too_many_models(self, planned):
        text = "merge_method: slerp\nbase_model: <base>\nparameters: {t: 0.5}\nmodels: [{model: <a>}, {model: <b>}]"
        assert "slerp takes exactly 1 model besides the base, not 2" in self.problem(planned, text)
        text = "merge_method: passthrough\nmodels: [{model: <a>}, {model: <b>}]"
        assert "passthrough takes exactly 1 model, not 2" in self.problem(planned, text)

    def test_no_base(self, planned):
        text = self.problem(planned, "merge_method: ties\nparameters: {weight: 1}\nmodels: [{model: <a>}]")
        assert "ties needs a base_model" in text

    def test_layers_that_a_model_does_not_have(self, planned):
        text = "merge_method: passthrough\nslices: [{sources: [{model: <a>, layer_range: [1, 4]}]}]"
        assert "layer_range [1, 4)" in self.problem(planned, text)
        assert "has 3 layers" in self.problem(planned, text)

    def test_other_shapes_name_tensor_and_both_shapes(self, planned, tmp_path):
        tensors = tiny_models.base_tensors()
        tensors[UP.format(1)] = torch.zeros(30, 16)
        folder = tiny_models.write(tmp_path / "odd", tensors)
        listed = f"[{{model: <a>}}, {{model: {folder}}}]"
        text = self.problem(planned, f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: {listed}")
        assert f"{UP.format(1)} is [30, 16] in {folder}, [24, 16] in" in text

    def test_another_architecture(self, planned, tmp_path):
        folder = tiny_models.write(tmp_path / "odd", tiny_models.base_tensors(), model_type="qwen2")
        listed = f"[{{model: <a>}}, {{model: {folder}}}]"
        text = self.problem(planned, f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: {listed}")
        assert "is a qwen2 model" in text

    def test_a_missing_folder_stands_at_its_line(self, planned, models):
        text = self.problem(planned, f"merge_method: passthrough\nmodels:\n- model: {models['a']}x\n")
        assert text.startswith("recipe.yaml:3")
        assert "did you mean" in text


def test_open_is_asked_once_for_each_reference(models):
    asked = []

    def opener(ref, where):
        asked.append(ref)
        return Checkpoint.open(ref, where)

    slices = tuple(Slice((Input(str(models["a"]), (i, i + 1)),)) for i in range(3))
    plan(Recipe((Document("passthrough", slices),)), opener)
    assert asked == [str(models["a"])]
