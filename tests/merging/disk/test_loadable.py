"""No merge ends well with a checkpoint that transformers would fill in at random."""

from __future__ import annotations

import json

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.merging.plan import layer_settings
from evomerge.recipe.mergekit import parse_recipe

_KINDS = ("bart", "blenderbot", "led", "m2m_100", "marian", "mbart", "pegasus", "t5", "whisper")
AVERAGE = """
merge_method: linear
models:
- {{model: {0}, parameters: {{weight: 0.5}}}}
- {{model: {1}, parameters: {{weight: 0.5}}}}
"""


def encoder_decoder(kind, folder, seed, encoder, decoder, **more):
    if kind == "t5":
        sizes = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_heads": 2,
            "num_layers": encoder,
            "num_decoder_layers": decoder,
        }
    else:
        sizes = {"d_model": 16, "encoder_layers": encoder, "decoder_layers": decoder, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
    if kind == "whisper":
        sizes |= {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20,
                  "begin_suppress_tokens": None, "suppress_tokens": None}  # fmt: skip
    if kind == "led":
        sizes |= {"attention_window": [4] * encoder, "max_encoder_position_embeddings": 32}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(seed)
    auto = AutoModelForSpeechSeq2Seq if kind == "whisper" else AutoModelForSeq2SeqLM
    auto.from_config(AutoConfig.for_model(kind, vocab_size=99, **tokens, **sizes, **more)).save_pretrained(folder)
    return folder


def counts(folder):
    return {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k.endswith("_layers")}


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 3), (2, 4), (4, 2)])
@pytest.mark.parametrize("kind", _KINDS)
def test_an_encoder_decoder_keeps_its_layers(kind, encoder, decoder, tmp_path):
    a, b = (encoder_decoder(kind, tmp_path / name, seed, encoder, decoder) for seed, name in enumerate("ab"))
    out = merge(parse_recipe(AVERAGE.format(a, b), "r.yaml"), tmp_path / "out", copy_tokenizer=False)
    assert counts(out) == counts(a)
    auto = AutoModelForSpeechSeq2Seq if kind == "whisper" else AutoModelForSeq2SeqLM
    model, info = auto.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = [auto.from_pretrained(folder).state_dict() for folder in (a, b)]
    assert all(torch.equal(t, (state[0][n] + state[1][n]) / 2) for n, t in model.state_dict().items())


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_decoder_that_is_stacked_is_counted_in_the_configuration(kind, tmp_path):
    a = encoder_decoder(kind, tmp_path / "a", 0, encoder=2, decoder=3)
    text = f"""
merge_method: passthrough
modules:
  decoder:
    slices:
    - sources: [{{model: {a}, layer_range: [0, 3]}}]
    - sources: [{{model: {a}, layer_range: [2, 3]}}]
  encoder: {{slices: [{{sources: [{{model: {a}, layer_range: [0, 1]}}]}}]}}
"""
    out = merge(parse_recipe(text, "r.yaml"), tmp_path / "out", copy_tokenizer=False)
    names = {"bart": ("encoder_layers", "decoder_layers"), "t5": ("num_layers", "num_decoder_layers")}[kind]
    assert [counts(out)[name] for name in names] == [1, 4]
    _, info = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.fixture
def tell(tmp_path):
    """Merges a and b evenly; returns the lines told."""

    def run(a, b):
        lines: list[str] = []
        merge(parse_recipe(AVERAGE.format(a, b), "r.yaml"), tmp_path / "out", note=lines.append)
        return [line.replace(f"{tmp_path}/", "") for line in lines]

    return run


def pair(tmp_path, tensors, **changes):
    return [tiny_models.write(tmp_path / name, tensors, **changes) for name in "ab"]


def test_a_configuration_that_does_not_fit_the_tensors_is_refused(models, tmp_path, monkeypatch):
    def broken(config, donor, runs):
        config["num_hidden_layers"] = 1

    monkeypatch.setattr("evomerge.merging.plan.output_config.follow_layers", broken)
    assert layer_settings.follow_layers is not broken
    with pytest.raises(InputError, match=r"has no place, by its configuration, for model\.layers\.1\.") as caught:
        merge(parse_recipe(AVERAGE.format(models["a"], models["b"]), "r.yaml"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_parameters_that_no_model_stores_are_a_warning(tell, tmp_path):
    tensors = tiny_models.base_tensors()
    del tensors["lm_head.weight"]
    [line] = tell(*pair(tmp_path, tensors))
    assert line == "warning: transformers fills in lm_head.weight at random, as it does in a"


def test_a_head_that_only_another_model_has_is_refused(tell, tmp_path):
    tensors = tiny_models.base_tensors()
    b = tiny_models.write(tmp_path / "b", tensors)
    del tensors["lm_head.weight"]
    with pytest.raises(InputError, match=r"a has no tensor lm_head\.weight, which another model of the merge has"):
        tell(tiny_models.write(tmp_path / "a", tensors), b)


def test_models_that_transformers_does_not_know_are_not_checked(tell, tmp_path):
    [line] = tell(*pair(tmp_path, tiny_models.base_tensors(), model_type="of_their_own", architectures=["Own"]))
    assert line == "not checked: transformers has no model of the type of_their_own"


def test_models_that_transformers_cannot_build_are_not_checked_either(tell, tmp_path):
    [line] = tell(*pair(tmp_path, tiny_models.base_tensors(), hidden_act="no_such_act"))
    assert line.startswith("not checked: transformers cannot load a either (")
