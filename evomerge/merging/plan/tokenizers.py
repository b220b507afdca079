"""Writes the tokenizer of a merged model, copied or built, and its chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.checkpoint import TOKENIZER_FILES, Checkpoint
from evomerge.checkpoints.config import read_settings
from evomerge.checkpoints.tokenizer import (
    chat_template,
    chat_template_of,
    load_tokenizer,
    read_files,
    stored_vocabulary,
)
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import InputError, Where, suggestion
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.output_config import follow_tokens
from evomerge.recipe.recipe import Document
from evomerge.safety.read import is_there
from evomerge.safety.templates import check_template

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
        files: the contents of the files that are copied or settled already, by name.
    """

    vocabulary: Vocabulary
    template: str | None
    files: Mapping[str, bytes]

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises InputError where transformers cannot load it."""
        tokenizer = self.vocabulary.load()
        if self.template is not None:
            tokenizer.chat_template = self.template
        return tokenizer

    def write(self, folder: Path) -> None:
        """Write everything into an existing folder."""
        if not self.vocabulary.as_stored:
            self.load().save_pretrained(folder)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def output_tokenizer(document: Document, planned: MergePlan, where: Where | None = None) -> OutputTokenizer:
    """The tokenizer of the output of `document`, the last one of a planned recipe. All files that it takes are read
    here, so that what is wrong with them is known before a tensor is merged.

    Without a tokenizer setting it is the base's files, as in mergekit.

    Raises:
        InputError: a file is damaged, the chat template is not known, or the tokenizer would not be the same when read
            back.
    """
    place, vocabulary = where or document.where, planned.vocabulary
    template = template_of(document.chat_template, {c.reference: c for c in planned.checkpoints}, place)
    files = read_files(planned.donor.path, _PROCESSOR_FILES, place)
    if vocabulary.as_stored:
        stored_vocabulary(vocabulary.folder, place)
        files |= read_files(vocabulary.folder, TOKENIZER_FILES, place)
        if template is None:
            chat_template_of(vocabulary.folder, place)
        else:
            files[_TEMPLATE_FILE] = template.encode()
    generation = _generation(planned, place)
    if generation is not None:
        files[_GENERATION_FILE] = (json.dumps(generation, indent=2, ensure_ascii=False) + "\n").encode()
    tokenizer = OutputTokenizer(vocabulary, template, files)
    if not vocabulary.as_stored:
        _check_round_trip(tokenizer, place)
    return tokenizer


def _generation(planned: MergePlan, where: Where) -> dict[str, Any] | None:
    """The donor's generation settings with the output's token ids."""
    file = planned.donor.path / _GENERATION_FILE
    if not is_there(file, where):
        return None
    settings, old = read_settings(file, where), Vocabulary.of(planned.donor.tokenizer_path)
    return settings if old == planned.vocabulary else follow_tokens(settings, old, planned.vocabulary)


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
        check_template(setting, "the recipe", where)
        return setting
    mend = f"{suggestion(setting, ['auto', *CHAT_TEMPLATES])} Or give one of the recipe's models, or a Jinja text"
    raise InputError(f"chat_template {setting!r} is not known", mend, where)


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
