"""The specification of a plain chain of layers (an MLP, a convolutional network), from its names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

from evomerge.checkpoints.structure import is_counter
from evomerge.errors import InputError, Where
from evomerge.merging.permutation.specification import (
    MEND,
    AxisRule,
    GroupRule,
    Shapes,
    Specification,
    TensorRule,
    Term,
)

_NO_CHAIN = re.compile(
    r"res(net|id|_|\d|\.)|block|skip|shortcut|downsample|attn|attention|embed|lstm|gru|rnn|stage|layer\d+\.\d+|"
    r"squeeze|excit|gate|(^|[._])(se[._\d]|w3([._]|$))",  # w1, w2, w3: a gated MLP, as Llama's first code names it
    re.I,
)
"""Names of models that are no chains."""
_TRANSPOSED = re.compile(r"deconv|transpose|upsampl|(^|[._])(up|dec|decoder)[._\d]", re.I)
"""Names of kernels that may be stored [in, out, ...]."""
CHAIN = "chain"
"""The first word of the names of these specifications."""
_MOST_ORDERS = 8
"""Layers whose order is tried where the names do not tell it."""


def sequential(shapes: Shapes, where: Where | None = None) -> Specification:
    """The specification of a chain: each layer (a matrix, or the kernel of a convolution) reads what the one before
    wrote, flattened or not; vectors behind a layer (biases, norms with their statistics) follow its outputs.

    Raises:
        InputError: the names are those of no chain, or names and sizes allow more than one order.
    """
    odd = next((n for n in shapes if _NO_CHAIN.search(n) or (len(shapes[n]) > 2 and _TRANSPOSED.search(n))), None)
    if odd is not None:
        raise InputError(f"{odd} is of no plain chain of layers", MEND, where)
    layers = _chain({n: s for n, s in shapes.items() if len(s) > 1}, where)
    hidden = {_module(name): f"{_module(name)} units" for name in layers[:-1]}
    axes: dict[str, tuple[AxisRule, ...]] = {}
    for i, name in enumerate(layers):
        group, before = hidden.get(_module(name)), hidden[_module(layers[i - 1])] if i else None
        units = shapes[layers[i - 1]][0] if i else 0
        inputs = _axis(before, blocks=shapes[name][1] != units)
        axes[name] = (_axis(group), inputs, *(AxisRule() for _ in shapes[name][2:]))
    for name, shape in shapes.items():
        if len(shape) == 1:
            owner = _owner(name, layers, shapes, where)
            axes[name] = (_axis(None if owner is None else hidden.get(_module(owner))),)
        elif not shape and not is_counter(name):
            raise InputError(f"{name} is a single number, of no layer", MEND, where)
    rules = [TensorRule(re.compile(re.escape(n)), axes.get(n)) for n in shapes]
    title = f"{CHAIN} {' -> '.join(_module(name) for name in layers)}"
    return Specification(title, (), {}, {group: GroupRule() for group in hidden.values()}, tuple(rules))


def _axis(group: str | None, blocks: bool = False) -> AxisRule:
    return AxisRule() if group is None else AxisRule((Term(group, group, blocks=blocks),))


def _chain(layers: Shapes, where: Where | None) -> list[str]:
    """The layers in their order: that of the numbers in their names, if it is one, else the only one that there is."""
    named = sorted(layers, key=_natural)
    if len(named) < 2:
        raise InputError("there are no hidden units between its layers", "give a model of two layers or more", where)
    if all(re.search(r"\d", name) for name in named) and _is_chain(named, layers):
        return named
    orders: list[list[str]] = []
    if len(named) <= _MOST_ORDERS:
        orders = [list(order) for order in permutations(named) if _is_chain(order, layers)]
    if len(orders) != 1:
        problem = "its layers fit together in more than one order" if orders else "its layers form no chain"
        raise InputError(problem, MEND, where)
    return orders[0]


def _is_chain(order: Sequence[str], layers: Shapes) -> bool:
    return all(_follows(layers[one], layers[other]) for one, other in pairwise(order))


def _follows(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a layer can read what another wrote: as many inputs, or, of a convolution read by a matrix, blocks."""
    if one[0] == other[1]:
        return len(one) == len(other) or len(one) > len(other) == 2
    return len(one) > 2 and len(other) == 2 and other[1] % one[0] == 0


def _owner(name: str, layers: Sequence[str], shapes: Shapes, where: Where | None) -> str | None:
    """The layer whose outputs a vector belongs to; None: it belongs to the model's inputs, or has one entry for all.

    That is its own layer (of a bias). In one numbered list it is the layer before it. Else it is a layer of as many
    outputs, if there is only one, or only one with its number; unless it may stand before that layer as well."""
    own = [layer for layer in layers if _module(layer) == _module(name)]
    if own:
        return own[0]
    [size] = shapes[name]
    if size == 1:
        return None
    fitting = [layer for layer in layers if shapes[layer][0] == size]
    if all(re.sub(r"\d+", "*", _module(n)) == re.sub(r"\d+", "*", _module(name)) for n in layers):
        before = [layer for layer in layers if _natural(layer) < _natural(name)]
        if not before and shapes[layers[0]][1] == size:
            return None
        if before and before[-1] in fitting:
            return before[-1]
    elif fitting:
        alike = [layer for layer in fitting if _numbers(_module(layer)) == _numbers(_module(name))]
        found = fitting if len(fitting) == 1 else alike
        batch_norm = bool(alike) and f"{_module(name)}.running_mean" in shapes  # these stand behind their layer
        if len(found) == 1 and (batch_norm or not _reads(found[0], layers, size, shapes)):
            return found[0]
    raise InputError(f"{name} fits {len(fitting)} of its layers, or stands before one", MEND, where)


def _reads(layer: str, layers: Sequence[str], size: int, shapes: Shapes) -> bool:
    """Whether a norm of so many entries could stand before a layer, and not behind it."""
    before = layers[layers.index(layer) - 1] if layer != layers[0] else None
    return shapes[layer][1] == size and (before is None or shapes[before][0] == size)


def norm_of_groups(shapes: Shapes) -> str | None:
    """A norm that may be one of groups of channels, which can change their order in a few ways only: behind a
    convolution, without the statistics of a batch norm."""
    channels = {shape[0] for shape in shapes.values() if len(shape) > 2}
    for name, shape in shapes.items():
        module = _module(name)
        beside = f"{module}.bias" in shapes and f"{module}.running_var" not in shapes
        if name == f"{module}.weight" and len(shape) == 1 and shape[0] in channels and beside:
            return name
    return None


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _natural(name: str) -> list[tuple[float, str]]:
    return list(_parts(name))


def _parts(name: str) -> Iterator[tuple[float, str]]:
    for part in re.findall(r"\d+|\D+", name):
        yield (float(part), "") if part.isdigit() else (math.inf, part)
