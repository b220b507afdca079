"""Checks of single tensors: values that are no numbers, zeros, codes, and the head."""

from __future__ import annotations

import torch

from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.measures import Measured
from evomerge.examine.findings.origins import find_blocks
from evomerge.examine.findings.patient import Patient

HALF = 65504.0
"""The largest number of float16 (IEEE 754)."""
_NEAR = 0.5
"""A float16 weight that is beyond this share of it in a parent may come out as infinite by rounding or a factor."""
ZERO = 1e-3
"""A tensor whose norm is below this share of its parents' was zeroed."""
_STEPS = (7, 8, 15, 127, 128, 255)
"""From 0, or from the lowest code, to the highest one, of 4 and 8 bits."""
_SAMPLE = 1 << 15
_OFF = 0.2
"""Codes lie closer to whole steps than that on average, with other weights added; other numbers are 0.25 away."""
_ELSEWHERE, _LOOKED = 0.9, 8
"""Below this cosine with every parent, rows are looked for in the rest of the layer; for so many tensors."""
_GREW, _HUGE = 1.5, 8.0
"""A tensor so many times as large as every parent's is worth a look for codes; and is too large for a lambda."""
_ALONG = 0.9
"""The rows of codes without scales go along the rows of the source, by this cosine in the median."""


def overflow(patient: Patient) -> Finding | None:
    """Infinities of float16, where a parent's values are out of its range."""
    bad = [m for m in patient.measured.values() if m.n_inf and patient.model.dtypes[m.name] == "float16"]
    found = [m for m in bad if max(m.sizes.values(), default=HALF) > _NEAR * HALF]
    if not found:
        return None
    first = found[0]
    where = Evidence(f"infinite values in {first.name}", first.n_inf)
    size = Evidence(f"largest magnitude of {first.name}", first.largest, dict(first.sizes))
    return Finding(
        "float16-overflow",
        f"{listed([m.name for m in found])}: values beyond {HALF:g} became infinite in float16",
        (where, size),
        "the parents have weights that float16 cannot hold, and the merge was written in float16",
        "merge with `dtype: bfloat16` (or float32), the dtype that the parents are stored in",
        tensors=frozenset(m.name for m in found),
    )


def not_finite(patient: Patient) -> Finding | None:
    """NaN or infinite values."""
    found = [m for m in patient.measured.values() if m.n_bad and m.name not in patient.explained]
    if not found:
        return None
    damaged = sorted({name for m in found for name in m.damaged})
    evidence = [Evidence(f"NaN or infinite values in {m.name}", m.n_bad) for m in found[:3]]
    cause = f"{', '.join(damaged)} holds them already" if damaged else "the merge's arithmetic, or a damaged file"
    change = f"replace {damaged[0]}" if damaged else "merge again, in float32; `evomerge merge` refuses to write them"
    return Finding(
        "not-finite",
        f"NaN or infinite values in {listed([m.name for m in found])}",
        tuple(evidence),
        cause,
        change,
        tensors=frozenset(m.name for m in found),
    )


def zeroed(patient: Patient) -> Finding | None:
    """Tensors of zeros that are not zero in the parents; without parents, norms and matrices of zeros."""
    found, evidence = [], []
    for m in patient.measured.values():
        if m.n_bad or m.name in patient.explained or m.name in patient.rows:
            continue
        if m.parents and not _added(patient, m):
            least = min(m.norms.values())
            if m.norm < ZERO * least:
                found.append(m)
                evidence.append(Evidence(f"norm of {m.name}", m.norm, m.norms))
        elif not patient.parents and m.largest == 0.0 and _scales(m):
            found.append(m)
            evidence.append(Evidence(f"largest magnitude of {m.name}", 0.0))
    if not found:
        return None
    return Finding(
        "zeroed",
        f"{listed([m.name for m in found])}: zeros where the parents have none",
        tuple(evidence[:3]),
        "the tensor was not written, or its weights add up to 0 (a filter of the recipe, or a layer's weight of 0)",
        "look at the weights that the recipe has for this tensor, and merge again",
        tensors=frozenset(m.name for m in found),
    )


def _added(patient: Patient, m: Measured) -> bool:
    """Whether the tensor is of a layer that stands in the merge twice: zeros in one of them leave the stream as it is,
    which is how depth is added without a change (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415)."""
    if patient.origins is None or not isinstance(m.place, int) or m.place >= len(patient.origins):
        return False
    return sum(o.layer == patient.origins[m.place].layer for o in patient.origins) > 1


def _scales(m: Measured) -> bool:
    """Whether zeros in this tensor end the signal: matrices do. Norms that are stored as a distance from 1 do not."""
    return len(m.shape) > 1


def codes(patient: Patient) -> Finding | None:
    """Weights on few levels: the codes of a quantized source, merged as if they were weights."""
    of_quantized = frozenset(n for s in patient.sources for n in s.quantized)
    found: list[Measured] = []
    levels = 0
    for m in patient.compared(matrices=True):
        if m.name in patient.rows or m.norm < _GREW * max(m.norms.values()):
            continue
        steps, huge = _steps(patient, m), m.norm > _HUGE * max(m.norms.values())
        if steps or m.name in of_quantized or (huge and _along(patient, m)):
            found, levels = [*found, m], levels or steps
    if found:  # what grew beside them has the same origin, where its own weights hide the steps
        grown = (m for m in patient.compared(matrices=True) if m.norm > _GREW * max(m.norms.values()))
        found += [m for m in grown if m not in found and m.name not in patient.rows]
    if not patient.parents:
        for m in patient.measured.values():
            if len(m.shape) == 2 and not m.n_bad and m.largest > 1.5 and _whole(patient, m):
                found, levels = [*found, m], 0
    if not found:
        return None
    first, names = found[0], [s.name for s in patient.sources if s.quantized]
    evidence = [Evidence(f"norm of {first.name}", first.norm, first.norms)] if first.parents else []
    if levels:
        evidence.append(Evidence(f"{first.name} lies on equal steps, up to its largest value", levels))
    if not first.parents:
        evidence.append(Evidence(f"largest magnitude of {first.name}, all whole numbers", first.largest))
    return Finding(
        "quantized-as-floats",
        f"{listed([m.name for m in found])}: codes of quantized weights, without their scales",
        tuple(evidence),
        f"{' and '.join(names) or 'a source'} is stored quantized, and was read without its scales",
        "merge the unquantized model, or let evomerge read the quantized one, which dequantizes it",
        tensors=frozenset(m.name for m in found),
    )


def _steps(patient: Patient, m: Measured) -> int:
    """On how many equal steps the tensor's values lie, nearly: 0 if on none."""
    sample = _sample(patient, m)
    low, high = float(sample.min()), float(sample.max())
    if low == high:
        return 0
    most = max(abs(low), abs(high))
    for steps in _STEPS:
        for values in (sample * (steps / most), (sample - low) * (steps / (high - low))):
            if float((values - values.round()).abs().mean()) < _OFF:
                return steps
    return 0


def _along(patient: Patient, m: Measured) -> bool:
    """Whether the tensor's rows are those of a parent, by direction."""
    rows = patient.model.read(m.name).double()
    for parent in patient.parents:
        if parent.shapes.get(m.name) == m.shape:
            other = parent.read(m.name).double()
            if float(torch.nn.functional.cosine_similarity(rows, other, dim=-1).median()) > _ALONG:
                return True
    return False


def _whole(patient: Patient, m: Measured) -> bool:
    """Whether nearly all values of a tensor are whole numbers."""
    sample = _sample(patient, m)
    return bool((sample == sample.round()).double().mean() > 0.99)


def _sample(patient: Patient, m: Measured) -> torch.Tensor:
    values = patient.model.read(m.name).reshape(-1)
    return values[:: max(1, values.numel() // _SAMPLE)].double()


def head(patient: Patient) -> Finding | None:
    """A head that does not belong to its embeddings: tied and stored otherwise, lost, or left as it was."""
    model, parents = patient.model, patient.parents
    untied = [p for p in parents if not p.tied]
    ties = {p.name: "tied" if p.tied else "untied" for p in parents}
    said = Evidence("head", "tied" if model.tied else "untied", ties)
    embedding = model.embedding
    if embedding is None:
        return None
    if model.tied and model.head is not None and _differs(patient, embedding, model.head) > ZERO:
        share = Evidence(f"distance of {model.head} from {embedding}", _differs(patient, embedding, model.head))
        return Finding(
            "head-tied-apart",
            f"the configuration ties the head to the embeddings, but a {model.head} that differs is stored",
            (said, share),
            "config.json is of another model than the weights, or the head was merged by itself: a loader takes either",
            "set tie_word_embeddings to what the parents have, and merge again",
            tensors=frozenset({model.head}),
        )
    if model.tied and untied and len(untied) == len(parents):
        return Finding(
            "head-lost",
            "the head is tied to the embeddings, and the parents have heads of their own",
            (said,),
            "tie_word_embeddings was set, or the head left out",
            "set tie_word_embeddings to false and merge the head, too",
        )
    has_head = not parents or any(p.tied or p.head for p in parents)
    if not model.tied and model.head is None and has_head and model.text.get("is_encoder_decoder") is not True:
        return Finding(
            "head-missing",
            "the head is not tied to the embeddings, and none is stored: a loader draws random numbers for it",
            (said,),
            "tie_word_embeddings was changed, or the head was left out as if it was tied",
            "set tie_word_embeddings to what the parents have, or merge the head, too",
        )
    if not model.tied and parents and all(p.tied for p in parents) and model.head is not None:
        distance = _differs(patient, embedding, model.head)
        if distance > ZERO and model.head not in patient.explained:
            return Finding(
                "head-untied-apart",
                f"the parents' heads are their embeddings, but {model.head} differs from {embedding}",
                (said, Evidence(f"distance of {model.head} from {embedding}", distance)),
                "the merge changed one of both only: the head is another model's",
                "set tie_word_embeddings to true, and remove the head; or write the embeddings there",
                tensors=frozenset({model.head}),
            )
    return None


def _differs(patient: Patient, embedding: str, other: str) -> float:
    """The distance of two matrices over the norm of the first; infinite for other shapes."""
    one, two = patient.model.read(embedding).float(), patient.model.read(other).float()
    if one.shape != two.shape:
        return float("inf")
    return float((one - two).norm() / one.norm().clamp_min(1e-30))


def swapped(patient: Patient) -> Finding | None:
    """Matrices whose rows are those of another place: a fused projection that was split or joined in a wrong order."""
    strange = [
        m
        for m in patient.compared(matrices=True)
        if len(m.shape) == 2 and isinstance(m.place, int) and max(m.cosines.values()) < _ELSEWHERE
    ]
    evidence: list[Evidence] = []
    parts: set[str] = set()
    for m in strange[:_LOOKED]:
        assert isinstance(m.place, int)
        layer = patient.origins[m.place].layer if patient.origins else m.place
        blocks = find_blocks(patient.model, m.name, patient.parents, layer)
        parts |= {patient.model.stack.part(m.name)} if blocks else set()
        evidence += [
            Evidence(f"rows {b.first} to {b.last} of {m.name}", f"are rows of {b.tensor} from {b.at} on")
            for b in blocks[:3]
        ]
    found = [m for m in strange if patient.model.stack.part(m.name) in parts]
    if not found:
        return None
    return Finding(
        "rows-of-other-projections",
        f"{listed([m.name for m in found])}: rows that the parents have elsewhere in the layer",
        tuple(evidence[:4]),
        "fused projections (q, k, v; gate, up) were split or joined in another order, or under other names",
        "merge the models in the layout that all of them are stored in, or convert them with their library",
        tensors=frozenset(m.name for m in found),
    )
