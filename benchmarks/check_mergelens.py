"""`evomerge check` beside mergelens (2.0.3): what each says of the same checkpoints, in how many seconds and megabytes.

    python benchmarks/check_mergelens.py FOLDER --python VENV/bin/python [--cases NAME ...] [--large 1500]

FOLDER is as in specialists.py; VENV has mergelens. Cases: the specialists as they are; the same with one planted fault
each; and two fine-tunes of a random model of --large million parameters in bfloat16. Each program runs in a process of
its own, with one thread, reading from the page cache. Prints seconds of the processor, peak memory, exit code, and the
lines in which a fault is named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import _planted
import torch
from safetensors.torch import load_file, save_file

_MERGELENS = "from mergelens.cli import app; app()"
NAMES = ("french", "gsm8k", "shakespeare")
FAULT = re.compile(r"problem:|warning|mismatch|differ|unsupported|nan|infinite|suppress|licen[cs]e|Score|/ 100", re.I)


def planted(folder: Path, out: Path, change: Callable[[Path], None]) -> list[Path]:
    """Copies base and specialists, and changes the last one."""
    models = [shutil.copytree(folder / name, out / name) for name in ("base", *NAMES)]
    change(models[-1])
    return models


def states(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        file = model / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def with_nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state["model.norm.weight"][0] = float("nan")
    return state


def swap_ids(model: Path) -> None:
    file = model / "tokenizer.json"
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    last = sorted(vocab, key=vocab.get)[-100:]
    data["model"]["vocab"] |= dict(zip(last, [vocab[token] for token in reversed(last)], strict=True))
    file.write_text(json.dumps(data))


def rope(model: Path) -> None:
    file = model / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["rope_theta"] = 1e6
    file.write_text(json.dumps(config))


def card(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n")


def template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")


CASES: dict[str, Callable[[Path], None]] = {
    "as they are": lambda model: None,
    "unrelated": states(lambda state: dict(_planted.shuffled(state, 1))),
    "NaN": states(with_nan),
    "ids in another order": swap_ids,
    "another rope theta": rope,
    "no-derivatives licence": card,
    "a template that others lack": template,
}


LARGE = ("base", "a", "b")


def write_large(out: Path, millions: int) -> None:
    """A random Llama in bfloat16 and two fine-tunes of it, each 0.002 a weight from it."""
    hidden, inner, rows = 2048, 5632, 32000
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 4 + 3 * hidden * inner
    layers = max(1, (millions * 1_000_000 - 2 * rows * hidden) // layer)
    shapes = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        for part, side in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (side, hidden)
        shapes |= {f"{at}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "vocab_size": rows,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 128, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    random, base = torch.Generator().manual_seed(0), {}
    for name in LARGE:
        state = {}
        for tensor, shape in shapes.items():
            noise = torch.randn(shape, generator=random)
            state[tensor] = (0.02 * noise if name == "base" else base[tensor] + 0.002 * noise).bfloat16()
        base = state if name == "base" else base
        (out / name).mkdir()
        save_file(state, out / name / "model.safetensors", metadata={"format": "pt"})
        (out / name / "config.json").write_text(json.dumps(config))


def measured(command: list[str]) -> tuple[float, float, int, str]:
    """Seconds of the processor, megabytes, exit code and what was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, os.waitstatus_to_exitcode(status), said.read()


def compare(name: str, models: list[Path], python: str) -> None:
    base, *sources = map(str, models)
    programs = {
        "evomerge check": [sys.executable, "-m", "evomerge", "check", base, *sources],
        "mergelens compare": [python, "-c", _MERGELENS, "compare", *sources, "--base", base],
    }
    for program, command in programs.items():
        seconds, megabytes, code, said = measured(command)
        print(f"\n{name}: {program}: {seconds:.1f} s, {megabytes:.0f} MB, exit code {code}")
        for line in dict.fromkeys(line.strip(" │") for line in said.splitlines() if FAULT.search(line)):
            print(f"    {line[:180]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--large", type=int, default=1500, help="million parameters; 0: none")
    options = parser.parse_args()
    for name in options.cases:
        with tempfile.TemporaryDirectory() as place:
            compare(name, planted(options.folder, Path(place), CASES[name]), options.python)
    if options.large:
        with tempfile.TemporaryDirectory() as place:
            # In another process: the peak memory of a process counts that of the one that started it.
            writer = get_context("spawn").Process(target=write_large, args=(Path(place), options.large))
            writer.start()
            writer.join()
            compare(f"{options.large} million parameters", [Path(place, name) for name in LARGE], options.python)


if __name__ == "__main__":
    main()
