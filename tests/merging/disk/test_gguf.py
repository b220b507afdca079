"""A converter to GGUF reads the written folder: what llama.cpp's scripts take from it through their library `gguf`."""

from __future__ import annotations

import json

import pytest
import tiny_models
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.merging.disk.stream import merge
from evomerge.recipe.mergekit import parse_recipe

gguf = pytest.importorskip("gguf")


def write(folder, *added, seed):
    """A model over a BPE vocabulary, with its template in tokenizer_config.json."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        ["red green blue one two three"] * 3,
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_tokens(list(added), special_tokens=True)
    settings = {"vocab_size": len(made), "bos_token_id": 1, "eos_token_id": 2}
    tiny_models.write(folder, tiny_models.base_tensors(seed, vocab=len(made)), **settings)
    made.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "OLD", "add_bos_token": True}))
    return folder


@pytest.fixture
def merged(tmp_path):
    """Merges two models by a recipe that ends with `text`."""
    pair = [write(tmp_path / "a", seed=1), write(tmp_path / "b", "<|im_start|>", seed=2)]

    def run(text):
        lines = "".join(f"- {{model: {folder}, parameters: {{weight: 1}}}}\n" for folder in pair)
        return merge(parse_recipe(f"merge_method: linear\nmodels:\n{lines}{text}\n"), tmp_path / "out")

    return run


TOKENIZERS = {"copied": "tokenizer_source: base", "rebuilt": "tokenizer_source: union"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_vocabulary_and_template(name, merged):
    folder = merged(f"{TOKENIZERS[name]}\nchat_template: chatml")
    found = gguf.SpecialVocab(folder, load_merges=True)
    assert found.chat_template == CHAT_TEMPLATES["chatml"]
    assert (found.special_token_ids["bos"], found.special_token_ids["eos"]) == (1, 2)
    tokens = load_tokenizer(folder).get_vocab()
    assert ("<|im_start|>" in tokens) == (name == "rebuilt")
    assert found.merges
    assert all(part in tokens for merge in found.merges for part in merge.split(" "))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tensor_has_a_name_there_and_fits_the_configuration(name, merged):
    folder = merged(TOKENIZERS[name])
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == ["LlamaForCausalLM"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    mapped = {names.get_name(tensor, try_suffixes=(".weight", ".bias")) for tensor in tensors}
    assert None not in mapped
    assert len(mapped) == len(tensors)
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert config["vocab_size"] == len(load_tokenizer(folder).get_vocab())


def test_a_written_file_is_read_back(merged, tmp_path):
    folder, file = merged("tokenizer_source: union"), tmp_path / "model.gguf"
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(config["vocab_size"])
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
    for name, tensor in tensors.items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) + ".weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(file)
    assert len(reader.tensors) == len(tensors)
    assert reader.fields["tokenizer.chat_template"].contents() == "OLD"
    assert reader.fields["llama.vocab_size"].contents() == config["vocab_size"]
