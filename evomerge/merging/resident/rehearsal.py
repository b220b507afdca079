"""Has the kernels of large merges compiled while the sources are being loaded.

Plain torch takes seconds for a candidate of some hundred million parameters, as long as compiling takes, and the first
few would all be merged that way while a compiler runs beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import EvomergeError
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.digest import NotFinite, tensor_record
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import COPY, MergePlan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute

WORTH = 400_000_000
"""Elements of all models together from which a candidate in plain torch takes as long as compiling."""


def rehearse(planned: MergePlan, checkpoints: Iterable[Checkpoint], device: str, compiled: Compiled) -> None:
    """Merges the smallest matrix of a candidate once, if the models are large, and starts to compile all kernels that
    this takes. `Compiled.wait` waits for them.

    Args:
        planned: the merge of a typical candidate.
        checkpoints: what it reads; of each, one tensor is read from its file.
        device: where candidates are merged.
        compiled: holds the kernels.
    """
    read = list(checkpoints)
    matrices = [job for job in planned.jobs.values() if len(job.shape) == 2 and job.method != COPY]
    if not matrices or sum(info.elements for c in read for info in c.tensors.values()) < WORTH:
        return
    job = min(matrices, key=lambda job: math.prod(job.shape))
    bank, runner = SourceBank(keep=False), Runner(compiled)
    for checkpoint in read:
        bank.add(checkpoint)
    # What is wrong with a source is said as it is loaded, with its place
    with compiled.at_once(), suppress(EvomergeError, NotFinite):
        tensor_record(job.tensor, execute(job, bank, device, runner), runner)
