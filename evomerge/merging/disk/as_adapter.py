"""Writes a merge, or the change from one model to another, as a LoRA adapter of the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import check_unchanged
from evomerge.checkpoints.layouts.unread import model_class
from evomerge.checkpoints.write import check_target
from evomerge.errors import InputError, Where
from evomerge.merging.disk.adapter import AdapterContent, adapter_content
from evomerge.merging.disk.adapter_files import write_adapter
from evomerge.merging.disk.naming import Names
from evomerge.merging.disk.pipeline import StreamingBank
from evomerge.merging.plan.core_space import applied
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.factor_cache import FactorCache
from evomerge.recipe.recipe import Document, Input, Recipe, Slice, base_of

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers' classes end for which PEFT has a class of its own."""


def write_as_adapter(
    made: Recipe,
    out: Path,
    rank: int | None,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> AdapterContent:
    """Write a merge as an adapter of its base.

    Args:
        made: the recipe.
        out: the folder to write.
        rank: of the adapter.
        device, overwrite, progress, note: as in `stream.merge`.

    Raises:
        InputError: the merge has no base, or another form than its base; or the folder cannot be written.
    """
    reference = base_of(made)
    if reference is None:
        raise InputError("the recipe has no base_model, and an adapter needs one", "leave out --as-adapter")
    bank = StreamingBank(FactorCache())
    content = _write(made, bank, bank.open(reference), out, rank, True, device, overwrite, progress, note)
    for line in adapter_words(content):
        if note:
            note(line)
    return content


def write_extracted(
    base: str,
    model: str,
    out: Path,
    rank: int,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> AdapterContent:
    """Write what a model has learned since its base as an adapter of the base. Arguments and errors as of
    `write_as_adapter`."""
    bank = StreamingBank(FactorCache())
    opened = bank.add(Checkpoint.open(base))
    if bank.add(Checkpoint.open(model, None, opened)) is opened:
        raise InputError(f"{model} is the base itself", "give a model that was trained from it")
    _check_form(opened, bank.open(model))
    # The model as it is, with its tensors under the base's names
    weights = {base: 0.0, model: 1.0}
    inputs = tuple(Input(name, parameters={"weight": weight}) for name, weight in weights.items())
    taken = Recipe((Document("linear", (Slice(inputs),), base=base),))
    return _write(taken, bank, opened, out, rank, False, device, overwrite, progress, note)


def _check_form(base: Checkpoint, model: Checkpoint) -> None:
    """InputError where a model has other layers, or another vocabulary, than the base."""
    mend = "give a fine-tune of the base that has its layers and its tokens"
    if base.layers != model.layers:
        raise InputError(f"{model.reference} has {model.layers} layers, {base.reference} {base.layers}", mend)
    for name, info in model.tensors.items():
        there = base.tensors.get(name)
        if there is not None and there.shape != info.shape:
            problem = f"{name} is {list(info.shape)} in {model.reference}, {list(there.shape)} in {base.reference}"
            raise InputError(problem, mend)


def _write(
    recipe: Recipe,
    bank: StreamingBank,
    base: Checkpoint,
    out: Path,
    rank: int | None,
    merged: bool,
    device: str,
    overwrite: bool,
    progress: Callable[[str, float], None] | None,
    note: Callable[[str], None] | None,
) -> AdapterContent:
    if len(base.parts) > 1:
        problem = f"the base is {' with '.join(base.parts)}, which PEFT does not load as one model"
        raise InputError(problem, "write it as a checkpoint first (`evomerge merge`)")
    planned = plan(recipe, bank.open)
    recipe, rank, whole = _compressed(recipe, planned, rank)
    if whole is not None:
        planned = plan(recipe, bank.open)
    if planned.donor.resolved() != base.resolved():
        raise InputError(f"the merge has the form of {planned.donor.reference}, not of its base", "name base_model")
    inputs = [*(c.path for c in planned.checkpoints), *(f for c in planned.checkpoints for f in c.files())]
    check_target(out, overwrite, inputs=inputs)
    for line in planned.notes:
        if note:
            note(line)
    content = adapter_content(planned, base, rank, bank, device, progress, whole)
    kind = model_class(base.config)
    check_unchanged(planned.checkpoints, "while it was read", "run the same command again")
    names = Names(recipe, planned.checkpoints)
    causal = kind is not None and kind.__name__.endswith(_CAUSAL)
    write_adapter(
        content,
        base.resolved(),
        base.tensors,
        out,
        recipe if merged else None,
        names,
        causal=causal,
        overwrite=overwrite,
    )
    for lost in content.lost:
        if note:
            note(f"warning: no adapter can hold the change of {lost.name}: it is left out")
    return content


def _compressed(recipe: Recipe, planned: MergePlan, rank: int | None) -> tuple[Recipe, int, MergePlan | None]:
    """The recipe of an adapter of this rank, the rank, and the plan that it falls short of. In Core Space the rank of
    all adapters together is enough, and a smaller one keeps so many of its directions (Compress-then-Merge)."""
    flag = Where("--rank")
    spaces = [found.changes for job in planned.jobs.values() if (found := applied(job)) is not None]
    full = max((max(space.core) for space in spaces), default=None)
    if full is None:
        if rank is None:
            raise InputError("an adapter needs a rank", "give --rank", flag)
        return recipe, rank, None
    rank = full if rank is None else rank
    if not 1 <= rank <= full:
        problem = f"{rank} is no rank of this merge: its adapters have {full} together"
        raise InputError(problem, f"give 1 to {full}", flag)
    if rank == full:
        return recipe, rank, None
    cut = tuple(replace(d, core_rank=rank) if d.core else d for d in recipe.documents)
    return Recipe(cut), rank, planned


def adapter_words(content: AdapterContent) -> list[str]:
    """Lines on how much of the change the adapter lacks, at its rank and at lower ones."""
    by_rank = ", ".join(f"{rank} {error:.2%}" for rank, error in content.by_rank.items())
    return [f"the adapter lacks {content.error:.2%} of the change (Frobenius norms); at least, by rank: {by_rank}"]
