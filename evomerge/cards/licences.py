"""Licences of models: what they ask for, and which one a merge of several has. It is no legal advice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from evomerge.cards.front_matter import LICENCE_TEXTS, Card, cards_of
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.safety.read import is_there, read_text

NO_DERIVATIVES, SHARE_ALIKE, OWN = "no derivatives", "share alike", "terms of its own"
_PERMISSIVE = re.compile(r"^(mit|apache-2\.0|bsd.*|isc|cc0-1\.0|cc-by-[\d.]+|unlicense|afl-3\.0|zlib|wtfpl)$")
_ASKS_NOTHING = re.compile(r"^(cc0-1\.0|unlicense|wtfpl)$")
_ASKS_LITTLE = re.compile(r"^(mit|isc|zlib|bsd.*)$")
_COMMUNITY = re.compile(r"^(llama|gemma|deepseek|qwen|falcon|tongyi|yi-|mrl|mnpl|command|stabilityai|health-ai|apple)")
_TERMS = (
    (NO_DERIVATIVES, re.compile(r"-nd\b|no-?derivatives"), "forbids sharing modified versions, and a merge is one"),
    ("non-commercial", re.compile(r"-nc\b|non-?commercial|research|mnpl|mrl"), "allows no commercial use"),
    (SHARE_ALIKE, re.compile(r"-sa\b|^[al]?gpl"), "asks that what is made of it has the same licence"),
    ("use restrictions", re.compile(r"rail"), "restricts what it is used for, also in what is made of it"),
)
"""Kinds of terms, how they show in a licence's name, and what such a licence says."""

_STRICT = (NO_DERIVATIVES, "non-commercial", OWN, "use restrictions", SHARE_ALIKE)
"""Kinds of terms, the strictest first."""
_LONGEST_TEXT = 200_000


@dataclass(frozen=True)
class Licence:
    """The licence that a model card names.

    Attributes:
        name: as the hub writes it (`license`, or `license_name` where that is `other`), in small letters; None: no
            card, or none named there.
        other: whether the hub has no identifier for it.
        link: where its text is, as a URL; or the name of a file with it.
        text: that file's.
    """

    name: str | None
    other: bool = False
    link: str | None = None
    text: str | None = field(default=None, repr=False)

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
            found.append((OWN, "is no standard licence: its text says what a merge may be used for"))
        if self.name.startswith("llama") and self.name not in ("llama", "llama2"):
            found.append(("naming", "wants names of what is made of it to begin with Llama, and 'Built with Llama'"))
        return found

    @property
    def kinds(self) -> frozenset[str]:
        """Its kinds of terms. A licence that is not known has terms of its own."""
        known = {kind for kind, _ in self.terms} & {*_STRICT}
        return frozenset(known if known or self.permissive or self.name is None else {OWN})

    @property
    def _strictness(self) -> tuple[int, int, int]:
        places = [_STRICT.index(kind) for kind in self.kinds]
        little = 0 if _ASKS_NOTHING.match(self.name or "") else 1 if _ASKS_LITTLE.match(self.name or "") else 2
        return (-min(places, default=len(_STRICT)), len(places), little)

    def covers(self, other: Licence) -> bool:
        """Whether a merge under this licence keeps what the other one asks for, as far as their names tell."""
        if self.name == other.name or other.permissive or other.name is None:
            return True
        return other.kinds <= self.kinds and not other.kinds & {SHARE_ALIKE, OWN}


def licence_of(checkpoint: Checkpoint) -> Licence:
    """Reads the licence of a model; of ``model+adapter`` the adapter's card, then the model's."""
    return licence_of_cards(cards_of(checkpoint))


def licence_of_cards(cards: Sequence[Card]) -> Licence:
    """The licence that the first of these cards names that names one."""
    return next((_of_card(card) for card in cards if card.licence or card.licence_name), Licence(None))


def _of_card(card: Card) -> Licence:
    other = card.licence in (None, "other")
    name = (card.licence_name if other else None) or card.licence
    link, text = card.licence_link, None
    if link in LICENCE_TEXTS:
        if card.repository is not None:
            repository, _, commit = card.repository.partition("@")
            link = f"https://huggingface.co/{repository}/blob/{commit}/{link}"
        else:
            text = _text(card.folder, link or "")
            link = link if text is not None else None
    return Licence(name.lower() if name else None, other, link, text)


def _text(folder: Path | None, name: str) -> str | None:
    try:
        there = folder is not None and is_there(folder / name)
        return read_text(folder / name, largest=_LONGEST_TEXT) if folder is not None and there else None
    except InputError:
        return None


def strictest(licences: Mapping[str, Licence]) -> Licence:
    """The licence that a merge has: of those of its models, by their names, the one that asks for most. Of equals the
    first."""
    named = [licence for licence in licences.values() if licence.name is not None]
    return max(named, key=lambda licence: licence._strictness, default=Licence(None))


def conflicts(licences: Mapping[str, Licence]) -> list[str]:
    """What keeps one licence from covering all models, a line each. `licences`: by model."""
    named = {model: licence for model, licence in licences.items() if licence.name is not None}
    told: dict[frozenset[str | None], str] = {}
    for (a, one), (b, two) in combinations(named.items(), 2):
        pair = frozenset({one.name, two.name})
        if pair not in told and not one.covers(two) and not two.covers(one):
            told[pair] = f"the licences of {a} ({one.name}) and {b} ({two.name}) cannot both be kept by one licence"
    forbidding = {model: licence for model, licence in named.items() if NO_DERIVATIVES in licence.kinds}
    lines = [f"the licence of {m} ({x.name}) forbids sharing a merge" for m, x in forbidding.items()]
    silent = [model for model, licence in licences.items() if licence.name is None]
    if silent and named:
        lines.append(f"no model card of {', '.join(silent)} names a licence: the card's is that of the others")
    return [*told.values(), *lines]
