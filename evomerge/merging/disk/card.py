"""The model card of a merged checkpoint: front matter for the hub, and what people want to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from evomerge.escape import code, code_block, markdown
from evomerge.merging.disk.metadata import Sources
from evomerge.merging.disk.naming import Names
from evomerge.merging.disk.origin import Origin
from evomerge.merging.disk.record import RECORD
from evomerge.merging.plan.jobs import MergePlan
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.versions import MERGING, versions


def card(
    name: str, recipe: Recipe, names: Names, sources: Sources, plan: MergePlan, digest: str, origin: Origin
) -> str:
    """README.md of the checkpoint `name`. No path of this machine stands in it."""
    kind = "language models" if plan.embedding else "models"
    methods = ", ".join(dict.fromkeys(code(document.method) for document in recipe.documents))
    front = front_matter(sources.metadata(recipe, names, plan))
    listed = "\n".join(_listed(names, sources, plan))
    told = "".join(f"\n> {markdown(line)}\n" for line in sources.warnings())
    results = f"\n{origin.results.strip()}\n" if origin.results else ""
    packages = ", ".join(
        f"{package} {version}" for package, version in versions(MERGING).items() if package != "platform"
    )
    return f"""{front}# {markdown(name)}

A merge of {kind}, made with evomerge.
Method: {methods}. Size: {plan.elements:,} parameters in {plan.stack.layers} layers.

## Models

{listed}
{told}{results}
## Recipe

{code_block(write_recipe(names.named()), "yaml")}

Recipe id: {code(recipe.id)}
Digest of the weights: {code(digest)}
Made with {markdown(packages)}.
`evomerge reproduce {RECORD}` makes it again from the same models, and compares.
"""


def front_matter(data: Mapping[str, Any]) -> str:
    """The YAML above a card: each value on a line of its own, so that no text can end it."""
    text = yaml.safe_dump(dict(data), sort_keys=False, width=10**6, allow_unicode=True)
    return f"---\n{text}---\n"


def _listed(names: Names, sources: Sources, plan: MergePlan) -> Iterable[str]:
    """A line for each model, with its commit, its licence, and how it is stored."""
    licences = sources.licences
    for checkpoint in plan.checkpoints:
        parts = []
        for part in names.parts[checkpoint.reference]:
            shown = f"[{code(part.name)}](https://huggingface.co/{part.name})" if part.hub else code(part.name)
            shown += f" (commit {code(part.revision)})" if part.revision else ""
            licence = licences.get(part.name)
            parts.append(shown + (f", {markdown(licence.name)}" if licence is not None and licence.name else ""))
        stored = checkpoint.quantization
        yield f"- {' with '.join(parts)}" + ("" if stored is None else f", stored quantized: {stored}")
