"""A language model merged into the language part of a vision-language model, and that part into a language model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge

TEXT = {"vocab_size": 28, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip


@pytest.fixture(scope="module", params=["hub", "native"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("models"), {}
    for seed, name in enumerate(("vlm", "tuned", "text", "other")):
        torch.manual_seed(seed)
        found[name] = root / name
        if name in ("vlm", "tuned"):
            vision = {**VISION, "model_type": "siglip_vision_model"}
            text = {**TEXT, "model_type": "gemma3_text"}
            config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1)
            model = AutoModelForImageTextToText.from_config(config)
            model.save_pretrained(found[name], save_original_format=request.param == "hub")
        else:
            AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **TEXT)).save_pretrained(found[name])
        tiny_models.write_tokenizer(found[name])
    return found


def run(folder: Path, recipe: dict[str, object]) -> dict[str, torch.Tensor]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_file(merge(folder / "recipe.yaml", folder / "out") / "model.safetensors")


def language(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The language part, by what the names of all layouts have in common."""
    return {n.split("model.")[-1]: t for n, t in tensors.items() if "vision" not in n and "projector" not in n}


def test_a_language_model_is_merged_into_the_language_part(models: dict[str, Path], tmp_path: Path) -> None:
    entries = [{"model": str(models[n]), "parameters": {"weight": w}} for n, w in (("vlm", 0.25), ("text", 0.75))]
    merged = run(tmp_path, {
        "merge_method": "linear", "base_model": str(models["vlm"]), "modules": {"text_decoder": {"models": entries}},
    })  # fmt: skip
    stored = {n: load_file(models[n] / "model.safetensors") for n in ("vlm", "text")}
    assert merged.keys() == stored["vlm"].keys()
    ours, text, out = language(stored["vlm"]), language(stored["text"]), language(merged)
    assert ours.keys() == text.keys() == out.keys()
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, 0.25 * ours[name] + 0.75 * text[name])
    towers = [name for name in merged if "vision" in name or "projector" in name]
    assert towers
    assert all(torch.equal(merged[name], stored["vlm"][name]) for name in towers)
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_language_part_is_merged_into_a_language_model(models: dict[str, Path], tmp_path: Path) -> None:
    entries = [{"model": str(models[n]), "parameters": {"weight": 0.5}} for n in ("tuned", "text")]
    merged = run(tmp_path, {"merge_method": "task_arithmetic", "base_model": str(models["other"]), "models": entries})
    stored = {n: language(load_file(models[n] / "model.safetensors")) for n in ("tuned", "text", "other")}
    assert merged.keys() == load_file(models["other"] / "model.safetensors").keys()
    for name, tensor in language(merged).items():
        expected = 0.5 * stored["tuned"][name] + 0.5 * stored["text"][name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


def test_without_its_module_the_towers_are_missed(models: dict[str, Path], tmp_path: Path) -> None:
    entries = [{"model": str(models[n]), "parameters": {"weight": 0.5}} for n in ("vlm", "text")]
    with pytest.raises(InputError, match=r"text has no module .*; merge the language part alone: .*text_decoder"):
        run(tmp_path, {"merge_method": "linear", "base_model": str(models["vlm"]), "models": entries})


def test_slices_of_the_whole_model_have_its_towers(models: dict[str, Path], tmp_path: Path) -> None:
    """As a search writes a genome that has values for each layer."""
    halves = [
        {"sources": [{"model": str(models[n]), "layer_range": [i, i + 1]} for n in ("vlm", "tuned")],
         "parameters": {"weight": 0.5}}
        for i in range(2)
    ]  # fmt: skip
    merged = run(tmp_path, {"merge_method": "linear", "slices": halves})
    vlm, tuned = (load_file(models[n] / "model.safetensors") for n in ("vlm", "tuned"))
    assert merged.keys() == vlm.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.5 * vlm[name] + 0.5 * tuned[name])


def test_no_merge_loses_the_token_of_images(models: dict[str, Path], tmp_path: Path) -> None:
    """Row 26 is the image's, and the tokenizer has no word for it: with the tokens of the base, it would be cut off."""
    folders = {}
    for name in ("vlm", "tuned"):
        folders[name] = shutil.copytree(models[name], tmp_path / name)
        config = json.loads((folders[name] / "config.json").read_text())
        (folders[name] / "config.json").write_text(json.dumps({**config, "image_token_index": 26}))
    entries = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in folders.values()]
    recipe = {"merge_method": "linear", "base_model": str(folders["vlm"]), "models": entries}
    run(tmp_path, recipe)
    with pytest.raises(
        InputError, match=r"image_token_index in config.json is 26, a row that the tokenizer has no word"
    ):
        run(tmp_path / "vlm", {**recipe, "tokenizer_source": "base"})
