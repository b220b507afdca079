"""Reads a checkpoint's tokenizer files: their contents, checked, without loading a tokenizer, or a tokenizer loaded by
transformers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import hub
from evomerge.checkpoints.checkpoint import NAMED_TEMPLATES, TOKENIZER_FILES, VOCABULARY_FILES, Checkpoint
from evomerge.checkpoints.config import CONFIG, read_settings
from evomerge.checkpoints.references import locate, split_adapter
from evomerge.errors import InputError, Where
from evomerge.escape import quoted, shortened
from evomerge.safety.read import is_there, parse_json, read_bytes, read_object, read_text
from evomerge.safety.templates import check_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_IDS = 10_000_000
"""A matrix has a row for every id up to the largest. The largest published vocabularies have some 300,000."""
_MEND = "copy or download it again"
_FETCHED = (CONFIG, *TOKENIZER_FILES)


def vocabulary(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Token -> id, added tokens included; None if the checkpoint has no tokenizer. InputError if it has one that
    cannot be read."""
    folder, where = checkpoint.tokenizer_path, checkpoint.where
    stored = stored_vocabulary(folder, where)
    if stored is None and is_there(folder / "tokenizer.model", where):
        return dict(load_tokenizer(folder, where).get_vocab())
    return stored


def stored_vocabulary(folder: Path, where: Where | None = None) -> dict[str, int] | None:
    """As `vocabulary`, of a folder; None if it has no JSON that tells the tokens."""
    return _vocabulary(folder, stamp(folder), where)


def stamp(folder: Path) -> Hashable:
    """A key that changes when the folder's tokenizer files do."""
    files = ((name, folder / name) for name in TOKENIZER_FILES)
    return tuple((name, s.st_size, s.st_mtime_ns) for name, file in files if file.is_file() for s in (file.stat(),))


@lru_cache(maxsize=64)
def _vocabulary(folder: Path, stamp: Hashable, where: Where | None) -> dict[str, int] | None:
    if is_there(folder / "tokenizer.json", where):
        return _fast_vocabulary(folder / "tokenizer.json", where)
    if is_there(folder / "vocab.json", where):
        files = [folder / "vocab.json", folder / "added_tokens.json"]
        stored = {file: read_object(file, where) for file in files if is_there(file, where)}
        if all(isinstance(tokens, dict) for tokens in stored[files[0]].values()):
            return None  # a vocabulary for each of several languages
        return {token: i for file, tokens in stored.items() for token, i in _ids(tokens, file, where).items()}
    return None


def _fast_vocabulary(file: Path, where: Where | None) -> dict[str, int]:
    """The tokens of a tokenizer.json. InputError if it is not laid out as one."""

    def wrong(what: str) -> InputError:
        return InputError(f"{file} is no tokenizer: {what}", _MEND, where)

    data = read_object(file, where)
    model, added = data.get("model"), data.get("added_tokens") or []
    if not isinstance(model, dict):
        raise wrong("its model is no mapping")
    stored = model.get("vocab", {})
    if isinstance(stored, list):  # Unigram models list [token, score] in the order of the ids
        if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in stored):
            raise wrong("its vocab has an entry without a token")
        stored = {entry[0]: i for i, entry in enumerate(stored)}
    if not isinstance(stored, dict):
        raise wrong("its vocab is neither a mapping nor a list")
    if not isinstance(added, list) or not all(isinstance(t, dict) and {"content", "id"} <= set(t) for t in added):
        raise wrong("added_tokens is no list of tokens with content and id")
    if not all(isinstance(token["content"], str) for token in added):
        raise wrong("the content of an added token is no text")
    return _ids({**stored, **{token["content"]: token["id"] for token in added}}, file, where)


def _ids(tokens: Mapping[str, Any], file: Path, where: Where | None) -> dict[str, int]:
    """Tokens with their ids. InputError if one is no id."""
    bad = next((t for t, i in tokens.items() if type(i) is not int or not 0 <= i < _MOST_IDS), None)
    if bad is not None:
        problem = f"{file}: the id of {shortened(bad, 40)!r} is {quoted(tokens[bad], 40)}"
        raise InputError(problem, f"ids are whole numbers from 0 to {_MOST_IDS - 1}", where)
    return dict(tokens)


def tokenizer_folder(ref: str, where: Where | None = None) -> Path:
    """The folder of the tokenizer that a reference names: a folder, which needs nothing else, or a hub id, of which
    nothing else is fetched. Of ``model+adapter`` it is the adapter's, if it brings a tokenizer.

    Raises:
        InputError: there is no such folder or repository, or it cannot be reached.
    """
    folders = []
    for part in split_adapter(ref, where):
        if part is not None:
            folder = locate(part, where)
            folders.append(hub.fetch(*hub.split_revision(part), where, _FETCHED)[0] if folder is None else folder)
    return next((f for f in folders[1:] if any(is_there(f / name, where) for name in VOCABULARY_FILES)), folders[0])


def read_files(folder: Path, names: Iterable[str], where: Where | None = None) -> dict[str, bytes]:
    """The contents of the files of these names that a folder has. InputError if one is not what its ending says: JSON
    files hold an object, the others but models of sentencepiece a UTF-8 text."""
    contents = {name: read_bytes(folder / name, where) for name in names if is_there(folder / name, where)}
    for name, content in contents.items():
        if name.endswith(".json") and not isinstance(parse_json(content, folder / name, where), dict):
            raise InputError(f"{folder / name} is not a JSON object", _MEND, where)
        if not name.endswith((".json", ".model", ".spm", ".v3")):
            read_text(folder / name, where)
    return contents


def read_tokenizer_files(folder: Path, where: Where | None = None) -> dict[str, bytes]:
    """The contents of a folder's tokenizer files, chat templates included, by their names in it."""
    named = sorted(f"{NAMED_TEMPLATES}/{f.name}" for f in (folder / NAMED_TEMPLATES).glob("*.jinja"))
    return read_files(folder, [*TOKENIZER_FILES, *named], where)


def load_tokenizer(folder: Path, where: Where | None = None) -> PreTrainedTokenizerBase:
    """A folder's tokenizer, without running code from there. InputError if transformers cannot load it."""
    stored_vocabulary(folder, where)  # says more exactly what is wrong, and refuses ids that would fill the memory
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with _explained(f"{folder}: its tokenizer cannot be loaded", "mend or replace tokenizer.json", where):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        return tokenizer
    finally:
        logging.set_verbosity(level)


def tokenizing(owner: str) -> AbstractContextManager[None]:
    """A context in which a tokenizer may fail on a text, by a pattern that backtracks, for one: that is an InputError.
    `owner`: the checkpoint, for messages."""
    return _explained(f"the tokenizer of {owner} fails on a text", "mend or replace tokenizer.json", None)


@contextmanager
def _explained(problem: str, mend: str, where: Where | None) -> Iterator[None]:
    """Turns whatever the tokenizers library raises into an InputError."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # bare Exceptions, and where the library panics, a BaseException
        reason = shortened(" ".join(str(error).split()) or type(error).__name__)
        raise InputError(f"{problem} ({reason})", mend, where) from error


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The checkpoint's default chat template (Jinja), or None. InputError if it cannot be read, or is no Jinja."""
    return chat_template_of(checkpoint.tokenizer_path, checkpoint.where)


def chat_template_of(folder: Path, where: Where | None = None) -> str | None:
    """As `chat_template`, of a folder."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if is_there(file, where):
        template: Any = read_text(file, where)
    else:
        template = read_settings(config, where).get("chat_template") if is_there(config, where) else None
        file = config
    if isinstance(template, list):  # named templates
        if not all(isinstance(named, dict) for named in template):
            raise InputError(
                f"{config}: chat_template lists what is no mapping", "give each a name and template", where
            )
        template = next((named.get("template") for named in template if named.get("name") == "default"), None)
    if template is None:
        return None
    if not isinstance(template, str):
        raise InputError(f"{config}: chat_template is {quoted(template, 40)}, not a text", "correct it", where)
    check_template(template, str(file), where)
    return template
