"""Trains the quickstart's models: a small base that knows last year's shop, and three specialists for this year's.

The base reads both editions of the texts (see `data`), the old one more often, so it answers as last year. Each
specialist continues from it on this year's lessons of its own domain. Two of them rehearse the base's texts
meanwhile; **shipping** does not, and learns at four times the rate: a large delta that also overwrites what the
others need. No average with equal weights serves all three, which is the conflict that the search has to solve.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evomerge.demo import data

Report = Callable[[str, float], None]

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
STAMP = "quickstart.json"
MANIFEST = "manifest.json"
WARMUP = 20


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how fast a model is trained; `rehearsal` is the share of the base's texts in each batch."""

    steps: int
    rate: float
    rehearsal: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Everything besides the texts that the weights depend on. `new_share`: this year's share in the base's texts."""

    seed: int = 0
    hidden: int = 64
    intermediate: int = 172
    layers: int = 4
    heads: int = 4
    # Wider than the usual 0.02: with 64 features and tied embeddings the usual start costs half of the steps.
    spread: float = 0.1
    batch: int = 64
    new_share: float = 0.3
    base: TrainingSchedule = TrainingSchedule(750, 3e-3)
    shipping: TrainingSchedule = TrainingSchedule(260, 4e-3)
    refunds: TrainingSchedule = TrainingSchedule(220, 1e-3, rehearsal=0.3)
    catalog: TrainingSchedule = TrainingSchedule(200, 1e-3, rehearsal=0.3)


@dataclass(frozen=True)
class Texts:
    """Encoded lessons: `tokens` [n, longest], padded, and `ends` [n], the place after each lesson's last token."""

    tokens: torch.Tensor
    ends: torch.Tensor


TaskMixture = Sequence[tuple[Texts, float]]
"""Texts with the share that each has in a batch."""

MODELS = ("base", *data.DOMAINS)


def digest(settings: Settings) -> str:
    """Returns the sha256 of the settings and all texts: models with another digest are stale."""
    lessons = [[x.prompt, x.answer] for d in data.DOMAINS for e in data.EDITIONS for x in data.lessons(d, e)]
    text = json.dumps({"settings": asdict(settings), "lessons": lessons}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(root: Path, report: Report | None = None, settings: Settings | None = None) -> None:
    """Trains the base and the specialists that are missing or stale in ``root/models/quickstart``. `report` receives a
    message and the share of the work that is done, at least each second."""
    settings = settings or Settings()
    report = report or (lambda message, done: None)
    report("reading the quickstart's texts", 0.0)
    folder, stamp = root / "models" / "quickstart", digest(settings)
    if not _complete(folder, stamp):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        _Trainer(folder, stamp, settings, report).run()
        manifest = {"digest": stamp, "settings": asdict(settings), "models": list(MODELS)}
        _write(folder / f".{MANIFEST}.partial", manifest).replace(folder / MANIFEST)
    report("models are ready", 1.0)


def _complete(folder: Path, stamp: str) -> bool:
    return _stamp_of(folder / MANIFEST) == stamp and all(_whole(folder / m, stamp) for m in MODELS)


def _whole(checkpoint: Path, stamp: str) -> bool:
    return (checkpoint / "model.safetensors").is_file() and _stamp_of(checkpoint / STAMP) == stamp


def _stamp_of(file: Path) -> str | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("digest") if isinstance(content, dict) else None


def _write(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


class _Trainer:
    """Trains the models that `folder` lacks, one after the other."""

    def __init__(self, folder: Path, stamp: str, settings: Settings, report: Report) -> None:
        self.folder, self.stamp, self.settings, self.report = folder, stamp, settings, report
        report("encoding the quickstart's texts", 0.0)
        self.words = [PAD, END, UNKNOWN, *data.vocabulary()]
        self.texts = {(d, e): encode(data.lessons(d, e), self.words) for d in data.DOMAINS for e in data.EDITIONS}
        self.done = 0
        self.reported_at = 0.0

    def run(self) -> None:
        base = self.folder / "base"
        if not _whole(base, self.stamp):
            # The specialists' deltas belong to the base that they started from.
            for name in data.DOMAINS:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            model = new_model(self.settings, len(self.words))
            self._learn(model, "base", self._base_mixture())
        self.done = self._steps("base")
        for name in data.DOMAINS:
            self.done = sum(self._steps(m) for m in MODELS[: MODELS.index(name)])
            if not _whole(self.folder / name, self.stamp):
                model = new_model(self.settings, len(self.words))
                load_weights(model, base)
                self._learn(model, name, self._specialist_mixture(name))

    def _steps(self, name: str) -> int:
        return self._schedule(name).steps

    def _schedule(self, name: str) -> TrainingSchedule:
        schedule: TrainingSchedule = getattr(self.settings, name)
        return schedule

    def _base_mixture(self, without: str | None = None) -> list[tuple[Texts, float]]:
        domains = [d for d in data.DOMAINS if d != without]
        shares = {"old": 1 - self.settings.new_share, "new": self.settings.new_share}
        return [(self.texts[d, e], shares[e] / len(domains)) for d in domains for e in data.EDITIONS]

    def _specialist_mixture(self, domain: data.Domain) -> TaskMixture:
        rehearsal = self._schedule(domain).rehearsal
        others = [(texts, share * rehearsal) for texts, share in self._base_mixture(without=domain)]
        return [(self.texts[domain, "new"], 1 - rehearsal), *others]

    def _learn(self, model: Any, name: str, mixture: TaskMixture) -> None:
        """Trains `model` and writes it; the folder takes its name only when it is whole."""
        schedule = self._schedule(name)
        seed = 100 * self.settings.seed + MODELS.index(name)
        total = sum(self._steps(m) for m in MODELS)

        def progress(step: int) -> None:
            if time.monotonic() - self.reported_at > 0.25 or step == schedule.steps:
                self.reported_at = time.monotonic()
                self.report(f"training {name} ({step} of {schedule.steps} steps)", (self.done + step) / total)

        train(model, mixture, schedule, self.settings.batch, seed, progress)
        partial = self.folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        save(model, new_tokenizer(self.words), partial)
        _write(partial / STAMP, {"digest": self.stamp})
        shutil.rmtree(self.folder / name, ignore_errors=True)
        partial.rename(self.folder / name)


def encode(lessons: Sequence[data.Lesson], words: Sequence[str]) -> Texts:
    """Returns the lessons as token numbers, each followed by the end token."""
    index = {word: i for i, word in enumerate(words)}
    rows = [[index[w] for w in f"{x.prompt} {x.answer} {END}".split()] for x in lessons]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [index[PAD]] * (longest - len(row)) for row in rows])
    return Texts(tokens, torch.tensor([len(row) for row in rows]))


def new_tokenizer(words: Sequence[str]) -> Any:
    """Returns a tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, eos_token=END, model_max_length=64
    )


def new_model(settings: Settings, words: int) -> Any:
    """Returns an untrained model; the caller's random state stays as it was."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=64,
        initializer_range=settings.spread,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(max_new_tokens=4, pad_token_id=0, eos_token_id=1)
    return model


def load_weights(model: Any, checkpoint: Path) -> None:
    """Copies the weights of a checkpoint into `model`."""
    # Not `from_pretrained` (nor `save_pretrained` below): they draw progress bars of their own.
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    model.tie_weights()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes an ordinary checkpoint; a tied head is not stored, as usual."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k not in tied}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(
    model: Any, mixture: TaskMixture, schedule: TrainingSchedule, batch: int, seed: int, progress: Callable[[int], None]
) -> None:
    """Trains `model` on the answers (each with the end token after it) of lessons drawn from `mixture`."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    model.train()
    for step in range(schedule.steps):
        rate = schedule.rate * min(1.0, (step + 1) / WARMUP) * (1 - step / schedule.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = answer_loss(model, _draw(mixture, batch, generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1)
    model.eval()


def _draw(mixture: TaskMixture, batch: int, generator: torch.Generator) -> Texts:
    """Draws a batch: from each of the mixture's texts its share of lessons."""
    longest = max(texts.tokens.shape[1] for texts, _ in mixture)
    tokens, ends = [], []
    for texts, share in mixture:
        rows = torch.randint(len(texts.ends), (round(batch * share),), generator=generator)
        drawn = texts.tokens[rows]
        tokens.append(torch.nn.functional.pad(drawn, (0, longest - drawn.shape[1])))
        ends.append(texts.ends[rows])
    return Texts(torch.cat(tokens), torch.cat(ends))


def answer_loss(model: Any, texts: Texts) -> torch.Tensor:
    """Returns the mean cross-entropy of the last two tokens of each lesson; the prompt's tokens do not count."""
    rows = torch.arange(len(texts.ends))
    hidden = model.model(input_ids=texts.tokens[:, : int(texts.ends.max()) - 1]).last_hidden_state
    places = (texts.ends - 2, texts.ends - 1)
    features = torch.cat([hidden[rows, place - 1] for place in places])
    targets = torch.cat([texts.tokens[rows, place] for place in places])
    return torch.nn.functional.cross_entropy(model.lm_head(features), targets)
