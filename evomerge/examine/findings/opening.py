"""Opens a patient: a recipe, or a checkpoint with its parents as the recipe beside it, or the user, names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.checkpoints.checkpoint import INDEX, WEIGHTS, Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.hub import header, headers
from evomerge.errors import InputError
from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.models import factors_of, merged, stored
from evomerge.examine.findings.patient import Patient
from evomerge.merging.disk.pipeline import StreamingBank
from evomerge.merging.plan.plan import plan
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import anchored

RECIPE = "mergekit_config.yml"
"""Of the folders that evomerge and mergekit write."""


def recipe_beside(model: str, notes: list[str]) -> Recipe | None:
    """The recipe beside a merged checkpoint, if there is one, with absolute paths. A faulty one is a note."""
    file = Path(model).expanduser() / RECIPE
    if not file.is_file():
        return None
    try:
        return anchored(read_recipe(file))
    except InputError as error:
        notes.append(f"{RECIPE} cannot be read ({error.problem})")
        return None


def open_patient(model: str, recipe: Recipe | None, beside: Recipe | None, parents: Mapping[str, str]) -> Patient:
    """Opens a patient from headers.

    Args:
        recipe: the model itself, where it is given as a recipe.
        beside: the recipe that a stored model was made by.
        parents: name -> reference; "base" is the base.

    Raises:
        InputError: a model cannot be opened.
    """
    if recipe is not None:
        bank = StreamingBank()
        planned = plan(recipe, bank.open)
        view = merged(model, recipe, planned)
    else:
        view = replace(stored(model, Checkpoint.open(model)), factors=_asked(beside) if beside else {})
    views = {name: stored(name, Checkpoint.open(reference)).named_like(view) for name, reference in parents.items()}
    sources = tuple(v for name, v in views.items() if name != "base")
    return Patient(view, views.get("base"), sources, recipe or beside)


def _asked(recipe: Recipe) -> dict[str, float]:
    """What the recipe of a stored model scales tensors by; nothing where its models are gone."""
    try:
        return factors_of(plan(recipe, StreamingBank().open))
    except InputError:
        return {}


def unreadable(model: str) -> Finding | None:
    """What a folder that does not open shows by its headers alone: codes in place of weights."""
    folder = Path(model).expanduser()
    single = folder / WEIGHTS
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors")) if (folder / INDEX).is_file() else []
    try:
        found = [header(single, None)] if files == [single] else headers(files, None)
    except InputError:
        return None
    stored_as = {name: info.dtype for part in found for name, info in part.items()}
    kinds = {n: kind for n, kind in stored_as.items() if n.endswith("weight") and kind not in FLOATS}
    if not kinds:
        return None
    first = next(iter(kinds))
    return Finding(
        "quantized-as-floats",
        f"{listed(list(kinds))}: codes of quantized weights, and nothing says how to read them",
        (Evidence(f"dtype of {first}", kinds[first]), Evidence("tensors so", float(len(kinds)))),
        "a quantized source was merged or copied without its quantization_config",
        "merge the unquantized model, or let evomerge read the quantized one, which dequantizes it",
    )
