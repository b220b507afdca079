from __future__ import annotations

import subprocess
import sys

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

from evomerge.checkpoints import checkpoint as module
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, Where


def test_open_tells_what_the_headers_say(models):
    opened = Checkpoint.open(str(models["base"]))
    assert opened.layers == tiny_models.LAYERS
    assert opened.dtype == "float32"
    assert not opened.tied
    assert opened.embedding == "model.embed_tokens.weight"
    assert opened.tensors["model.norm.weight"].shape == (tiny_models.HIDDEN,)
    assert opened.resolved() == str(models["base"])
    assert torch.equal(opened.read("lm_head.weight"), tiny_models.base_tensors()["lm_head.weight"])


def test_opening_does_not_import_torch(models):
    code = (
        "import sys; from evomerge.checkpoints.checkpoint import Checkpoint;"
        "from evomerge.checkpoints import preflight;"
        "c = Checkpoint.open(sys.argv[1]); preflight.token_changes(c, {'s': c}, 'base', lambda n: None);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models["base"])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shards_read_like_one_file(tmp_path):
    tensors = tiny_models.base_tensors()
    whole = Checkpoint.open(str(tiny_models.write(tmp_path / "whole", tensors)))
    sharded = Checkpoint.open(str(tiny_models.write_sharded(tmp_path / "sharded", tensors)))
    assert list(whole.tensors) == list(sharded.tensors)
    assert all(torch.equal(whole.read(n), sharded.read(n)) for n in whole.tensors)


def test_references_are_looked_for_here_then_beside_the_file(models, monkeypatch, tmp_path):
    monkeypatch.chdir(models["base"].parent)
    assert Checkpoint.open("./base").path == models["base"]
    monkeypatch.chdir(tmp_path)
    where = Where(models["base"].parent / "recipe.yaml", 3)
    assert Checkpoint.open("base", where).path == models["base"]


def test_fingerprint_is_of_the_contents(tmp_path):
    tensors = tiny_models.base_tensors()
    first = Checkpoint.open(str(tiny_models.write(tmp_path / "first", tensors)))
    copy = Checkpoint.open(str(tiny_models.write(tmp_path / "copy", tensors)))
    assert first.fingerprint() == copy.fingerprint()
    tensors["model.norm.weight"][0] += 1
    tiny_models.write(tmp_path / "copy", tensors)
    assert Checkpoint.open(str(tmp_path / "copy")).fingerprint() != first.fingerprint()
    (tmp_path / "first" / "tokenizer_config.json").write_text("{}")
    assert Checkpoint.open(str(tmp_path / "first")).fingerprint() != copy.fingerprint()


def test_dtype_is_that_of_most_elements(tmp_path):
    tensors = tiny_models.base_tensors(dtype=torch.bfloat16)
    tensors = {n: t.float() if "norm" in n else t for n, t in tensors.items()}
    assert Checkpoint.open(str(tiny_models.write(tmp_path / "m", tensors))).dtype == "bfloat16"


def test_a_tied_head_and_derived_buffers_are_no_tensors_of_the_model(tmp_path):
    tensors = tiny_models.base_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    opened = Checkpoint.open(str(tiny_models.write(tmp_path / "m", tensors, tie_word_embeddings=True)))
    assert opened.tied
    assert "lm_head.weight" not in opened.tensors
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in opened.tensors


class TestHub:
    def test_the_commit_is_recorded(self, models, monkeypatch, tmp_path):
        commit = "0123456789abcdef0123456789abcdef01234567"
        (tmp_path / "snapshots").mkdir()
        (tmp_path / "snapshots" / commit).symlink_to(models["base"])
        asked = {}

        def snapshot_download(name, **options):
            asked.update(options, name=name)
            return str(tmp_path / "snapshots" / commit)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        opened = Checkpoint.open("org/model@v1")
        assert opened.resolved() == f"org/model@{commit}"
        assert (asked["name"], asked["revision"]) == ("org/model", "v1")
        assert not any(p.endswith((".bin", ".py", ".pt")) for p in asked["allow_patterns"])

    def test_offline_is_one_clear_line(self, monkeypatch, tmp_path):
        def snapshot_download(name, **options):
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError) as caught:
            Checkpoint.open("org/model", Where("space.yaml", 2, "base"))
        text = str(caught.value)
        assert text.startswith("space.yaml:2: base: there is no folder org/model, and the hub cannot be reached")
        assert "\n" not in text


class TestBad:
    """Each is one line that says what and how to mend."""

    def problem(self, folder, where=None):
        with pytest.raises(InputError) as caught:
            Checkpoint.open(str(folder), where)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_folder_suggests_the_nearest_one(self, models):
        text = self.problem(models["base"].parent / "bse", Where("space.yaml", 4, "base"))
        assert text.startswith("space.yaml:4: base: there is no folder")
        assert f"did you mean {models['base']}?" in text

    def test_a_file_is_no_checkpoint(self, models):
        assert "is a file, not a model folder" in self.problem(models["base"] / "config.json")

    def test_pickles_are_refused(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"x")
        text = self.problem(tmp_path)
        assert "pickled weights" in text
        assert "save_pretrained" in text

    def test_empty_folder(self, tmp_path):
        assert "has no model.safetensors" in self.problem(tmp_path)

    def test_no_configuration(self, tmp_path):
        tiny_models.write(tmp_path / "m", tiny_models.base_tensors())
        (tmp_path / "m" / "config.json").unlink()
        assert "has no config.json" in self.problem(tmp_path / "m")

    def test_configuration_is_not_json(self, tmp_path):
        tiny_models.write(tmp_path / "m", tiny_models.base_tensors())
        (tmp_path / "m" / "config.json").write_text("{")
        assert "config.json is not valid JSON" in self.problem(tmp_path / "m")

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_truncated_weights(self, tmp_path, keep):
        file = tiny_models.write(tmp_path / "m", tiny_models.base_tensors()) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        assert "model.safetensors is damaged" in self.problem(tmp_path / "m")

    def test_corrupt_header(self, tmp_path):
        file = tiny_models.write(tmp_path / "m", tiny_models.base_tensors()) / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[8:40] = b"\xff" * 32
        file.write_bytes(bytes(data))
        assert "its header is not valid" in self.problem(tmp_path / "m")

    def test_missing_shard(self, tmp_path):
        folder = tiny_models.write_sharded(tmp_path / "m", tiny_models.base_tensors())
        (folder / "model-00002-of-00002.safetensors").unlink()
        assert "lacks 1 of its 2 shards, first model-00002-of-00002.safetensors" in self.problem(folder)

    def test_quantized_by_a_method_that_is_not_read(self, tmp_path):
        quantization = {"quant_method": "hqq", "bits": 4}
        folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), quantization_config=quantization)
        text = self.problem(folder)
        assert "is quantized with hqq, which cannot be read; readable are fp8" in text
        assert "dequantize" in text

    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
    def test_quantized_by_dtype(self, tmp_path, dtype):
        tensors = tiny_models.base_tensors()
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(dtype)
        text = self.problem(tiny_models.write(tmp_path / "m", tensors))
        assert "model.layers.0.mlp.up_proj.weight is" in text
        assert "dequantize" in text

    def test_layers_that_the_configuration_does_not_have(self, tmp_path):
        folder = tiny_models.write(tmp_path / "m", tiny_models.base_tensors(), num_hidden_layers=9)
        assert "no numbered stack of 9 layers" in self.problem(folder)


def test_the_index_is_not_followed_out_of_the_folder(tmp_path):
    folder = tiny_models.write_sharded(tmp_path / "m", tiny_models.base_tensors())
    save_file({"x": torch.ones(1)}, tmp_path / "outside.safetensors")
    index = folder / module.INDEX
    index.write_text('{"weight_map": {"x": "../outside.safetensors"}}')
    with pytest.raises(InputError, match="is a path, so it cannot name a shard"):
        Checkpoint.open(str(folder))
