"""The symptoms that people come with, as far as running the models shows them, and causes that only this shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.escape import shortened
from evomerge.examine.findings.behaviour import Behaviour
from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.live import MERGE, Live, scored_apart
from evomerge.examine.findings.patient import Patient
from evomerge.examine.findings.weights import HALF

WORSE_TEXT = 1.25
"""The merge reads the texts worse than its worst parent by that factor, in bits per byte."""
FLAT = 0.95
"""A prediction with so much of the largest possible entropy says nothing."""
FLATTER = 0.5
"""It is so much nearer to the largest entropy than the parent that is nearest."""
LOOPS, MORE_LOOPS = 0.5, 0.3
"""So much of what it writes it has written before, and so much more than the parent that repeats itself most."""
ENDS = 0.5
"""A parent that ends so many texts by itself can end texts."""
LOUDER = 4.0
"""Activations that are so many times those of every parent."""
APART = 2.0
"""Standard errors."""


@dataclass(frozen=True)
class Symptom:
    """What is worse than in every parent. `name`: "incoherent", "loops", "no-end", "worse-than-sources",
    "activations"."""

    name: str
    says: str
    evidence: tuple[Evidence, ...]


def symptoms(patient: Patient, live: Live) -> tuple[Symptom, ...]:
    """The symptoms that are there."""
    found = (symptom(patient, live) for symptom in _SYMPTOMS)
    return tuple(symptom for symptom in found if symptom is not None)


def _parents(live: Live) -> dict[str, Behaviour]:
    return {name: b for name, b in live.behaviour.items() if name != MERGE}


def _beside(parents: Mapping[str, Behaviour], read: Callable[[Behaviour], float]) -> dict[str, float | str]:
    return {name: read(b) for name, b in parents.items()}


def _incoherent(_: Patient, live: Live) -> Symptom | None:
    """Predictions that say nothing, or are wrong."""
    own, parents = live.behaviour.get(MERGE), _parents(live)
    if own is None:
        return None
    read = {name: b.bits_per_byte for name, b in parents.items() if b.bits_per_byte is not None}
    flattest = max((b.entropy for b in parents.values()), default=None)
    bits = own.bits_per_byte
    broken = bits is not None and math.isnan(bits)
    wrong = bits is not None and bool(read) and bits > WORSE_TEXT * max(read.values())
    flat = own.entropy > FLAT and (flattest is None or 1 - own.entropy < FLATTER * (1 - flattest))
    if not (broken or wrong or flat):
        return None
    return Symptom(
        "incoherent",
        "it reads plain text worse than every parent" if wrong or broken else "its predictions are nearly even",
        (
            *([] if bits is None else [Evidence("bits per byte of plain text", bits, dict(read))]),
            Evidence("entropy of predictions, of the largest", own.entropy, _beside(parents, lambda b: b.entropy)),
        ),
    )


def _loops(_: Patient, live: Live) -> Symptom | None:
    """Text that repeats itself."""
    own, parents = live.behaviour.get(MERGE), _parents(live)
    most = max((b.repetition for b in parents.values()), default=0.0)
    if own is None or not parents or own.repetition < LOOPS or own.repetition < most + MORE_LOOPS:
        return None
    evidence = Evidence("repeated runs of four tokens", own.repetition, _beside(parents, lambda b: b.repetition))
    return Symptom("loops", "it repeats itself more than every parent", (evidence,))


def _no_end(patient: Patient, live: Live) -> Symptom | None:
    """Text that does not end, though that of every source does."""
    own, sources = live.behaviour.get(MERGE), {s.name: live.behaviour.get(s.name) for s in patient.of_sources}
    known = {name: b for name, b in sources.items() if b is not None}
    if own is None or not known or own.ended > 0 or min(b.ended for b in known.values()) < ENDS:
        return None
    evidence = Evidence("texts that it ended by itself", own.ended, _beside(known, lambda b: b.ended))
    return Symptom("no-end", "it does not end its texts, as every source does", (evidence,))


def _activations(patient: Patient, live: Live) -> Symptom | None:
    """A residual stream that is louder than in every parent."""
    own, parents = live.behaviour.get(MERGE), _parents(live)
    if own is None or not parents:
        return None
    found = []
    for i, layer in enumerate(own.layers):
        at = patient.origins[i].layer if patient.origins and i < len(patient.origins) else i
        theirs = {name: b.layers[at].rms for name, b in parents.items() if at < len(b.layers)}
        if theirs and layer.rms > LOUDER * max(theirs.values()):
            found.append((i, layer.rms, theirs))
    if not found:
        return None
    i, rms, theirs = found[0]
    return Symptom(
        "activations",
        f"the residual stream is larger than in every parent from layer {i} on",
        (Evidence(f"root mean square behind layer {i}", rms, dict(theirs)), Evidence("layers so", float(len(found)))),
    )


def _worse(patient: Patient, live: Live) -> Symptom | None:
    """Scores below those of every source."""
    own = live.scores.get(MERGE, {})
    sources = {s.name: live.scores[s.name] for s in patient.of_sources if s.name in live.scores}
    if not own or not sources:
        return None
    worse = []
    for name, score in own.items():
        steps = [scored_apart(score, other[name]) for other in sources.values()]
        if all(step is not None and step > APART for step in steps):
            worse.append(name)
    if not worse or 2 * len(worse) < len(own):
        return None
    evidence = [
        Evidence(
            f"{live.slices[name].metric} of {name}",
            live.slices[name].show(own[name].value),
            {s: live.slices[name].show(scores[name].value) for s, scores in sources.items()},
        )
        for name in worse[:4]
    ]
    return Symptom("worse-than-sources", f"it is worse than every source on {listed(worse)}", tuple(evidence))


_SYMPTOMS: Sequence[Callable[[Patient, Live], Symptom | None]] = (_incoherent, _loops, _no_end, _activations, _worse)


def overflowing(patient: Patient, live: Live) -> Finding | None:
    """Activations that float16 does not hold."""
    own, parents = live.behaviour.get(MERGE), _parents(live)
    if own is None or patient.model.dtype != "float16":
        return None
    peak = max([own.peak, *(layer.peak for layer in own.layers)])
    if peak <= HALF:
        return None
    kinds: dict[str, float | str] = {p.name: p.dtype for p in patient.parents}
    return Finding(
        "float16-overflow",
        f"activations reach {peak:.3g}, and float16 ends at {HALF:g}",
        (
            Evidence("largest activation, computed in float32", peak, _beside(parents, lambda b: b.peak)),
            Evidence("dtype", "float16", kinds),
        ),
        "the parents were trained in bfloat16 or float32, whose range is larger",
        "merge with `dtype: bfloat16`, the dtype that the parents are stored in",
    )


def tokenized_otherwise(patient: Patient, live: Live) -> Finding | None:
    """Plain text that becomes other tokens than in every parent of the same vocabulary."""
    own, parents = live.behaviour.get(MERGE), _parents(live)
    same = [p.name for p in patient.parents if p.tokens is not None and p.tokens == patient.model.tokens]
    read = {name: parents[name].tokens for name in same if name in parents and parents[name].tokens}
    if own is None or not own.tokens or not read or own.tokens in read.values():
        return None
    shown = {name: _differing(tokens, own.tokens) for name, tokens in read.items()}
    first = next(iter(read.values()))
    return Finding(
        "tokenizer-reads-otherwise",
        "the tokenizer has a parent's vocabulary, but makes other tokens of plain text",
        (Evidence("tokens where they first differ", _differing(own.tokens, first), shown),),
        "its normalization, its splitting or the tokens that it adds (a second beginning of text) are another model's",
        "copy tokenizer.json and tokenizer_config.json of the source whose vocabulary it has",
        severity="harmful",
    )


def _differing(tokens: Sequence[str], others: Sequence[str]) -> str:
    """A few tokens from the first one that differs."""
    at = next((i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), len(others))
    return " ".join(shortened(token, 12) for token in tokens[at : at + 3]) or "none"


def unexplained(found: Sequence[Symptom], factors: Mapping[str, float] | None = None) -> Finding | None:
    """Symptoms for which no check sees a cause. `factors`: what the recipe scales tensors by, which may be one."""
    if not found:
        return None
    evidence = [evidence for symptom in found for evidence in symptom.evidence]
    cause = "the sources' changes conflict, or these weights and layers do not fit together"
    if factors:
        least, most = min(factors.values()), max(factors.values())
        given = f"{len(factors)}, {least:g} to {most:g}"
        evidence.append(Evidence("tensors that the recipe scales, and by what", given))
        cause = f"the recipe scales tensors, which no parent is used to; or {cause}"
    return Finding(
        "no-visible-cause",
        f"{'; '.join(symptom.says for symptom in found)}; and no check sees why",
        tuple(evidence),
        f"every part looks as it should: {cause}",
        "try smaller weights, or a method that drops conflicts (ties); `evomerge path` from the base shows where it "
        "turns, `evomerge search` looks for weights that hold",
        severity="harmful",
    )


def cannot_run(reason: str) -> Finding:
    """A merge that cannot be loaded."""
    return Finding(
        "cannot-run",
        "the model cannot be run",
        (Evidence("reason", reason),),
        "its files do not fit each other, or a file is missing",
        "mend what the reason names, or merge again",
    )
