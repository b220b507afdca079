"""Checks before a checkpoint is written that transformers would load it whole: its configuration is built on the meta
device, every tensor that will be written must fit a parameter, and every parameter must have a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.loading import LoadReport, load_report, without_numbers
from evomerge.checkpoints.layouts.uneven import listed
from evomerge.checkpoints.layouts.unread import unread
from evomerge.errors import InputError, Where
from evomerge.merging.disk.pipeline import reads_of
from evomerge.merging.plan.jobs import MergePlan

_MEND = "merge models of one architecture, whole or in layers that its configuration can describe"


def check_loads(planned: MergePlan, where: Where | None = None) -> list[str]:
    """Check a planned checkpoint. What is wrong with the base in the same way is only told.

    Returns:
        Lines to tell: what transformers will not read or will fill in, as in the base; or that nothing was checked, as
        transformers does not know the model.

    Raises:
        InputError: transformers cannot build the configuration, would fill in parameters at random, or would not read
            tensors that it reads in the models that were merged.
    """
    if "model_type" not in planned.config:
        return []
    report = load_report(planned.config, {name: job.shape for name, job in planned.jobs.items()})
    if report is None:
        return [f"not checked: transformers has no model of the type {planned.config['model_type']}"]
    if report == LoadReport():
        return []
    base = planned.donor
    ours = load_report(base.config, {name: info.shape for name, info in base.stored.items()}) or LoadReport()
    if report.failure is not None:
        if ours.failure is None:
            raise InputError(f"transformers cannot load the merged model ({report.failure})", _MEND, where)
        return [f"not checked: transformers cannot load {base.reference} either ({ours.failure})"]
    _refuse(
        _new(report.missing, ours.missing), "has no tensor for", ", which transformers would fill in at random", where
    )
    wrong = _new(report.mismatched, ours.mismatched)
    _refuse([f"{name} ({report.mismatched[name]})" for name in wrong], "has another shape of", "", where)
    known = set(_known_unread(planned, report.unexpected))
    lost = [name for name in _new(report.unexpected, ours.unexpected) if name not in known]
    _refuse(lost, "has no place, by its configuration, for", "", where)
    return list(_told(report, base))


def _new(names: Iterable[str], of_base: Iterable[str]) -> list[str]:
    """The names that the base does not have in any layer."""
    known = set(map(without_numbers, of_base))
    return [name for name in names if without_numbers(name) not in known]


def _refuse(names: list[str], what: str, more: str, where: Where | None) -> None:
    if names:
        raise InputError(f"the merged model {what} {listed(names)}{more}", _MEND, where)


def _known_unread(planned: MergePlan, names: Iterable[str]) -> Iterator[str]:
    """Those of the tensors that are merged from nothing but tensors that transformers does not read in their own
    checkpoints: value heads, prediction layers."""
    checkpoints = {c.resolved(): c for c in planned.checkpoints}
    named = {key: planned.config[key] for key in ("architectures",) if key in planned.config}
    reads = {name: reads_of(planned.jobs[name]) for name in names}
    read_of: dict[str, set[str]] = {}
    for read in (read for group in reads.values() for read in group):
        read_of.setdefault(read.model, set()).add(read.tensor)
    not_read = {
        model: unread({**checkpoints[model].config, **named}, tensors) or frozenset()
        for model, tensors in read_of.items()
    }
    for name, group in reads.items():
        if all(read.tensor in not_read[read.model] for read in group):
            yield name


def _told(report: LoadReport, base: Checkpoint) -> Iterator[str]:
    if report.unexpected:
        yield f"{listed(report.unexpected)}: written, and not read by transformers"
    if report.missing:
        yield f"warning: transformers fills in {listed(report.missing)} at random, as it does in {base.reference}"
    if report.mismatched:
        shown = listed(list(report.mismatched))
        yield f"warning: {shown} has another shape than config.json says, as in {base.reference}"
