"""Merges in Core Space: their formula, that they lose nothing, that every way of making them gives the same bits, and
what they are written as."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.kernels.core_space import CoreSpace
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

WIDTHS = {"q_proj": (16, 16), "v_proj": (8, 16), "up_proj": (24, 16), "down_proj": (16, 24)}
METHODS = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "isotropy", "tsv", "sce")


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modules(kind: str) -> list[str]:
    part = "self_attn" if kind in ("q_proj", "v_proj") else "mlp"
    return [f"model.layers.{i}.{part}.{kind}" for i in range(tiny_models.LAYERS)]


def write_adapter(folder: Path, targets: Sequence[str], rank: int, seed: int, **config: Any) -> Path:
    """An adapter of random matrices for some kinds of modules."""
    folder.mkdir(parents=True)
    tensors = {}
    for number, module in enumerate(name for kind in targets for name in modules(kind)):
        outputs, inputs = WIDTHS[module.rpartition(".")[2]]
        tensors[f"base_model.model.{module}.lora_A.weight"] = noise(rank, inputs, seed=seed + number)
        tensors[f"base_model.model.{module}.lora_B.weight"] = noise(outputs, rank, seed=seed + number + 500) * 0.05
    tensors |= config.pop("more", {})
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": None, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, and three adapters of other ranks, targets and scales, as references."""
    folder = tmp_path_factory.mktemp("core")
    tiny_models.write(folder / "base", tiny_models.base_tensors())
    write_adapter(folder / "one", ["q_proj", "up_proj"], 2, 10)
    write_adapter(folder / "two", ["q_proj", "down_proj"], 3, 100, use_rslora=True)
    write_adapter(folder / "three", ["q_proj", "v_proj", "up_proj"], 2, 200, alpha_pattern={"q_proj": 3})
    base = str(folder / "base")
    return {"base": base, **{name: f"{base}+{folder / name}" for name in ("one", "two", "three")}}


def recipe(models: dict[str, str], method: str, core: bool = True, **changes: Any) -> Recipe:
    given = {"weight": (0.6, -0.3, 0.9), "density": (0.5, 0.7, 0.6)}
    sources = [models[name] for name in ("one", "two", "three")]
    names = {"weight", "density"} if method in ("ties", "dare_ties", "breadcrumbs") else {"weight"}
    inputs = tuple(
        Input(source, None, {} if method == "sce" else {name: given[name][i] for name in names})
        for i, source in enumerate(sources)
    )
    slices = (Slice((*inputs, Input(models["base"]))),)
    return Recipe((replace(Document(method, slices, models["base"], core=core, seed=7), **changes),))


def read(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_worked_example() -> None:
    """Two adapters of rank 1 of a 3 x 2 matrix, the second one three times as large along its own directions."""
    first = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[1.0, 0.0]])
    second = torch.tensor([[0.0], [3.0], [0.0]]), torch.tensor([[0.0, 1.0]])
    space = CoreSpace.of([first, second])
    # [B_1 B_2], split evenly, is [[1, 0], [0, sqrt 3], [0, 0]]: its larger direction is the second axis.
    assert torch.allclose(space.u.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(space.v.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(space.cores[0].abs(), torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=1e-6)
    assert torch.allclose(space.cores[1].abs(), torch.tensor([[3.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    half = CoreSpace.of([first, second], rank=1)
    assert (half.u.shape, half.v.shape, half.cores.shape) == ((3, 1), (1, 2), (2, 1, 1))
    kept = half.applied(torch.zeros(3, 2), half.cores.sum(dim=0))
    assert torch.allclose(kept, torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("ranks", [(3, 2, 4), (9, 9, 9)])
def test_nothing_is_lost(ranks: tuple[int, ...]) -> None:
    """Also where the ranks together are more than the matrix has rows."""
    changes = [(noise(12, r, seed=i), noise(r, 20, seed=i + 50)) for i, r in enumerate(ranks)]
    space = CoreSpace.of([*changes, None])
    for core, (b, a) in zip(space.cores, changes, strict=False):
        assert torch.allclose(space.u @ core @ space.v, b @ a, atol=1e-4)
    assert not space.cores[-1].any()
    assert torch.allclose(space.u.T @ space.u, torch.eye(space.u.shape[1]), atol=1e-6)


def test_cores_do_not_depend_on_how_a_change_is_split() -> None:
    one, other = (noise(12, 3), noise(3, 20, seed=2)), (noise(12, 2, seed=3), noise(2, 20, seed=4))
    turned = torch.linalg.qr(noise(3, 3, seed=5)).Q * torch.tensor([4.0, 0.1, 1.0])
    split = one[0] @ turned, torch.linalg.inv(turned) @ one[1]
    first, second = (CoreSpace.of([change, other]) for change in (one, split))
    for a, b in zip(first.cores, second.cores, strict=True):
        assert torch.allclose(a.abs(), b.abs(), atol=1e-4)


def test_summed_in_core_space_is_summed_in_full(models: dict[str, str], tmp_path: Path) -> None:
    core, full = (merge(recipe(models, "task_arithmetic", kind), tmp_path / str(kind)) for kind in (True, False))
    base, wanted = read(Path(models["base"])), read(full)
    changed = [name for name, tensor in wanted.items() if not torch.equal(tensor, base[name])]
    assert len(changed) == 4 * tiny_models.LAYERS
    for name, tensor in read(core).items():
        assert torch.allclose(tensor, wanted[name], atol=1e-5), name
        assert name in changed or torch.equal(tensor, base[name]), name


def test_ties_chooses_elements_of_cores(models: dict[str, str], tmp_path: Path) -> None:
    """By its formula in float64: trimmed, elected and averaged on cores."""
    merged = read(merge(recipe(models, "ties"), tmp_path / "out"))
    full = read(merge(recipe(models, "ties", core=False), tmp_path / "full"))
    name = "model.layers.1.self_attn.q_proj.weight"
    base = read(Path(models["base"]))[name]
    assert not torch.allclose(merged[name], full[name], atol=1e-3), "it is another merge"
    opened = [Checkpoint.open(models[source]) for source in ("one", "two", "three")]
    changes = []
    for checkpoint in opened:
        [step] = checkpoint.change(name).steps  # type: ignore[union-attr]
        a, b = (load_file(info.file)[key] for info, key in (
            (step.a, f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"),
            (step.b, f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight")))  # fmt: skip
        changes.append((step.scale * b, a))
    space = CoreSpace.of(changes)
    trimmed = []
    for core, density in zip(space.cores, (0.5, 0.7, 0.6), strict=True):
        keep = int(density * core.numel())
        least = core.abs().flatten().sort(descending=True).values[keep - 1]
        trimmed.append(torch.where(core.abs() >= least, core, 0.0))
    weighted = torch.stack([w * core for w, core in zip((0.6, -0.3, 0.9), trimmed, strict=True)])
    agrees = weighted.sign() == weighted.sum(dim=0).sign()
    weights = torch.tensor([0.6, -0.3, 0.9])[:, None, None]
    divisor = (weights * agrees * (weighted != 0)).sum(dim=0)
    core = (weighted * agrees).sum(dim=0) / torch.where(divisor == 0, 1.0, divisor)
    assert torch.allclose(merged[name] - base, space.u @ core @ space.v, atol=1e-5)


@pytest.fixture(scope="module")
def resident(models: dict[str, str]) -> Resident:
    return Resident(Checkpoint.open(models["base"]), SourceBank(), "float32")


@pytest.mark.parametrize(("method", "rank"), [*((method, None) for method in METHODS), ("ties", 2)])
def test_resident_and_streamed_merges_have_equal_bits(
    models: dict[str, str], resident: Resident, tmp_path: Path, method: str, rank: int | None
) -> None:
    made = recipe(models, method, core_rank=rank)
    digest = resident.materialize(made)
    resident.materialize(recipe(models, "task_arithmetic", core=False))
    assert resident.materialize(made) == digest, "a second time, with what is remembered"
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            assert checkpoint_digest(merge(made, tmp_path / str(threads), threads=threads)) == digest
    finally:
        torch.set_num_threads(before)


def test_rounded_once_to_16_bits(models: dict[str, str], tmp_path: Path) -> None:
    made = recipe(models, "ties", out_dtype="bfloat16", dtype="bfloat16")
    wanted = recipe(models, "ties")
    found, wide = (read(merge(r, tmp_path / r.output.method / str(r.output.dtype))) for r in (made, wanted))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], wide[name].bfloat16())


def test_the_order_of_the_sources_does_not_matter(models: dict[str, str], tmp_path: Path) -> None:
    made = recipe(models, "ties")
    [slice_] = made.output.slices
    turned = Recipe((replace(made.output, slices=(Slice(slice_.inputs[::-1]),)),))
    first, second = (read(merge(r, tmp_path / str(i))) for i, r in enumerate((made, turned)))
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-5), name


def test_compressed_then_merged(models: dict[str, str], tmp_path: Path) -> None:
    base = read(Path(models["base"]))
    merged = read(merge(recipe(models, "task_arithmetic", core_rank=2), tmp_path / "out"))
    for kind in WIDTHS:
        for module in modules(kind):
            delta = (merged[f"{module}.weight"] - base[f"{module}.weight"]).double()
            assert int((torch.linalg.svdvals(delta) > 1e-5).sum()) <= 2


def test_what_is_no_low_rank_is_merged_in_full(models: dict[str, str], tmp_path: Path) -> None:
    """A module that was trained whole, DoRA, and trained tokens beside them."""
    up = "model.layers.0.mlp.up_proj"
    magnitudes = {f"base_model.model.{m}.lora_magnitude_vector": noise(24, seed=9).abs() for m in modules("up_proj")}
    norm = {"base_model.model.model.norm.weight": noise(16, seed=8)}
    dora = write_adapter(tmp_path / "dora", ["q_proj", "up_proj"], 2, 77, use_dora=True, more=magnitudes)
    saved = write_adapter(tmp_path / "saved", ["q_proj"], 2, 78, more=norm, modules_to_save=["norm"])
    base = models["base"]
    others = {**models, "two": f"{base}+{dora}", "three": f"{base}+{saved}"}
    core, full = (read(merge(recipe(others, "ties", kind), tmp_path / str(kind))) for kind in (True, False))
    assert torch.equal(core[f"{up}.weight"], full[f"{up}.weight"])
    assert torch.equal(core["model.norm.weight"], full["model.norm.weight"])
    assert not torch.equal(core["model.norm.weight"], read(Path(base))["model.norm.weight"])
    q = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(core[q], full[q], atol=1e-4)


class TestRefused:
    def refused(self, made: Recipe, tmp_path: Path, said: str) -> None:
        with pytest.raises(InputError, match=said):
            merge(made, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_full_fine_tune(self, models: dict[str, str], tmp_path: Path) -> None:
        tiny_models.write(tmp_path / "tuned", tiny_models.tuned(tiny_models.base_tensors(), 3))
        others = {**models, "two": str(tmp_path / "tuned")}
        self.refused(recipe(others, "ties"), tmp_path, "tuned is no LoRA adapter of .*base; list adapters of one base")

    def test_an_adapter_of_another_base(self, models: dict[str, str], tmp_path: Path) -> None:
        tiny_models.write(tmp_path / "other", tiny_models.base_tensors(seed=4))
        others = {**models, "two": f"{tmp_path / 'other'}+{models['two'].rpartition('+')[2]}"}
        self.refused(recipe(others, "ties"), tmp_path, "is no LoRA adapter of")

    @pytest.mark.parametrize("method", ["linear", "karcher"])
    def test_a_method_that_merges_models(self, models: dict[str, str], tmp_path: Path, method: str) -> None:
        self.refused(recipe(models, method), tmp_path, f"{method} merges models, and Core Space holds changes")

    def test_more_directions_than_there_are(self, models: dict[str, str], tmp_path: Path) -> None:
        self.refused(recipe(models, "ties", core_rank=8), tmp_path, "core_rank is 8, .* together are 7; give 1 to 7")

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ("adapters: cores", "unknown form 'cores'; did you mean 'core'"),
            ("core_rank: 4", "core_rank: is of Core Space"),
            ("adapters: core\ncore_rank: 0", "core_rank: .*1"),
        ],
    )
    def test_keys_of_a_recipe(self, keys: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            parse_recipe(f"merge_method: ties\nbase_model: a\nmodels: [{{model: b}}]\n{keys}\n")


def test_recipes_keep_their_ids_and_survive_yaml(models: dict[str, str]) -> None:
    plain = recipe(models, "ties", core=False)
    assert "adapters" not in write_recipe(plain)
    made = recipe(models, "ties", core_rank=4)
    again = parse_recipe(write_recipe(made))
    assert again.id == made.id
    assert (again.output.core, again.output.core_rank) == (True, 4)
    assert len({plain.id, made.id, recipe(models, "ties").id}) == 3


Logits = Callable[[Path, Path | None], Tensor]


@pytest.fixture
def logits() -> Logits:
    peft = pytest.importorskip("peft", reason="PEFT is not installed (pip install 'evomerge[test]')")
    import transformers

    def of(model: Path, adapter: Path | None = None) -> Tensor:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if adapter is not None:
            loaded = peft.PeftModel.from_pretrained(loaded, adapter)
        with torch.no_grad():
            found: Tensor = loaded.eval()(torch.arange(tiny_models.VOCAB)[None]).logits
        return found

    return of


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
@pytest.mark.parametrize("rank", [None, 7])
def test_at_full_rank_an_adapter_is_the_merge(
    models: dict[str, str], tmp_path: Path, logits: Logits, method: str, rank: int | None
) -> None:
    made, said = recipe(models, method), list[str]()
    merge(made, tmp_path / "adapter", as_adapter=True, rank=rank, note=said.append)
    assert "lacks 0.00%" in said[-1]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 7
    wanted = logits(merge(made, tmp_path / "whole"), None)
    base = Path(models["base"])
    assert (logits(base, None) - wanted).abs().max() > 1e-2
    assert (logits(base, tmp_path / "adapter") - wanted).abs().max() < 1e-4


def test_at_a_lower_rank_it_is_compressed_then_merged(models: dict[str, str], tmp_path: Path, logits: Logits) -> None:
    made, said = recipe(models, "ties"), list[str]()
    merge(made, tmp_path / "adapter", as_adapter=True, rank=3, note=said.append)
    whole = merge(recipe(models, "ties", core_rank=3), tmp_path / "whole")
    base = Path(models["base"])
    assert (logits(base, tmp_path / "adapter") - logits(whole, None)).abs().max() < 1e-4
    # The error that is told is that of the weights, against the merge with all directions.
    before, best = read(base), read(merge(made, tmp_path / "best"))
    after = read(whole)
    lacking = sum(((after[n] - best[n]).double().norm() ** 2).item() for n in best) ** 0.5
    change = sum(((before[n] - best[n]).double().norm() ** 2).item() for n in best) ** 0.5
    assert f"lacks {lacking / change:.2%} of the change" in said[-1]
    again = merge(tmp_path / "adapter" / "mergekit_config.yml", tmp_path / "again")
    assert checkpoint_digest(again) == checkpoint_digest(whole), "the recipe beside it makes the very weights"


def test_adapters_of_a_tied_head(tmp_path: Path, logits: Logits) -> None:
    """Embeddings that are the head, too: an adapter holds both changes, and so does the merge of adapters."""
    base = tiny_models.write(tmp_path / "base", tiny_models.base_tensors(tied=True), tie_word_embeddings=True)
    for number in (1, 2):
        tuned = tiny_models.tuned(tiny_models.base_tensors(tied=True), number, 0.2)
        tiny_models.write(tmp_path / f"tuned-{number}", tuned, tie_word_embeddings=True)
        evomerge.extract(base, tmp_path / f"tuned-{number}", tmp_path / f"lora-{number}", rank=2)
    inputs = [Input(f"{base}+{tmp_path / f'lora-{i}'}", None, {"weight": 0.5}) for i in (1, 2)]
    slices = (Slice((*inputs, Input(str(base)))),)
    made, said = Recipe((Document("task_arithmetic", slices, str(base), core=True),)), list[str]()
    merge(made, tmp_path / "adapter", as_adapter=True, note=said.append)
    assert "lacks 0.00%" in said[-1]
    wanted = logits(merge(made, tmp_path / "whole"), None)
    assert (logits(base, tmp_path / "adapter") - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(("rank", "said"), [("0", "0 is no rank"), ("8", "have 7 together; give 1 to 7")])
def test_ranks_that_there_are_not(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: str, said: str
) -> None:
    (tmp_path / "recipe.yml").write_text(write_recipe(recipe(models, "ties")))
    words = ["merge", str(tmp_path / "recipe.yml"), str(tmp_path / "out"), "--as-adapter", "--rank", rank]
    assert main(words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert main([*words[:3], "--rank", "4"]) == 2
    assert "add --as-adapter" in capsys.readouterr().err
