"""What merges in Core Space take beside their base: no whole weights of the adapters, but the spaces of their
changes."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.evaluator.progress import Progress
from evomerge.merging.disk.pipeline import reads_of
from evomerge.merging.plan.core_space import Applied, applied
from evomerge.merging.plan.jobs import MergePlan, Read
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import Execution
from evomerge.merging.resident.placement import CPU, tensor_key

_SILENT = 1.0
"""Seconds that the spaces may take without a report."""


def merges_in_core_space(planned: MergePlan) -> list[Applied]:
    """The merges of a plan that are made in Core Space."""
    return [found for job in planned.jobs.values() if (found := applied(job)) is not None]


def space_bytes(planned: MergePlan) -> int:
    """The bytes of the bases and cores of all matrices."""
    return sum(merge.changes.bytes for merge in merges_in_core_space(planned))


def unread(planned: MergePlan, checkpoints: Iterable[Checkpoint]) -> frozenset[Hashable]:
    """The keys of the tensors that adapters would compute, and that no merge of this form reads."""
    if not merges_in_core_space(planned):
        return frozenset()
    read = {read for job in planned.jobs.values() for read in reads_of(job)}
    return frozenset(
        tensor_key(checkpoint, name)
        for checkpoint in checkpoints
        for name in checkpoint.tensors
        if checkpoint.is_computed(name) and Read(checkpoint.resolved(), name) not in read
    )


def prepare_spaces(planned: MergePlan, bank: SourceBank, progress: Progress) -> None:
    """Makes the space of every matrix, so that no candidate waits for it, and damaged adapters are found. Raises
    InputError."""
    merges = merges_in_core_space(planned)
    if merges:
        progress.phase(f"finding the Core Space of {len(merges)} matrices")
    started = time.monotonic()
    for done, merge in enumerate(merges, start=1):
        Execution(bank, torch.device(CPU)).fetch(merge.changes)
        if time.monotonic() - started > _SILENT:
            progress.progress(f"found {done} of {len(merges)} spaces", done / len(merges))
