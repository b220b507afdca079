"""The recipe of the merge, how to rebuild it, and what it was made with; without paths of this machine."""

from __future__ import annotations

import json
from typing import Any

from evomerge.recipe.mergekit import recipe_from_data, write_recipe
from evomerge.recipe.recipe import Recipe, to_data
from evomerge.report.page.places import Places
from evomerge.report.page.run import Run
from evomerge.report.tables import describe

LONGEST = 100_000
"""Characters of a recipe that a page shows."""


def recipe_data(run: Run) -> dict[str, Any] | None:
    """Returns the recipe as YAML and the commands that rebuild it; None where there is no merge."""
    trial = run.subject
    if trial is None:
        return None
    recipe, places = trial.recipe, run.places
    hidden = sorted({places.reference(m) for m in recipe.models() if not places.is_known(m)})
    header = f"evomerge run {run.folder.name}, {describe(trial)}, recipe {trial.recipe_id[:16]}"
    is_short = len(trial.recipe_text) <= 2 * LONGEST
    header += f"\ndigest of the weights {trial.digest}"
    text = write_recipe(published(recipe, places), header) if is_short else None
    file = f"{run.folder.name}.yaml"
    option = "" if run.state.winner is not None else f" --trial {trial.number} --allow-infeasible"
    export = f"evomerge export {run.folder.name}{option} -o {file}"
    return {
        "trial": trial.number,
        "recipe_id": trial.recipe_id,
        "digest": trial.digest,
        "yaml": text if text is not None and len(text) <= LONGEST else None,
        "models_by_name_only": hidden,
        "commands": [export, f"evomerge merge {file} merged/"],
    }


def published(recipe: Recipe, places: Places) -> Recipe:
    """The recipe with every model's reference as it is published."""
    names = {model: places.reference(model) for model in recipe.models()}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: names.get(inner, inner) if key in ("model", "base_model", "tokenizer_source", "source")
                and isinstance(inner, str) else renamed(inner)
                for key, inner in value.items()
            }  # fmt: skip
        return [renamed(inner) for inner in value] if isinstance(value, list | tuple) else value

    return recipe_from_data(json.loads(json.dumps([renamed(document) for document in to_data(recipe)])))


def environment_data(run: Run) -> dict[str, Any]:
    """Returns versions, device, and the fingerprints of models and items."""
    environment, space = run.environment, run.space
    return {
        "versions": dict(environment.versions),
        "device": environment.device,
        "workers": environment.workers,
        "optimizer": {k: v for k, v in space.get("optimizer", {}).items() if isinstance(v, str | int | float | bool)},
        "models": {
            name: {
                "reference": run.places.reference(run.places.models.get(name, "")),
                "fingerprint": str(fingerprint),
            }
            for name, fingerprint in environment.identity.get("checkpoints", {}).items()
        },
        "items": {name: str(digest) for name, digest in environment.identity.get("items", {}).items()},
    }
