"""The front matter of a merge's card: what the hub shows and finds models by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.cards.front_matter import Card, card_of_part
from evomerge.cards.licences import Licence, conflicts, licence_of_cards, strictest
from evomerge.checkpoints.checkpoint import IMAGE_FILES, Checkpoint
from evomerge.merging.disk.naming import Names, PartName
from evomerge.merging.plan.jobs import MergePlan
from evomerge.recipe.recipe import Recipe, base_of
from evomerge.registry import CORE_PAPERS, PAPERS, runs_in_mergekit
from evomerge.safety.read import is_there

TAGS = ("merge", "mergekit", "evomerge")
_HEADS = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForMaskedLM", "fill-mask"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
)
"""How the names of transformers' classes end, and the hub's word for what they do."""


@dataclass(frozen=True)
class Sources:
    """What the cards of a merge's models say.

    Attributes:
        cards: of its parts, by name, the base's first; None where a part has no card.
    """

    cards: Mapping[PartName, Card | None]

    @classmethod
    def read(cls, recipe: Recipe, names: Names, checkpoints: Iterable[Checkpoint]) -> Sources:
        """Reads the cards of all models; those on the hub are fetched."""
        opened = {checkpoint.reference: checkpoint for checkpoint in checkpoints}
        base = base_of(recipe)
        cards: dict[PartName, Card | None] = {}
        for reference in sorted(names.parts, key=lambda reference: reference != base):
            checkpoint = opened.get(reference)
            for part, name in zip(checkpoint.parts if checkpoint else (), names.parts[reference], strict=False):
                if name not in cards and checkpoint is not None:
                    cards[name] = card_of_part(part, checkpoint.where)
        return cls(cards)

    @property
    def licences(self) -> dict[str, Licence]:
        """By part; a file of weights and a folder without a card name none."""
        return {part.name: licence_of_cards([card] if card else []) for part, card in self.cards.items()}

    @property
    def licence(self) -> Licence:
        return strictest(self.licences)

    def warnings(self) -> list[str]:
        """Lines on licences that one licence does not cover."""
        return conflicts(self.licences)

    def _named(self, key: str) -> list[str]:
        return list(dict.fromkeys(v for card in self.cards.values() if card is not None for v in getattr(card, key)))

    def metadata(self, recipe: Recipe, names: Names, planned: MergePlan) -> dict[str, Any]:
        """The keys of the front matter, as the hub names them; those that nothing is known of are left out."""
        hubs = list(dict.fromkeys(part.name for part in _ordered(recipe, names) if part.hub))
        papers = dict.fromkeys(p for document in recipe.documents for p in PAPERS.get(document.method, ()))
        papers |= dict.fromkeys(p for document in recipe.documents if document.core for p in CORE_PAPERS)
        return {
            **({"base_model": hubs, "base_model_relation": "merge"} if hubs else {}),
            **({"library_name": "transformers"} if "model_type" in planned.config else {}),
            **_filled("pipeline_tag", self._pipeline(planned)),
            **_filled("language", self._named("languages")),
            **_licence(self.licence),
            **_filled("datasets", self._named("datasets")),
            "tags": [*_tags(recipe), *(f"arxiv:{paper}" for paper in papers)],
        }

    def _pipeline(self, planned: MergePlan) -> str | None:
        """What the model does: what its class does, else what all cards that say it agree on."""
        classes = planned.config.get("architectures")
        name = str(classes[0]) if isinstance(classes, list) and classes else ""
        does = next((word for end, word in _HEADS if name.endswith(end)), None)
        if name.endswith("ForConditionalGeneration") and any(is_there(planned.donor.path / f) for f in IMAGE_FILES):
            does = "image-text-to-text"
        said = {card.pipeline for card in self.cards.values() if card is not None and card.pipeline}
        return does or (said.pop() if len(said) == 1 else None)


def _tags(recipe: Recipe) -> list[str]:
    """Those of every merge; `mergekit` where its recipe is mergekit's."""
    theirs = all(runs_in_mergekit(document.method) and not document.core for document in recipe.documents)
    return [tag for tag in TAGS if tag != "mergekit" or theirs]


def _ordered(recipe: Recipe, names: Names) -> Iterator[PartName]:
    """The parts, the base's first."""
    base = base_of(recipe)
    for reference in sorted(names.parts, key=lambda reference: reference != base):
        yield from names.parts[reference]


def _licence(licence: Licence) -> dict[str, str]:
    if licence.name is None:
        return {}
    if not licence.other:
        return {"license": licence.name}
    return {"license": "other", "license_name": licence.name, **_filled("license_link", licence.link)}


def _filled(key: str, value: str | Sequence[str] | None) -> dict[str, Any]:
    return {key: value} if value else {}
