"""Writes the tokenizer of a merged model, copied or built, and its chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.checkpoint import GENERATION_FILE, PROCESSOR_FILES, Checkpoint
from evomerge.checkpoints.config import read_settings
from evomerge.checkpoints.tokenizer import (
    chat_template,
    chat_template_of,
    load_tokenizer,
    read_files,
    read_tokenizer_files,
    stored_vocabulary,
)
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import InputError, Where, suggestion
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.output_config import follow_tokens
from evomerge.merging.plan.template_files import default_template, json_bytes, with_template
from evomerge.recipe.recipe import Document
from evomerge.safety.read import is_there
from evomerge.safety.templates import check_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROCESSOR_TEMPLATE = "chat_template.json"
_SENTENCEPIECE, _ADDED_TOKENS = "tokenizer.model", "added_tokens.json"


@dataclass(frozen=True)
class OutputTokenizer:
    """The tokenizer of a merged model, and the small files that stand beside it.

    Attributes:
        vocabulary: its tokens.
        template: the chat template that replaces the tokenizer's own, or None.
        files: the contents of all files, by name.
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
    if vocabulary.as_stored:
        stored_vocabulary(vocabulary.folder, place)
        files = read_tokenizer_files(vocabulary.folder, place)
        if template is None:
            chat_template_of(vocabulary.folder, place)
    else:
        files = _built(vocabulary, place)
    files = {**_of_processor(planned, default_template(files), place), **files}
    files = {**with_template(files, template, place), **_generation(planned, place)}
    return OutputTokenizer(vocabulary, template, files)


def side_files(planned: MergePlan, where: Where | None = None) -> dict[str, bytes]:
    """The small files beside a merged model that are not its tokenizer's. InputError if one is damaged."""
    place = where or Where("merge")
    return {**_of_processor(planned, None, place), **_generation(planned, place)}


def _of_processor(planned: MergePlan, template: str | None, where: Where) -> dict[str, bytes]:
    """The files of the donor's processor. Its chat template is that of the tokenizer's folder, if this is another one:
    of its processor, else of its tokenizer (`template`)."""
    files, folder = read_files(planned.donor.path, PROCESSOR_FILES, where), planned.vocabulary.folder
    if _PROCESSOR_TEMPLATE in files and folder != planned.donor.path:
        files |= read_files(folder, [_PROCESSOR_TEMPLATE], where)
        if template is not None and not is_there(folder / _PROCESSOR_TEMPLATE, where):
            files[_PROCESSOR_TEMPLATE] = json_bytes({"chat_template": template})
    return files


def _generation(planned: MergePlan, where: Where) -> dict[str, bytes]:
    """The file of the donor's generation settings, if it has one, with the output's token ids."""
    file = planned.donor.path / GENERATION_FILE
    if not is_there(file, where):
        return {}
    settings, old = read_settings(file, where), Vocabulary.of(planned.donor.tokenizer_path)
    if old != planned.vocabulary:
        settings = follow_tokens(settings, old, planned.vocabulary)
    return {GENERATION_FILE: json_bytes(settings)}


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


def _built(vocabulary: Vocabulary, where: Where) -> dict[str, bytes]:
    """The files of a tokenizer that is not a folder's own. InputError if it has other tokens, or other ids, once it is
    written and loaded."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = vocabulary.load()
        tokenizer.save_pretrained(folder)
        if vocabulary.limit is None and tokenizer.is_fast:
            inner = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
            added = {token: vocabulary.tokens[token] for token in vocabulary.marked if token not in inner}
            _add_sentencepiece(vocabulary.folder, folder, added, where)
        read, tokens = load_tokenizer(folder, where).get_vocab(), vocabulary.tokens
        if read != dict(tokens):
            lost = next((t for t, i in tokens.items() if read.get(t) != i), None)
            problem = f"the merged tokenizer of {vocabulary.folder} changes when it is written"
            example = f" (first {lost!r})" if lost is not None else ""
            raise InputError(problem + example, "use tokenizer_source with one of the models", where)
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def _add_sentencepiece(source: Path, folder: Path, added: Mapping[str, int], where: Where) -> None:
    """Copy the sentencepiece model of a tokenizer, which transformers does not write and converters to GGUF read, and
    list the tokens that are added to it."""
    copied = read_files(source, [_SENTENCEPIECE], where)
    if copied and not (folder / _SENTENCEPIECE).exists():
        (folder / _SENTENCEPIECE).write_bytes(copied[_SENTENCEPIECE])
        (folder / _ADDED_TOKENS).write_bytes(json_bytes(added))
