"""A tiny random Llama with a byte tokenizer, and small lm-eval tasks written to a temporary folder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.files.fitness_file import read_fitness
from evomerge.files.objects import FitnessSpec

WORDS = (
    "the",
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "tree",
    "house",
    "runs",
    "sings",
    "slowly",
    "under",
    "over",
    "with",
    "seven",
    "nine",
    "old",
    "bright",
    "river",
    "stone",
)
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a byte; a beginning-of-sequence token in front, as Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {"<s>": 0, "</s>": 1}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[letter] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    built = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    built.chat_template = CHAT
    return built


@pytest.fixture(scope="session")
def _tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def model(_tiny: Any) -> Iterator[Any]:
    """The tiny model; whatever a test does to its weights is undone, and what it froze is thawed."""
    kept = {name: tensor.clone() for name, tensor in _tiny.state_dict().items()}
    yield _tiny
    _tiny.load_state_dict(kept)
    _tiny.eval().requires_grad_(True).zero_grad()


def nudge(model: Any, seed: int = 1, size: float = 0.2) -> None:
    """Change every weight in place, reproducibly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def only_says(model: Any, tokenizer: Any, letters: str) -> None:
    """Make the model write nothing but `letters` (and the first token, where both are unlikely)."""
    keep = tokenizer(letters, add_special_tokens=False).input_ids
    with torch.no_grad():
        head = model.lm_head.weight
        rows = head[keep].clone()
        head.zero_()
        head[keep] = rows


@dataclass
class Bench:
    """A folder with a fitness file, task YAML below `tasks/`, and data beside the YAML."""

    folder: Path

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks"

    def data(self, name: str, rows: list[dict[str, Any]], folder: Path | None = None) -> Path:
        path = (folder or self.tasks) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def yaml(self, name: str, **config: Any) -> Path:
        path = self.tasks / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"task": name, **config}, sort_keys=False)
        path.write_text(text.replace("'!function ", "!function '"), encoding="utf-8")
        return path

    def fitness(self, slices: dict[str, Any], **more: Any) -> FitnessSpec:
        path = self.folder / "fitness.yaml"
        self.tasks.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"include": ["tasks"], **more, "slices": slices}, sort_keys=False))
        return read_fitness(path)

    # Ready-made tasks: each of another kind, with few-shot examples in a file of their own.

    def choice(self, name: str = "choice", n: int = 24, **more: Any) -> None:
        self.data(f"{name}.jsonl", choices(n, seed=1))
        self.data(f"{name}_shots.jsonl", choices(8, seed=2))
        self.yaml(
            name,
            **_files(name),
            output_type="multiple_choice",
            doc_to_text="Question: {{question}}\nAnswer:",
            doc_to_choice="options",
            doc_to_target="gold",
            metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
            **more,
        )

    def text(self, name: str = "text", n: int = 16, **more: Any) -> None:
        self.data(f"{name}.jsonl", [{"text": sentence(i, 3 + i % 9)} for i in range(n)])
        self.yaml(
            name,
            **_files(name, shots=False),
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": m} for m in ("bits_per_byte", "byte_perplexity", "word_perplexity")],
            **more,
        )

    def cloze(self, name: str = "cloze", n: int = 16) -> None:
        self.data(f"{name}.jsonl", [{"a": sentence(i, 4), "b": WORDS[i % len(WORDS)]} for i in range(n)])
        self.yaml(
            name,
            **_files(name, shots=False),
            output_type="loglikelihood",
            doc_to_text="{{a}}",
            doc_to_target="{{b}}",
            metric_list=[
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        )

    def write(self, name: str = "write", n: int = 16, **more: Any) -> None:
        self.data(f"{name}.jsonl", [{"q": sentence(i, 3), "a": str(i % 2)} for i in range(n)])
        self.data(f"{name}_shots.jsonl", [{"q": sentence(90 + i, 3), "a": str(i % 2)} for i in range(6)])
        filters = {"first": "(\\d)", "last": "\\d*(\\d)"}
        config: dict[str, Any] = {
            "output_type": "generate_until",
            "doc_to_text": "Q: {{q}} A:",
            "doc_to_target": "{{a}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
            "filter_list": [
                {"name": k, "filter": [{"function": "regex", "regex_pattern": v}, {"function": "take_first"}]}
                for k, v in filters.items()
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        self.yaml(name, **_files(name), **{**config, **more})


def _files(name: str, shots: bool = True) -> dict[str, Any]:
    """Data files as a user writes them: relative to the YAML."""
    files = {"test": f"{name}.jsonl"} | ({"train": f"{name}_shots.jsonl"} if shots else {})
    config: dict[str, Any] = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    return config | ({"training_split": "train", "fewshot_split": "train"} if shots else {})


def sentence(seed: int, n: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def choices(n: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "question": f"{i} {sentence(1000 * seed + i, 4)}",
            "options": [sentence(draw.randrange(10**6), draw.randint(1, 3)) for _ in range(3)],
            "gold": draw.randrange(3),
        }
        for i in range(n)
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def simple_evaluate(bench: Bench, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """lm-eval's own answer, the way its documentation says, on the bench's tasks."""
    import copy

    import lm_eval
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # It runs some seconds of shell commands to describe the machine.
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    monkeypatch.setattr(evaluator, "get_git_commit_hash", lambda: None)
    # It finds data files from the current folder only.
    monkeypatch.chdir(bench.folder / "tasks" if (bench.folder / "tasks").is_dir() else bench.folder)

    def run(task: str, indices: dict[str, list[int]], **options: Any) -> dict[str, Any]:
        monkeypatch.chdir(bench.tasks)
        bos = options.pop("add_bos_token", None)
        wrapper = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=16, add_bos_token=bos)
        manager = TaskManager(include_path=str(bench.tasks), include_defaults=False)
        answer = lm_eval.simple_evaluate(
            wrapper, tasks=[task], samples=indices, task_manager=manager, bootstrap_iters=0, **options
        )
        monkeypatch.chdir(bench.folder)
        assert answer is not None
        return answer

    return run
