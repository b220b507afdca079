"""Licences of model cards, and facts about licences that stand side by side in a merge. It is no legal advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints import hub
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.references import locate, split_adapter
from evomerge.errors import InputError
from evomerge.escape import shortened
from evomerge.examine.checks.findings import Finding, note, warning
from evomerge.files.scalars import Schema
from evomerge.files.trees import parse_documents
from evomerge.safety.read import is_there, read_text

_CARD = "README.md"
_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.S)
_PERMISSIVE = re.compile(r"^(mit|apache-2\.0|bsd.*|isc|cc0-1\.0|cc-by-[\d.]+|unlicense|afl-3\.0|zlib|wtfpl)$")
_COMMUNITY = re.compile(r"^(llama|gemma|deepseek|qwen|falcon|tongyi|yi-|mrl|mnpl|command|stabilityai|health-ai|apple)")
_TERMS = (
    ("no derivatives", re.compile(r"-nd\b|no-?derivatives"), "forbids sharing modified versions, and a merge is one"),
    ("non-commercial", re.compile(r"-nc\b|non-?commercial|research|mnpl|mrl"), "allows no commercial use"),
    ("share alike", re.compile(r"-sa\b|^[al]?gpl"), "asks that what is made of it has the same licence"),
    ("use restrictions", re.compile(r"rail"), "restricts what it is used for, also in what is made of it"),
)
"""Kinds of terms, how they show in a licence's name, and what such a licence says."""


@dataclass(frozen=True)
class Licence:
    """The licence that a model card names.

    name: as the hub writes it (`license`, or `license_name` where that is `other`), in small letters; None: no card, or
        none named there.
    """

    name: str | None

    @property
    def permissive(self) -> bool:
        return self.name is not None and bool(_PERMISSIVE.match(self.name))

    @property
    def terms(self) -> list[tuple[str, str]]:
        """Its kinds of terms by name, with what each says."""
        if self.name is None:
            return []
        found = [(kind, says) for kind, pattern, says in _TERMS if pattern.search(self.name)]
        if _COMMUNITY.match(self.name):
            found.append(("terms of its own", "is no standard licence: its text says what a merge may be used for"))
        if self.name.startswith("llama") and self.name not in ("llama", "llama2"):
            found.append(("naming", "wants names of what is made of it to begin with Llama, and 'Built with Llama'"))
        return found


def licence_of(checkpoint: Checkpoint) -> Licence:
    """Reads the licence of a model; of ``model+adapter`` the adapter's card, then the model's."""
    model, adapter = split_adapter(checkpoint.reference)
    named = [name for ref in (adapter, model) if ref is not None and (name := _named(ref, checkpoint)) is not None]
    return Licence(named[0] if named else None)


def compare_licences(licences: Mapping[str, Licence]) -> list[Finding]:
    """Names what stands side by side. `licences`: by model."""
    findings = []
    silent = [name for name, licence in licences.items() if licence.name is None]
    if silent:
        findings.append(note("licences", f"no model card of {', '.join(silent)} names a licence"))
    bound_by = dict.fromkeys(kind for licence in licences.values() for kind, _ in licence.terms)
    for kind in bound_by:
        bound = {n: says for n, licence in licences.items() for k, says in licence.terms if k == kind}
        free = [f"{n} ({licence.name})" for n, licence in licences.items() if licence.name and n not in bound]
        which = ", ".join(f"{n} ({licences[n].name})" for n in bound)
        beside = f"; beside it {', '.join(free)}" if free else ""
        level = warning if free or kind == "no derivatives" else note
        findings.append(level("licences", f"{kind}: the licence of {which} {next(iter(bound.values()))}{beside}"))
    names = {n: licence.name for n, licence in licences.items() if licence.name}
    if len(set(names.values())) > 1 and not bound_by:
        listed = ", ".join(f"{model} {name}" for model, name in names.items())
        findings.append(note("licences", f"they differ ({listed}); each asks to be named"))
    return findings


def _named(reference: str, checkpoint: Checkpoint) -> str | None:
    """The licence that the card of a folder or repository names."""
    try:
        folder = locate(reference, checkpoint.where)
        if folder is None:
            name, revision = hub.split_revision(reference)
            folder = hub.fetch(name, revision, checkpoint.where, (_CARD,))[0]
        return _of_card(folder / _CARD) if is_there(folder / _CARD) else None
    except InputError:  # a card that cannot be read names nothing
        return None


def _of_card(file: Path) -> str | None:
    front = _FRONT.match(read_text(file))
    if front is None:
        return None
    documents = parse_documents(front[1], file, Schema.TASK)
    data: Any = documents[0].data if documents else None
    if not isinstance(data, dict):
        return None
    name = data.get("license")
    name = name[0] if isinstance(name, list) and name else name
    if name == "other" or name is None:
        name = data.get("license_name") or name
    return shortened(str(name), 60).lower() if isinstance(name, str) else None
