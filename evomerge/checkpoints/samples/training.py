"""What the size of deltas says of how a source was trained, and where DARE stops working.

Supervised fine-tuning changes a weight by at most some 0.002, continued pretraining by up to 0.03, and dropping and
rescaling deltas of that size ruins the model (DARE, Yu et al. 2023, arXiv:2311.03099, section 4.5). The numbers are
those of models of billions of parameters, and were found to hold for the smallest too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.preflight import names_of_base
from evomerge.checkpoints.samples.deltas import measure
from evomerge.checkpoints.samples.segments import Drawing, is_costly, is_here
from evomerge.errors import InputError

FINE_TUNED, PRETRAINED = 0.002, 0.03
"""Mean |delta| of an element."""
LARGE = 0.0075
"""From here on a delta is nearer to continued pretraining than to fine-tuning, by their ratio. Six sources of small
models bore that four fifths of their deltas were dropped at 0.002 to 0.005, and not at 0.009 to 0.027 (docs/log.md)."""
DARE = ("dare_linear", "dare_ties")

_TENSORS = 24
_FEW = Drawing(whole=1 << 12, segments=8, length=256)


def dare_doubts(base: Checkpoint, sources: Mapping[str, Checkpoint], methods: Collection[str]) -> list[str]:
    """A line where DARE is to be used on sources whose deltas are as large as after continued pretraining. Reads some
    kilobytes of some matrices; nothing of models whose weights are not here, or have to be computed."""
    if not set(methods) & set(DARE):
        return []
    sizes = {name: size for name, source in sources.items() if (size := mean_delta(base, source)) is not None}
    return large_deltas({name: size for name, size in sizes.items() if size >= LARGE})


def large_deltas(sizes: Mapping[str, float]) -> list[str]:
    """The line of `dare_doubts` for sources with a large mean |delta|."""
    if not sizes:
        return []
    shown = ", ".join(f"{name} {size:.2g}" for name, size in sizes.items())
    rule = (
        f"fine-tuning stays within {FINE_TUNED:g}, and near {PRETRAINED:g} (continued pretraining) DARE stops working"
    )
    return [f"DARE on large deltas (mean change of a weight: {shown}): {rule}; use ties or task_arithmetic"]


def mean_delta(base: Checkpoint, source: Checkpoint) -> float | None:
    """The mean |delta| of the elements of some matrices of the layers; None where none can be read."""
    names = names_of_base(base, source)
    able = [
        name
        for name, info in base.tensors.items()
        if len(info.shape) > 1 and isinstance(base.stack.place(name), int) and _readable(base, source, names, name)
    ]
    chosen = _evenly(able, _TENSORS)
    try:
        size = measure(base, {"source": source}, _FEW, only=chosen).mean_size("source") if chosen else None
    except InputError:  # told where the weights are read
        return None
    return None if size is None else size.value


def _readable(
    base: Checkpoint, source: Checkpoint, names: Mapping[str, tuple[str, tuple[int, ...]]], name: str
) -> bool:
    own = names.get(name, (name,))[0]
    if own not in source.tensors or base.tensors[name].dtype not in FLOATS:
        return False
    both = ((base, name), (source, own))
    return all(is_here(c, n) and not is_costly(c, n) and c.tensors[n].dtype in FLOATS for c, n in both)


def _evenly(names: Sequence[str], wanted: int) -> set[str]:
    step = max(1, len(names) // wanted)
    return set(names[::step][:wanted])
