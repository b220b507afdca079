"""The chat template in the small files of a checkpoint, wherever readers look for it.

There are four places: `chat_template.jinja` (transformers 5, which prefers it), the key `chat_template` of
`tokenizer_config.json` (earlier versions; converters to GGUF prefer it), `chat_template.json` (processors prefer it),
and `additional_chat_templates/NAME.jinja` for further templates that have names. The key may also list them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from evomerge.checkpoints.checkpoint import NAMED_TEMPLATES
from evomerge.errors import Where
from evomerge.safety.names import check_name

_JINJA, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_PROCESSOR = "chat_template.json"
_OF_PROCESSORS = (_PROCESSOR, "processor_config.json")
"""Files of a processor that hold a template under the key `chat_template`."""
_DEFAULT = "default"


@dataclass(frozen=True)
class Templates:
    """The default chat template of a tokenizer, or None, and its further ones by name."""

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)


def with_template(files: Mapping[str, bytes], template: str | None, where: Where | None = None) -> dict[str, bytes]:
    """The files of a checkpoint, all with one chat template.

    Args:
        files: contents by name.
        template: the template to be; None: the tokenizer's own, as transformers reads it. Then files that agree stay as
            they are, and a processor keeps a template of its own.
        where: for errors.

    Templates with names stay beside the tokenizer's own default only: they are of one format. InputError for one whose
    name is no file name.
    """
    result, own = dict(files), _own(files)
    if template is None:
        return result if _is_clear(files) else _written(result, own, where)
    for name in _OF_PROCESSORS:
        if "chat_template" in (settings := _object(files, name)):
            result[name] = json_bytes({**settings, "chat_template": template})
    kept = own.named if (own.default or "").strip() == template.strip() else {}
    return _written(result, Templates(template, kept), where)


def _is_clear(files: Mapping[str, bytes]) -> bool:
    """Whether all readers of the tokenizer find one template, and transformers reads the processor."""
    in_jinja, in_config = _in_jinja(files), _in_config(files)
    if in_jinja.named and _PROCESSOR in files:
        return False
    return None in (in_jinja.default, in_config.default) or in_jinja.default == in_config.default


def _written(files: dict[str, bytes], templates: Templates, where: Where | None) -> dict[str, bytes]:
    """The files with the templates in all of the tokenizer's places."""
    defaults = {} if templates.default is None else {_DEFAULT: templates.default}
    result = {name: content for name, content in files.items() if name != _JINJA and not _is_named(name)}
    # Step 1: the configuration has the one template, or lists all
    if _CONFIG in files:
        listed = [{"name": name, "template": text} for name, text in {**defaults, **templates.named}.items()]
        value = listed if templates.named else templates.default
        result[_CONFIG] = json_bytes({**_object(files, _CONFIG), "chat_template": value})
    # Step 2: files of their own, but where processors refuse such files beside chat_template.json
    if templates.named and _PROCESSOR in files and _CONFIG in files:
        return result
    for text in defaults.values():
        result[_JINJA] = text.encode()
    for name, text in templates.named.items():
        result[f"{NAMED_TEMPLATES}/{check_name(name, 'chat template', where)}.jinja"] = text.encode()
    return result


def default_template(files: Mapping[str, bytes]) -> str | None:
    """The default template of a tokenizer's files, as transformers reads it."""
    return _own(files).default


def _own(files: Mapping[str, bytes]) -> Templates:
    """The tokenizer's templates, as transformers reads them: files come before the configuration."""
    in_jinja = _in_jinja(files)
    return in_jinja if in_jinja.default is not None or in_jinja.named else _in_config(files)


def _in_jinja(files: Mapping[str, bytes]) -> Templates:
    default = files[_JINJA].decode() if _JINJA in files else None
    return Templates(default, {PurePosixPath(n).stem: c.decode() for n, c in files.items() if _is_named(n)})


def _in_config(files: Mapping[str, bytes]) -> Templates:
    stored = _object(files, _CONFIG).get("chat_template")
    if not isinstance(stored, list):
        return Templates(stored if isinstance(stored, str) else None)
    pairs = [(entry.get("name"), entry.get("template")) for entry in stored if isinstance(entry, dict)]
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    return Templates(named.pop(_DEFAULT, None), named)


def _is_named(name: str) -> bool:
    return PurePosixPath(name).parent.name == NAMED_TEMPLATES


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file that was checked when it was read; empty if it is not there."""
    value = json.loads(files[name]) if name in files else {}
    assert isinstance(value, dict)
    return value


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
