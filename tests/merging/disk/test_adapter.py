"""A change as a LoRA adapter: what it holds, what it lacks, and that both readers of adapters agree with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.examine.extract import extract

UP, DOWN, NORM = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.2.input_layernorm"
Make = Callable[..., tuple[Path, Path]]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a base, and a model in which some tensors changed; returns their folders."""

    def written(changes: dict[str, Tensor], tied: bool = False, **config: Any) -> tuple[Path, Path]:
        base = tiny_models.base_tensors(tied=tied)
        config |= {"tie_word_embeddings": tied}
        tiny_models.write(tmp_path / "base", base, **config)
        changed = {n: t + changes[n] if n in changes else t for n, t in base.items()}
        tiny_models.write(tmp_path / "model", changed, **config)
        return tmp_path / "base", tmp_path / "model"

    return written


def low_rank(rows: int, columns: int, rank: int, seed: int = 1) -> Tensor:
    return noise(rows, rank, seed=seed) @ noise(rank, columns, seed=seed + 1) * 0.1


def test_a_change_of_low_rank_is_held_whole(make: Make, tmp_path: Path) -> None:
    changes = {f"{UP}.weight": low_rank(tiny_models.INNER, tiny_models.HIDDEN, 3),
               f"{NORM}.weight": noise(tiny_models.HIDDEN, seed=5)}  # fmt: skip
    base, model = make(changes)
    content = extract(base, model, tmp_path / "out", rank=3)
    assert content.error < 1e-5
    assert content.modules == (UP,)
    assert content.saved == (NORM,)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None, "no folder of this machine is named"
    rebuilt, wanted = Checkpoint.open(f"{base}+{tmp_path / 'out'}"), load_file(model / "model.safetensors")
    for name, tensor in wanted.items():
        assert torch.allclose(rebuilt.read(name), tensor, atol=1e-5), name


def test_what_is_lacking_is_what_the_smaller_singular_values_are(make: Make, tmp_path: Path) -> None:
    delta = noise(tiny_models.HIDDEN, tiny_models.INNER) * 0.1
    base, model = make({f"{DOWN}.weight": delta})
    content = extract(base, model, tmp_path / "out", rank=4)
    values = torch.linalg.svdvals(delta.double()).square()
    for rank in (1, 2, 4):
        wanted = (values[rank:].sum() / values.sum()).sqrt().item()
        assert content.by_rank[rank] == pytest.approx(wanted, rel=1e-4)
    [told] = content.adapted
    assert (told.module, told.relative) == (DOWN, pytest.approx(content.error))
    kept = Checkpoint.open(f"{base}+{tmp_path / 'out'}").read(f"{DOWN}.weight")
    lacking = load_file(model / "model.safetensors")[f"{DOWN}.weight"] - kept
    assert (lacking.norm() / delta.norm()).item() == pytest.approx(content.error, rel=1e-3)


def test_equal_inputs_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    base, model = make({f"{UP}.weight": noise(tiny_models.INNER, tiny_models.HIDDEN) * 0.1})
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            extract(base, model, tmp_path / f"out-{threads}", rank=5)
    finally:
        torch.set_num_threads(before)
    one, two = ((tmp_path / f"out-{n}" / "adapter_model.safetensors").read_bytes() for n in (1, 2))
    assert one == two


@pytest.mark.parametrize("tied", [False, True])
def test_peft_computes_the_same_with_it(make: Make, tmp_path: Path, tied: bool) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed (pip install 'evomerge[test]')")
    import transformers

    base_shapes = {n: tuple(t.shape) for n, t in tiny_models.base_tensors(tied=tied).items()}
    changes = {name: noise(*shape, seed=i) * 0.05 for i, (name, shape) in enumerate(base_shapes.items())}
    base, model = make(changes, tied)
    content = extract(base, model, tmp_path / "out", rank=16)
    assert content.error < 1e-5
    tokens = torch.arange(tiny_models.VOCAB)[None]
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(tokens).logits
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = plain(tokens).logits
        found = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()(tokens).logits
    assert (before - wanted).abs().max() > 1e-2
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(("rank", "said"), [("0", "0 is no rank"), ("17", "17 is no rank of a change"), ("x", "whole")])
def test_a_rank_that_is_none(make: Make, tmp_path: Path, rank: str, said: str, capsys: Any) -> None:
    base, model = make({f"{UP}.weight": noise(tiny_models.INNER, tiny_models.HIDDEN)})
    assert main(["extract", str(base), str(model), str(tmp_path / "out"), "--rank", rank]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_models_of_other_forms_are_refused(make: Make, tmp_path: Path) -> None:
    base, model = make({f"{UP}.weight": noise(tiny_models.INNER, tiny_models.HIDDEN)})
    other = tmp_path / "other"
    tiny_models.write(other, tiny_models.base_tensors(layers=2), num_hidden_layers=2)
    longer = tmp_path / "longer"
    tiny_models.write(longer, tiny_models.base_tensors(vocab=24), vocab_size=24)
    for given, said in ((other, "has 2 layers"), (longer, "layers and its tokens"), (base, "itself")):
        with pytest.raises(InputError, match=said):
            extract(base, given, tmp_path / "out", rank=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        extract(base, model, tmp_path / "out", rank=2)


def test_the_command_prints_each_module(make: Make, tmp_path: Path, capsys: Any) -> None:
    base, model = make({f"{UP}.weight": noise(tiny_models.INNER, tiny_models.HIDDEN)})
    assert main(["extract", str(base), str(model), str(tmp_path / "out"), "--rank", "2"]) == 0
    printed = capsys.readouterr().out
    assert UP in printed
    assert "at least, by rank: 1 " in printed
    assert main(["extract", str(base), str(model), str(tmp_path / "out"), "--rank", "2", "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tensors"][f"{UP}.weight"]["error"] == pytest.approx(told["error"])
