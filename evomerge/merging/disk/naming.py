"""What the models of a merge are called in files that strangers read: hub ids, and names of folders. A path of this
machine says who its user is and where things lie, and is of no use to anybody else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.hub import split_revision
from evomerge.escape import printable
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import POLICIES, located, references, relocated

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?$")
_WORDS = frozenset({*POLICIES, "auto", *CHAT_TEMPLATES})
"""What stands for something else where a recipe may name a tokenizer or a chat template."""


@dataclass(frozen=True)
class PartName:
    """One folder or repository of a merge.

    Attributes:
        name: a hub id, or the name of a folder.
        revision: the commit of a hub id.
        path: the absolute folder, of what is here only.
    """

    name: str
    revision: str | None = None
    path: Path | None = None

    @property
    def hub(self) -> bool:
        return self.path is None

    @property
    def reference(self) -> str:
        """What names it in a recipe."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


class Names:
    """The names of all models of a recipe; equal names of different folders get a number.

    Attributes:
        parts: reference -> its model, and its adapter or file of weights.
    """

    def __init__(self, recipe: Recipe, checkpoints: Iterable[Checkpoint] = ()) -> None:
        """`checkpoints`: those that the recipe's references opened; their commits are known."""
        opened = {checkpoint.reference: checkpoint for checkpoint in checkpoints}
        self._recipe, self._by_path = recipe, dict[Path, str]()
        self._taken = {document.name for document in recipe.documents if document.name}
        tokenizers = {document.tokenizer.source for document in recipe.documents if document.tokenizer}
        asked = {*tokenizers, *(document.chat_template for document in recipe.documents)}
        self.parts: dict[str, tuple[PartName, ...]] = {}
        for reference, where in references(recipe).items():
            known = opened.get(reference)
            parts = located(reference, where) if known is None else known.parts
            self.parts[reference] = tuple(self._part(part, reference in asked) for part in parts)

    def _part(self, part: str, asked: bool) -> PartName:
        """`asked`: whether it also names a tokenizer or a chat template, where some words mean something else."""
        path = Path(part)
        if not path.is_absolute():
            return PartName(*split_revision(part))
        cached = _CACHED.search(path.as_posix())
        if cached is not None:
            return PartName(f"{cached[1]}/{cached[2]}", cached[3])
        if path not in self._by_path:
            plain = printable(path.name).replace("+", "-").replace("@", "-") or "model"
            numbered = (plain if n == 1 else f"{plain}-{n}" for n in range(1, len(self._by_path) + len(_WORDS) + 99))
            taken = self._taken | (_WORDS if asked else set())
            self._by_path[path] = next(name for name in numbered if name not in taken)
            self._taken.add(self._by_path[path])
        return PartName(self._by_path[path], path=path)

    @property
    def names(self) -> dict[str, str]:
        """Reference -> its name: hub ids with their commits, names of folders."""
        return {reference: "+".join(part.reference for part in parts) for reference, parts in self.parts.items()}

    def named(self) -> Recipe:
        """The recipe by these names."""
        return relocated(self._recipe, self.names)

    def seen_from(self, folder: Path, bare: bool = True) -> dict[str, str]:
        """Reference -> hub ids with their commits, paths as they are seen from a folder. `bare`: a name alone stands
        where such a path would spell the name of somebody's home folder."""
        return {r: "+".join(_place(part, folder, bare) for part in parts) for r, parts in self.parts.items()}

    @property
    def local(self) -> bool:
        """Whether some model is here only."""
        return any(not part.hub for parts in self.parts.values() for part in parts)

    @property
    def all_parts(self) -> list[PartName]:
        """Every folder and repository once."""
        return list(dict.fromkeys(part for parts in self.parts.values() for part in parts))


def _place(part: PartName, folder: Path, bare: bool) -> str:
    if part.path is None:
        return part.reference
    if bare and _spells_a_home(part.path, folder):
        return part.name
    path = Path(os.path.relpath(part.path, folder)).as_posix()
    return path if "/" in path else f"./{path}"


def _spells_a_home(path: Path, folder: Path) -> bool:
    """Whether a path, as seen from a folder, leads down into a home folder: of this user, or one beside it."""
    shared = Path(os.path.commonpath([path, folder]))
    home = Path.home()
    above = {Path("/home"), Path("/Users"), *([home.parent] if home.parent != Path(home.anchor) else [])}
    homes = [p for p in (path, *path.parents) if p == home or p.parent in above]
    return any(p not in (shared, *shared.parents) for p in homes)
