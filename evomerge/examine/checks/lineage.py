"""What sampled deltas say of where the sources come from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from evomerge.checkpoints.layouts.uneven import listed
from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.checkpoints.samples.spectrum import Spectrum
from evomerge.checkpoints.samples.training import DARE, FINE_TUNED, LARGE, PRETRAINED, large_deltas
from evomerge.examine.checks.findings import Finding, note, problem, warning

UNRELATED_COSINE, UNRELATED_SIZE = 0.2, 0.8
"""Cosine of source and base, and |delta| / |base|, both over matrices: unrelated models have 0 and 1.41."""
_ALIKE, _OPPOSED = 0.9, -0.2
_LOW_RANK = 0.1


def unrelated(deltas: Deltas) -> list[str]:
    """The sources that were not trained on from the base."""
    found = []
    for source in deltas.sources:
        cosine, size = deltas.with_base(source), deltas.relative(source, deltas.matrices)
        if cosine and size and cosine.value < UNRELATED_COSINE and size.value > UNRELATED_SIZE:
            found.append(source)
    return found


def lineage(
    deltas: Deltas, spectrum: Spectrum | None, methods: Sequence[str], aligned: Collection[str] = ()
) -> list[Finding]:
    """The findings. `methods`: those that the file names. `aligned`: the sources that a search aligns first."""
    findings = [
        problem("weights", f"{model} holds NaN or Inf in {listed(tensors)}; use another copy of it")
        for model, tensors in deltas.broken.items()
    ]
    strangers = unrelated(deltas)
    for source in strangers:
        cosine, size = deltas.with_base(source), deltas.relative(source, deltas.matrices)
        assert cosine is not None
        assert size is not None
        text = f"{source} does not descend from the base (cosine {cosine.value:.2f}, |delta| / |base| {size.value:.2f})"
        if source in aligned:
            findings.append(note("lineage", f"{text}: `align: true` brings its hidden units into the base's order"))
            continue
        mend = "an average computes neither; `evomerge align` first brings its hidden units into the base's order"
        findings.append(problem("lineage", f"{text}: {mend}"))
    related = [source for source in deltas.sources if source not in strangers]
    findings += _sizes(deltas, related, methods)
    findings += _pairs(deltas, related)
    if spectrum is not None:
        low = [
            f"{s} ({rank.value:.0%})" for s, rank in spectrum.rank.items() if s in related and rank.value < _LOW_RANK
        ]
        if low:
            text = (
                f"the deltas of {', '.join(low)} lie in few directions of the blocks that were read, as an adapter's do"
            )
            findings.append(note("lineage", text))
    untouched = deltas.untouched()
    if untouched:
        count = f"{len(untouched)} of {len(deltas.tensors)} tensors"
        text = f"no source changed a sampled element of {count}: {listed(untouched)}"
        findings.append(note("lineage", text))
    return findings


def _sizes(deltas: Deltas, related: Sequence[str], methods: Sequence[str]) -> list[Finding]:
    """Sources that are the base, that were trained on for long, or whose deltas are of very different sizes."""
    findings = []
    large = {}
    for source in related:
        size, changed = deltas.mean_size(source), deltas.changed(source)
        if changed is not None and changed.value == 0:
            findings.append(warning("lineage", f"{source} is the base in every element that was sampled"))
        if size is not None and size.value >= LARGE:
            large[source] = size.value
    if large and set(methods) & set(DARE):
        findings += [warning("lineage", line) for line in large_deltas(large)]
    elif large:
        shown = ", ".join(f"{source} {size:.2g}" for source, size in large.items())
        text = f"mean change of a weight: {shown}; fine-tuning stays within {FINE_TUNED:g}, continued pretraining"
        findings.append(warning("lineage", f"{text} approaches {PRETRAINED:g}, where DARE stops working"))
    return findings


def _pairs(deltas: Deltas, related: Sequence[str]) -> list[Finding]:
    """Pairs of deltas that point the same way, or against each other."""
    findings = []
    for one, other in combinations(related, 2):
        cosine = deltas.cosine(one, other)
        if cosine is not None and cosine.value > _ALIKE:
            text = f"{one} and {other} are nearly the same delta (cosine {cosine.value:.2f}): together they count twice"
            findings.append(warning("lineage", text))
        elif cosine is not None and cosine.value < _OPPOSED:
            text = f"{one} and {other} point against each other (cosine {cosine.value:.2f}): one undoes the other"
            findings.append(warning("lineage", text))
    return findings
