"""The fenced blocks of a page, and what is there when a reader begins to copy them: tiny models, adapters, tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import write_choices

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.S | re.M)
_NAMED = re.compile(r"# ([\w./-]+\.(?:ya?ml|py|toml))\n")
LETTERS = "abcdefghij "
TOKENS = ["<s>", "</s>", "<think>", "</think>", *LETTERS]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: the file that it is: its first line names it (`# tasks/sums.yaml`), or a comment above
            (`<!-- file: tasks/sums.jsonl -->`).
        code: the exit code that running it has (`<!-- exit: 1 -->`).
        left_out: why it is not run (`<!-- not run: needs two GPUs -->`), or is a part (`<!-- fragment: ... -->`).
    """

    language: str
    text: str
    file: str | None = None
    code: int = 0
    left_out: str | None = None


def blocks(page: str) -> list[Block]:
    """The blocks of a page, which is named as seen from the project."""
    found = []
    for mark, language, text in _FENCE.findall((ROOT / page).read_text()):
        key, _, value = mark.partition(": ")
        named = _NAMED.match(text)
        file = value if key == "file" else named[1] if named else None
        code = int(value) if key == "exit" else 0
        found.append(Block(language, text, file, code, value if key in ("not run", "fragment") else None))
    return found


def write_files(page: str, folder: Path) -> list[Path]:
    """Writes the files of a page, and returns their paths."""
    return [write(block, folder) for block in blocks(page) if block.file and not block.left_out]


def write(block: Block, folder: Path) -> Path:
    file = folder / str(block.file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)
    return file


def follow(page: str, folder: Path) -> list[str]:
    """Copies a page to the letter: writes its files and runs its shell blocks, in their order.

    Returns:
        The blocks that ended with another exit code than the page says, with what they printed.
    """
    for block in blocks(page):
        if block.left_out is None and block.file:
            write(block, folder)
        elif block.left_out is None and block.language == "sh":
            done = run_shell(block.text, folder)
            if done.returncode != block.code:
                return [f"{block.text}exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"]
    return []


def run_shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands in a folder, in a shell that finds this evomerge as the command `evomerge`."""
    place = folder / ".bin"
    place.mkdir(exist_ok=True)
    (place / "evomerge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m evomerge "$@"\n')
    (place / "evomerge").chmod(0o755)
    path = os.pathsep.join([str(place), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True)


def prepare(page: str, folder: Path) -> None:
    """Makes what a page takes for granted: the models and adapters that it names, and tasks that it does not show."""
    text = (ROOT / page).read_text()
    kind = "mixtral" if page.endswith("moe.md") else "llama"
    for number, name in enumerate(sorted({"base", *re.findall(r"\bmodels/(\w+)", text)}, key=lambda n: n != "base")):
        save_model(folder / "models" / name, number, None if name == "base" else folder / "models/base", kind)
    for number, name in enumerate(sorted(set(re.findall(r"\badapters/(\w+)", text)))):
        save_adapter(folder / "adapters" / name, number)
    shown = {block.file for block in blocks(page)}
    for place, name in _tasks(page):
        if f"{place}/{name}.yaml" not in shown:
            save_task(folder / place, name)


def _tasks(page: str) -> set[tuple[str, str]]:
    """The tasks that the YAML of a page and its commands name, with their folders."""
    found = {("tasks", name) for name in re.findall(r"\btasks/(\w+)\.yaml", (ROOT / page).read_text())}
    for block in blocks(page):
        data = yaml.safe_load(block.text) if block.language == "yaml" else None
        if isinstance(data, dict) and "slices" in data:
            found |= {("tasks", spec["task"]) for spec in data["slices"].values() if "task" in spec}
        elif isinstance(data, dict) and "genome" in data:
            found |= {(str(Path(str(block.file)).parent), task["name"]) for task in data["tasks"]}
    return found


def save_model(folder: Path, seed: int, near: Path | None, kind: str) -> None:
    """A model of two layers over letters, with a chat template; with `near`, that model plus noise."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "mixtral" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=len(TOKENS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
        **experts,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if near is None:
            model = AutoModelForCausalLM.from_config(config)
        else:
            model = AutoModelForCausalLM.from_pretrained(near)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.001)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<think>", "</think>"]
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def save_adapter(folder: Path, seed: int) -> None:
    """A LoRA adapter on the attention of such a model."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(2, 16, generator=draw) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(16, 2, generator=draw) * 0.01
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def save_task(folder: Path, name: str) -> None:
    """A task that every model passes: of two choices the right one is the beginning of the other."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"{a}{b}{c}" for a in "abcd" for b in "efg" for c in "hij"]
    rows: list[dict[str, Any]] = [{"question": word, "choices": [" a", " abcdefghij"], "label": 0} for word in words]
    write_choices(folder, name, rows)
