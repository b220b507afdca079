"""The model card of a merged checkpoint."""

from __future__ import annotations

import re

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.escape import code, code_block, markdown
from evomerge.merging.plan.jobs import MergePlan
from evomerge.recipe.recipe import Recipe


def card(name: str, recipe: Recipe, text: str, plan: MergePlan, digest: str) -> str:
    """README.md of the checkpoint `name`: its sources, recipe and digest. `text` is the recipe's YAML."""
    sources = "\n".join(
        f"- {code(c.reference)}" + _commit(c.reference, c.resolved()) + _quantized(c) for c in plan.checkpoints
    )
    kind = "language models" if plan.embedding else "models"
    methods = ", ".join(dict.fromkeys(code(document.method) for document in recipe.documents))
    return f"""---
library_name: transformers
tags:
- merge
- evomerge
---
# {markdown(name)}

A merge of {kind}, made with evomerge.
Method: {methods}. Size: {plan.elements:,} parameters in {plan.stack.layers} layers.

## Models

{sources}

## Recipe

{code_block(text, "yaml")}

Recipe id: {code(recipe.id)}
Digest of the weights: {code(digest)}
"""


def _quantized(checkpoint: Checkpoint) -> str:
    """That a checkpoint was read quantized."""
    return "" if checkpoint.quantization is None else f", stored quantized: {checkpoint.quantization}"


def _commit(reference: str, resolved: str) -> str:
    """The hub commits of a checkpoint that its reference does not name."""
    commits = [commit for commit in re.findall(r"@([0-9a-f]{40})", resolved) if commit not in reference]
    return f" (commit {', '.join(f'`{commit}`' for commit in commits)})" if commits else ""
