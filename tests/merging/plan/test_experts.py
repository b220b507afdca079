"""`experts: fused`: the experts of a layer are merged as one tensor, and written as they are stored."""

from __future__ import annotations

from itertools import product

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.mergekit import parse_recipe, write_recipe

_COMMON = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "qwen3_moe": {**_COMMON, "head_dim": 8, "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2},
}
NAMES = {  # the parts of a gate above a projection, and the output, as they are stored; where they stand
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "olmoe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
METHODS = {
    "ties": "{weight: [0.2, 0.9], density: 0.5}",
    "breadcrumbs": "{weight: 0.5, density: 0.5}",
    "linear": "{weight: 0.5}",
    "dare_linear": "{weight: 0.5, density: 0.5}",
    "sce": "{}",
    "model_stock": "{}",
    "tsv": "{weight: [0.2, 0.9]}",
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(kind, tmp_path_factory):
    root, config = tmp_path_factory.mktemp(kind), transformers.AutoConfig.for_model(kind, **KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name in ("base", "a", "b"):
            if name != "base":
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(torch.randn_like(parameter) * 0.02)
            model.save_pretrained(root / name)
            tiny_models.write_tokenizer(root / name)
    return {name: root / name for name in ("base", "a", "b")}


def recipe(folders, method="ties", experts="experts: fused", **changes):
    base = f"base_model: {folders['base']}\n" if method != "linear" else ""
    models = "".join(f"- {{model: {folders[n]}, parameters: {METHODS[method]}}}\n" for n in "ab")
    return parse_recipe(f"merge_method: {method}\n{base}models:\n{models}{experts}\n")


def fused(folder, kind, layer, tensors=None):
    """The stacks of a layer, made by hand: gates above projections, and outputs."""
    stored = tiny_models.read(folder) if tensors is None else tensors
    place, gate, up, down = NAMES[kind]
    start = f"model.layers.{layer}.{place}.experts"
    both = [torch.cat([stored[f"{start}.{i}.{part}.weight"] for part in (gate, up)]) for i in range(4)]
    return torch.stack(both), torch.stack([stored[f"{start}.{i}.{down}.weight"] for i in range(4)])


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_merged_as_one_tensor(method, kind, folders, tmp_path):
    """As plain models merge that store these stacks, and nothing else, under the same names."""
    plain = {}
    for name, folder in folders.items():
        tensors = {}
        for layer in range(2):
            stacks = fused(folder, kind, layer)
            for part, stack in zip(("gate_up_proj", "down_proj"), stacks, strict=True):
                tensors[f"model.layers.{layer}.mlp.experts.{part}"] = stack
        plain[name] = tmp_path / name
        plain[name].mkdir()
        save_file(
            {n: t.contiguous() for n, t in tensors.items() if "blocks" not in n}, plain[name] / "model.safetensors"
        )
    bank = SourceBank()
    expected = {n: execute(job, bank) for n, job in plan(recipe(plain, method, ""), bank.open).jobs.items()}
    merged = tiny_models.read(merge(recipe(folders, method), tmp_path / "out"))
    for layer in range(2):
        found = fused(None, kind, layer, merged)
        for part, stack in zip(("gate_up_proj", "down_proj"), found, strict=True):
            assert torch.equal(stack, expected[f"model.layers.{layer}.mlp.experts.{part}"]), part


def test_the_checkpoint_is_laid_out_as_its_sources(kind, folders, tmp_path):
    folder = merge(recipe(folders), tmp_path / "out")
    shapes = {n: t.shape for n, t in tiny_models.read(folder).items()}
    assert shapes == {n: t.shape for n, t in tiny_models.read(folders["base"]).items()}
    _, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_each_and_fused_differ_where_a_method_looks_at_the_whole_tensor(kind, folders, tmp_path):
    digests = {}
    for method, experts in product(("ties", "linear"), ("each", "fused")):
        folder = merge(recipe(folders, method, f"experts: {experts}"), tmp_path / method / experts)
        digests[method, experts] = checkpoint_digest(folder)
    assert digests["ties", "each"] != digests["ties", "fused"]
    assert digests["linear", "each"] == digests["linear", "fused"]
    plain = merge(recipe(folders, "ties", ""), tmp_path / "plain")
    assert checkpoint_digest(plain) == digests["ties", "each"]


def test_scored_equals_exported(kind, folders, tmp_path):
    resident = Resident(Checkpoint.open(str(folders["base"])), SourceBank(), "float32")
    digests = [resident.materialize(recipe(folders, method)) for method in ("ties", "sce", "ties")]
    assert digests[0] == digests[2] != digests[1]
    assert checkpoint_digest(merge(recipe(folders), tmp_path / "out")) == digests[0]


def test_the_stack_is_merged_once(kind, folders, monkeypatch):
    from evomerge.merging.plan.jobs import StackedMatrices

    built, build = [], StackedMatrices.build
    monkeypatch.setattr(StackedMatrices, "build", lambda self, fetch: built.append(self) or build(self, fetch))
    bank = SourceBank(keep=False)
    for job in plan(recipe(folders), bank.open).jobs.values():
        execute(job, bank)
    assert len(built) == 2 * 2 * 3  # layers, stacks, models


class TestRecipe:
    def test_it_is_written_and_read_back(self, folders):
        whole = recipe(folders)
        assert "experts: fused" in write_recipe(whole)
        assert parse_recipe(write_recipe(whole)).id == whole.id != recipe(folders, experts="experts: each").id
        assert recipe(folders, experts="experts: each").id == recipe(folders, experts="").id

    def test_another_word_is_refused(self, folders):
        with pytest.raises(InputError, match=r"experts: .*'fuse'.*did you mean 'fused'"):
            recipe(folders, experts="experts: fuse")

    def test_a_dense_model_has_none(self, models, tmp_path):
        dense = {name: models[name] for name in ("base", "a", "b")}
        folders = [merge(recipe(dense, experts=f"experts: {e}"), tmp_path / e) for e in ("fused", "each")]
        assert checkpoint_digest(folders[0]) == checkpoint_digest(folders[1])
