"""What stands beside a merge's weights for people and for other programs: recipe, card, record."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from evomerge.cards.front_matter import CARD
from evomerge.checkpoints.write import CheckpointWriter
from evomerge.merging.disk.card import card
from evomerge.merging.disk.metadata import Sources
from evomerge.merging.disk.naming import Names
from evomerge.merging.disk.origin import Origin
from evomerge.merging.disk.record import RECORD, Options, Record, inputs
from evomerge.merging.plan.jobs import MergePlan
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import relocated

RECIPE_FILE = "mergekit_config.yml"


class Documents:
    """The documents of one merge. The cards of its models are read when it is made, its files hashed at the end.

    Attributes:
        warnings: lines on licences that one licence does not cover.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, text: str, plan: MergePlan, options: Options, card: bool, origin: Origin
    ) -> None:
        """`text`: the recipe as it was given; `card`: whether README.md is written."""
        self._folder, self._recipe, self._text, self._plan = folder, recipe, text, plan
        self._options, self._origin = options, origin
        self._names = Names(recipe, plan.checkpoints)
        self._sources = Sources.read(recipe, self._names, plan.checkpoints) if card else None
        self.warnings = [f"warning: {line}" for line in self._sources.warnings()] if self._sources else []

    def write(self, writer: CheckpointWriter, digest: str) -> None:
        """Write them. `digest`: of the weights."""
        names = self._names
        seen = names.seen_from(self._folder) if names.local else {reference: reference for reference in names.parts}
        text = self._relocated(seen) if names.local and not self._origin.text else self._text
        writer.text(RECIPE_FILE, text)
        if self._sources is not None:
            licence = self._sources.licence
            if licence.text is not None and licence.link is not None:
                writer.text(licence.link, licence.text)
            writer.text(
                CARD, card(self._folder.name, self._recipe, names, self._sources, self._plan, digest, self._origin)
            )
        record = Record(
            recipe=text,
            references={seen[r]: tuple(part.reference for part in parts) for r, parts in names.parts.items()},
            parts=inputs(self._plan, names),
            options=self._options,
            digest=digest,
            search=self._origin.facts,
        )
        writer.summary(RECORD, lambda files: replace(record, files=files).to_json())

    def _relocated(self, seen: dict[str, str]) -> str:
        """The recipe by other references, below the comments that it begins with."""
        comments = takewhile(lambda line: line.startswith("#"), self._text.splitlines())
        return "".join(f"{line}\n" for line in comments) + write_recipe(relocated(self._recipe, seen))
