"""What a candidate costs in Core Space, against merging full weights, of a base in the shape of Llama 3.2 1B and four
adapters of rank 16 on all of its linear layers.

    python benchmarks/core_space.py [--method ties] [--layers 16] [--measured 2] [--threads 2]

"full weights" is the merge of the adapted matrices in bfloat16 by compiled kernels, with sources in memory and their
facts known: what a later candidate of a search costs without `adapters: core`. It is measured matrix by matrix on some
layers (--measured), as all are alike, so that five models need not be in memory. "cores" is the merge in Core Space
alone: the candidate as it is searched, and as an adapter holds it. "cores, written" is the same with the model's
weights made of it, by which it is scored. "spaces" is what is found once for a search. Times are medians of candidates
with weights of their own, in seconds of the processor, so that a busy machine changes little; those of work that
threads share are divided by their number. Cores and spaces are the work of one. Exits with 1 where the cores take more
than a fiftieth of the time of the full weights.

The base is zeros, in a file that takes no room; the adapters are drawn. Takes 3 GB of memory, and a minute or two, most
of it for compiling.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import resource
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.core_space import Applied, applied
from evomerge.merging.plan.jobs import MergeJob
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import Execution, write
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS

LEAST = 50.0
RANK, ADAPTERS, WARM, CANDIDATES = 16, 4, 2, 5
WIDTH, INNER, HEADS, KEYS, HEAD, VOCABULARY = 2048, 8192, 32, 8, 64, 128_256
CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ties")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--measured", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        models = write_models(Path(folder), options.layers)
        measured = min(options.layers, options.measured)
        full = full_weights(models, options.method, measured) * options.layers / measured
        spaces, cores, written, size = core_space(models, options.method)
    full, written = full / options.threads, written / options.threads
    print(f"{options.method}, {options.layers} layers, {options.threads} threads, seconds a candidate")
    print(f"{'full weights':15}{full:9.3f}")
    print(f"{'cores':15}{cores:9.3f}{full / cores:8.1f}x  {size / 1e6:.1f} MB")
    print(f"{'cores, written':15}{written:9.3f}{full / written:8.1f}x")
    print(f"{'spaces':15}{spaces:9.3f}  once")
    ratio, peak = full / cores, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"full weights / cores: {ratio:.0f} (at least {LEAST:.0f} wanted); peak memory {peak:.1f} GB")
    return 0 if ratio >= LEAST else 1


def recipe(models: Sequence[str], method: str, seed: int, core: bool) -> Recipe:
    """A candidate with weights of its own."""
    draw = torch.Generator().manual_seed(seed)
    names = {p.name for p in METHODS[method].parameters if p.scope == "source"}
    inputs = []
    for model in models[1:]:
        numbers = torch.rand(2, generator=draw).tolist()
        given = {"weight": 0.2 + numbers[0], "density": 0.3 + 0.6 * numbers[1]}
        inputs.append(Input(model, parameters={name: given[name] for name in names & given.keys()}))
    return Recipe((Document(method, (Slice((*inputs, Input(models[0]))),), models[0], core=core),))


def full_weights(models: Sequence[str], method: str, layers: int) -> float:
    """The seconds of the merge of the adapted matrices of the first layers: the sum over them."""
    opened = SourceBank()
    plans = [plan(recipe(models, method, seed, False), opened.open).jobs for seed in range(WARM + CANDIDATES)]
    names = [name for i in range(layers) for name in plans[0] if f"layers.{i}." in name and "proj" in name]
    compiled = Compiled()
    runner = Runner(compiled)
    with compiled.at_once():
        write_one(plans[0][min(names, key=lambda name: plans[0][name].shape)], opened, runner)
    compiled.wait()
    total = 0.0
    for name in names:
        bank = SourceBank()
        for checkpoint in opened.checkpoints:
            bank.add(checkpoint)
        # The first ones read, and count what is remembered.
        times = [timed(partial(write_one, jobs[name], bank, runner)) for jobs in plans]
        total += median(times[WARM:])
    return total


def write_one(job: MergeJob, bank: SourceBank, runner: Runner) -> None:
    write([job], [_memory(job)], bank, runner)


@functools.cache
def _out(shape: tuple[int, ...], dtype: str) -> Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype))


def _memory(job: MergeJob) -> Tensor:
    """The place of a merged tensor: candidates overwrite the same memory."""
    return _out(job.shape, job.out)


def core_space(models: Sequence[str], method: str) -> tuple[float, float, float, int]:
    """The seconds of finding the spaces, of a candidate's cores, and of its weights; and the bytes of the cores."""
    bank, compiled = SourceBank(), Compiled()
    plans = [plan(recipe(models, method, seed, True), bank.open).jobs for seed in range(WARM + CANDIDATES)]
    runner = Runner(compiled)
    merges = [found for job in plans[0].values() if (found := applied(job)) is not None]
    spaces = timed(lambda: [Execution(bank, CPU).fetch(merge.changes) for merge in merges])
    with compiled.at_once():
        cores_of(plans[0], bank, runner)
    compiled.wait()
    cores = [timed(partial(cores_of, jobs, bank, runner)) for jobs in plans]
    written = [timed(partial(write_all, jobs, bank, runner)) for jobs in plans[:3]]
    size = sum(4 * math.prod(merge.changes.core) for merge in merges)
    return spaces, median(cores[WARM:]), median(written[1:]), size


def write_all(jobs: Mapping[str, MergeJob], bank: SourceBank, runner: Runner) -> None:
    for job in jobs.values():
        if applied(job) is not None:
            write_one(job, bank, runner)


def cores_of(jobs: Mapping[str, MergeJob], bank: SourceBank, runner: Runner) -> list[Tensor]:
    """The merged cores of a candidate."""
    found: list[Applied | None] = [applied(job) for job in jobs.values()]
    return [merge.merged(Execution(bank, CPU, runner).fetch) for merge in found if merge is not None]


def timed(run: Callable[[], object]) -> float:
    """Seconds of the processor, of all threads."""
    started = time.process_time()
    run()
    return time.process_time() - started


def write_models(folder: Path, layers: int) -> list[str]:
    """The base and its adapters, as references."""
    (base := folder / "base").mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    modules = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in linear().items()}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in modules.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes |= {f"model.layers.{i}.{name}.weight": (WIDTH,) for i in range(layers)}
    shapes |= {"model.norm.weight": (WIDTH,), "model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    write_zeros(base / "model.safetensors", shapes)
    references = [str(base)]
    for seed in range(ADAPTERS):
        draw = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (outputs, inputs) in modules.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw) / inputs**0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw) * 0.02
        (adapter := folder / f"adapter-{seed}").mkdir()
        save_file(tensors, adapter / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "base_model_name_or_path": None}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        references.append(f"{base}+{adapter}")
    return references


def linear() -> dict[str, tuple[int, int]]:
    """The linear layers of a layer: [outputs, inputs]."""
    query, key = HEADS * HEAD, KEYS * HEAD
    attention = {"q_proj": (query, WIDTH), "k_proj": (key, WIDTH), "v_proj": (key, WIDTH), "o_proj": (WIDTH, query)}
    mlp = {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    return {f"{part}.{n}": s for part, own in (("self_attn", attention), ("mlp", mlp)) for n, s in own.items()}


def write_zeros(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros, of which the disk holds the header alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


if __name__ == "__main__":
    raise SystemExit(main())
