"""Layer stacks: in place, written, and as mergekit 0.1.5 writes them; and what it takes to put one in place.

    python benchmarks/stacks.py [--mergekit VENV/bin/python] [--params 200M] [--work DIR]

Two tables.

Parity: tiny models (float32) of llama, qwen3, gemma2 (sliding windows) and mixtures of experts, stacked from two
sources: as they are, repeated, and with scales. For each stack the logits of the candidate in place, of the folder that
`evomerge merge` writes of the exported recipe, and of the one that mergekit writes of the same file: how far they are
apart at most. And whether greedy generation with the cache gives the tokens of generation without it.

Cost: a Llama-shaped model of --params in bfloat16, two sources, stacks of its depth and half as deep again. How long a
candidate takes to be put in place (planned, linked, fingerprinted), in times of a plain copy of the base; and the
resident memory that it takes at its peak and afterwards, as a share of the base's bytes (VmHWM). The digest is taken in
chunks, so that the peak is a constant beside it.

Workaround for mergekit 0.1.5: it leaves `layer_types` as it was, whatever the number of layers, and then cannot write
the configuration. Here the list is repeated to the number of layers; and in these stacks even layers stay at even
places, as the repeated list says.

Exit code 1 where logits are more than 1e-3 apart, or a stack without scales leaves 1 % of the model's bytes behind.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _mergekit_env import install
from _synthetic import build
from materialize import count
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import merge
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.stacks import prepare_stacks
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

APART, SHARE = 1e-3, 0.01
_COMMON = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96,
           "intermediate_size": 96, "num_hidden_layers": 6, "initializer_range": 0.2, "bos_token_id": 1,
           "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": _COMMON,
    "qwen3": _COMMON,
    "gemma2": {**_COMMON, "sliding_window": 8},
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}
_ADDED = ("o_proj", "down_proj", "w2")
"""The matrices whose output is added to the hidden state, by a part of their names."""
_MERGEKIT = """
from mergekit.scripts.run_yaml import main
from transformers import PretrainedConfig
save = PretrainedConfig.save_pretrained
def saved(self, *arguments, **settings):
    if getattr(self, "layer_types", None):
        self.layer_types = (self.layer_types * 9)[: self.num_hidden_layers]
    return save(self, *arguments, **settings)
PretrainedConfig.save_pretrained = saved
main()
"""
Hop = tuple[str, int, int, float]
"""Layers [start, end) of a model, and the scale of what they add."""


def stack(hops: Sequence[Hop], dtype: str) -> Recipe:
    """The recipe of a stack."""
    slices = []
    for model, start, end, scale in hops:
        scaled = {"scale": (*({"filter": part, "value": scale} for part in _ADDED), {"value": 1.0})}
        slices.append(Slice((Input(model, (start, end), {} if scale == 1 else scaled),)))
    return Recipe((Document("passthrough", tuple(slices), dtype=dtype),))


def stacks(a: str, b: str) -> dict[str, list[Hop]]:
    """Stacks in which an even layer stays at an even place."""
    return {
        "two sources": [(a, 0, 3, 1), (b, 3, 5, 1), (a, 5, 6, 1)],
        "repeated": [(a, 0, 3, 1), (b, 1, 3, 1), (b, 1, 3, 1), (a, 3, 6, 1)],
        "scaled": [(a, 0, 2, 1), (b, 2, 4, 0.8), (a, 2, 4, 1.25), (a, 4, 6, 0.64)],
        "scaled, repeated": [(a, 0, 2, 1), (b, 2, 4, 0.7), (b, 2, 4, 1.6), (a, 4, 6, 0.9)],
        "fewer layers": [(a, 0, 2, 1), (a, 4, 6, 1)],
    }


def write_models(kind: str, folder: Path) -> tuple[str, str]:
    """Two models of one architecture; returns their folders."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **FAMILIES[kind])
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 96)}}
        tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / name / "tokenizer.json"))
        tokens = '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}'
        (folder / name / "tokenizer_config.json").write_text(tokens)
    return str(folder / "a"), str(folder / "b")


def resident_for(recipe: Recipe, dtype: str) -> Resident:
    """A resident model whose bank holds the recipe's models."""
    bank = SourceBank()
    models = [bank.add(Checkpoint.open(model)) for model in recipe.models()]
    prepare_stacks(bank, recipe)
    for model in models:
        bank.load(model.reference)
    return Resident(models[0], bank, dtype)


def run_mergekit(python: Path, file: Path, out: Path) -> None:
    """Merges a recipe by mergekit. Raises RuntimeError with the last line of what it printed."""
    run = [str(python), "-c", _MERGEKIT, str(file), str(out)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([*run, "--no-write-model-card"], capture_output=True, text=True, env=offline, check=False)
    if ended.returncode:
        raise RuntimeError(f"mergekit failed on {file}: {ended.stderr.strip().splitlines()[-1]}")


@torch.no_grad()
def parity(kind: str, folder: Path, python: Path) -> list[tuple[str, str, float, float, bool]]:
    """Rows (family, stack, written and mergekit's distance, whether the cache changes nothing)."""
    ids, rows = torch.arange(3, 35)[None], []
    for name, hops in stacks(*write_models(kind, folder)).items():
        recipe = stack(hops, "float32")
        file, out, theirs = (folder / f"{name}{end}" for end in (".yaml", "-evomerge", "-mergekit"))
        file.write_text(write_recipe(recipe))
        resident = resident_for(recipe, "float32")
        resident.materialize(recipe)
        here = resident.model(ids).logits
        written = AutoModelForCausalLM.from_pretrained(merge(file, out), dtype="float32")(ids).logits
        run_mergekit(python, file, theirs)
        mergekit = AutoModelForCausalLM.from_pretrained(theirs, dtype="float32")(ids).logits
        settings = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16}
        cached, plain = (resident.model.generate(ids, use_cache=use, **settings) for use in (True, False))
        apart = [float((here - other).abs().max()) for other in (written, mergekit)]
        rows.append((kind, name, apart[0], apart[1], torch.equal(cached, plain)))
    return rows


def resident_memory() -> tuple[int, int]:
    """Bytes of this process's memory: now, and the most since the last call."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return now, most


def cost(parameters: int, folder: Path, repeats: int, seed: int) -> list[tuple[str, float, float, float]]:
    """Rows (stack, times of a copy, peak and kept shares of the base's bytes), over `repeats` candidates each."""
    draw = random.Random(seed)
    base, a, b = (str(path) for path in build(folder, parameters, 2))
    layers = Checkpoint.open(base).layers
    first = stack([(a, 0, layers, 1), (b, 0, 1, 1)], "bfloat16")
    resident = resident_for(first, "bfloat16")
    weights = [p.detach() for p in resident.model.parameters()]
    whole = sum(p.nbytes for p in weights)
    copied = [p.clone() for p in weights]

    def copy() -> float:
        started = time.perf_counter()
        for to, of in zip(copied, weights, strict=True):
            to.copy_(of)
        return time.perf_counter() - started

    def candidate(depth: int, scaled: bool) -> Recipe:
        inner = [(draw.choice((a, b)), draw.randrange(layers)) for _ in range(depth - 2)]
        scales = [round(draw.uniform(0.5, 2), 5) if scaled else 1.0 for _ in inner]
        middle = [(model, i, i + 1, scale) for (model, i), scale in zip(inner, scales, strict=True)]
        return stack([(a, 0, 1, 1), *middle, (a, layers - 1, layers, 1)], "bfloat16")

    copy()
    seconds = median(copy() for _ in range(5))
    resident.materialize(first)
    rows = []
    for name, depth, scaled in (
        ("as deep as its sources", layers, False),
        ("half as deep again", layers * 3 // 2, False),
        ("half as deep again, scaled", layers * 3 // 2, True),
    ):
        for _ in range(3):
            resident.materialize(candidate(depth, scaled))
        taken, peaks, kept = [], [], []
        for _ in range(repeats):
            recipe = candidate(depth, scaled)
            gc.collect()
            before, _ = resident_memory()
            started = time.perf_counter()
            resident.materialize(recipe)
            taken.append(time.perf_counter() - started)
            now, most = resident_memory()
            peaks.append(max(0, most - before) / whole)
            kept.append(max(0, now - before) / whole)
        rows.append((name, median(taken) / seconds, median(peaks), median(kept)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="a Python that has mergekit 0.1.5")
    parser.add_argument("--venv", type=Path, default=Path("mergekit-venv"), help="where to install it otherwise")
    parser.add_argument("--params", type=count, default=count("200M"), help="parameters of the model that is timed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where models are written (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = options.mergekit or install(options.venv)
    console, right = Console(), True
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        table = Table("family", "stack", "written", "mergekit", "cache", title="logits: most distance from in place")
        for kind in FAMILIES:
            for _, name, written, theirs, same in parity(kind, Path(tempfile.mkdtemp(dir=temporary)), python):
                table.add_row(kind, name, f"{written:.1e}", f"{theirs:.1e}", "same tokens" if same else "OTHER TOKENS")
                right = right and max(written, theirs) <= APART and same
        console.print(table)
        table = Table("stack", "times of a copy", "peak", "kept", title=f"{options.params:,} parameters, bfloat16")
        for name, times, peak, kept in cost(options.params, work, options.repeats, options.seed):
            table.add_row(name, f"{times:.1f}", f"{peak:.2%}", f"{kept:.2%}")
            right = right and (kept <= SHARE or "scaled" in name)
        console.print(table)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
