"""Writes the tokenizer of a merged model, copied or built, and its chat template."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.checkpoint import TOKENIZER_FILES, Checkpoint
from evomerge.checkpoints.tokenizer import chat_template
from evomerge.checkpoints.vocabulary import Vocabulary, load_tokenizer
from evomerge.errors import InputError, Where, suggestion
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.output_config import follow_tokens
from evomerge.recipe.recipe import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_FILE = "chat_template.jinja"
_GENERATION_FILE = "generation_config.json"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class OutputTokenizer:
    """The tokenizer of a merged model, and the small files that stand beside it.

    Attributes:
        vocabulary: its tokens.
        template: the chat template that replaces the tokenizer's own, or None.
        donor: the checkpoint that gives generation settings and processors.
    """

    vocabulary: Vocabulary
    template: str | None
    donor: Checkpoint

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises InputError where transformers cannot load it."""
        tokenizer = self.vocabulary.load()
        if self.template is not None:
            tokenizer.chat_template = self.template
        return tokenizer

    def write(self, folder: Path) -> None:
        """Write everything into an existing folder. Files are copied if nothing in them changes."""
        if self.vocabulary.as_stored:
            names = [n for n in TOKENIZER_FILES if n != _TEMPLATE_FILE or self.template is None]
            _copy(self.vocabulary.folder, folder, names)
            if self.template is not None:
                (folder / _TEMPLATE_FILE).write_text(self.template, encoding="utf-8")
        else:
            self.load().save_pretrained(folder)
        _copy(self.donor.path, folder, _PROCESSOR_FILES)
        settings = self._generation()
        if settings is not None:
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            (folder / _GENERATION_FILE).write_text(text, encoding="utf-8")

    def _generation(self) -> dict[str, Any] | None:
        """The donor's generation settings with the output's token ids."""
        file = self.donor.path / _GENERATION_FILE
        if not file.is_file():
            return None
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        old = Vocabulary.of(self.donor.tokenizer_path)
        return settings if old == self.vocabulary else follow_tokens(settings, old, self.vocabulary)


def output_tokenizer(document: Document, planned: MergePlan, where: Where | None = None) -> OutputTokenizer:
    """The tokenizer of the output of `document`, the last one of a planned recipe.

    Without a tokenizer setting it is the base's files, unchecked, as in mergekit.

    Raises:
        InputError: the chat template is not known, or the tokenizer would not be the same when read back.
    """
    models = {c.reference: c for c in planned.checkpoints}
    template = template_of(document.chat_template, models, where or document.where)
    tokenizer = OutputTokenizer(planned.vocabulary, template, planned.donor)
    if not planned.vocabulary.as_stored:
        _check_round_trip(tokenizer, where or document.where)
    return tokenizer


def template_of(setting: str | None, models: Mapping[str, Checkpoint], where: Where | None = None) -> str | None:
    """The template that a setting asks for: None (the tokenizer's own), "auto" (the commonest among the models, the
    first listed among equals), a well-known format by its name, one of the models, or a Jinja text. InputError
    otherwise."""
    if setting is None:
        return None
    if setting == "auto":
        templates = Counter(t.strip() for t in map(chat_template, models.values()) if t)
        return templates.most_common(1)[0][0] if templates else None
    if setting in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[setting]
    if setting in models:
        return chat_template(models[setting])
    if "{" in setting:
        return setting
    mend = f"{suggestion(setting, ['auto', *CHAT_TEMPLATES])} Or give one of the recipe's models, or a Jinja text"
    raise InputError(f"chat_template {setting!r} is not known", mend, where)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _check_round_trip(tokenizer: OutputTokenizer, where: Where) -> None:
    """InputError if a built tokenizer has other tokens, or other ids, once it is written and loaded."""
    with TemporaryDirectory() as folder:
        tokenizer.load().save_pretrained(folder)
        read = load_tokenizer(Path(folder), where).get_vocab()
    tokens = tokenizer.vocabulary.tokens
    if read != dict(tokens):
        lost = next((t for t, i in tokens.items() if read.get(t) != i), None)
        problem = f"the merged tokenizer of {tokenizer.vocabulary.folder} changes when it is written"
        example = f" (first {lost!r})" if lost is not None else ""
        raise InputError(problem + example, "use tokenizer_source with one of the models", where)
