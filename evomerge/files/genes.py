"""The genes of a search-space file: which methods, which of their parameters are searched and where, which are fixed.

What is legal comes from the methods' declarations (`registry`). Where the methods of one space share a parameter, its
values must be legal for each of them, and it must mean one value for each source to all of them or to none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import product

from evomerge.errors import RemovedError, suggestion
from evomerge.files.keys import BANDS, GENE, METHOD
from evomerge.files.nodes import Node, interval
from evomerge.files.objects import AXES, Axis, Cut, GeneSpec, Top
from evomerge.registry import CHOICES, METHODS, Parameter

Fixed = Mapping[str, float | bool]
Takers = dict[str, Parameter]
"""The chosen methods that take a parameter, by name, and how each of them declares it."""

_BANDED = "task_arithmetic"
"""The method whose weight can be per `bands`."""

_MOST_BANDS = 100_000

_PLAIN_SUM = (("normalize", False), ("lambda", 1.0))
"""What the other parameters of the method are beside bands."""

_INSIDE = 1e-6
"""A value so far inside a range, as a share of it, stands for the range's open interior."""


def read_genes(node: Node, sources: int) -> tuple[tuple[GeneSpec, ...], tuple[str, ...]]:
    """The genes and the names of all methods that can be chosen, for that many sources. Raises InputError."""
    parts = node.mapping(example="{method: ties, weight: {low: 0, high: 1}}")
    if "method" not in parts:
        node.fail("has no 'method'", "add for example `method: ties`, or a gene `method: {choices: [...]}`")
    method_gene, methods = _method(parts["method"])
    for method in methods:
        _check_sources(parts["method"], method, sources)
    declared = _declared(methods)
    genes = [method_gene] if method_gene else []
    for name, child in parts.items():
        if name == "method":
            continue
        if name not in declared:
            _unknown_gene(child, name, methods, declared)
        genes.append(_numeric(name, child, declared[name]))
    return tuple(genes), methods


def read_fixed(node: Node | None, methods: Sequence[str], genes: Collection[str]) -> dict[str, float | bool]:
    """The parameters that are not searched. Raises InputError."""
    if node is None:
        return {}
    declared = _declared(methods)
    fixed: dict[str, float | bool] = {}
    for name, child in node.mapping(example="{normalize: false}").items():
        if name not in declared:
            child.fail(f"no chosen method has a parameter {name!r}", suggestion(name, declared))
        if name in genes:
            child.fail(f"{name!r} is both fixed and a gene", "keep one of them")
        parameter = _agreed(child, name, declared[name])
        fixed[name] = child.boolean() if parameter.kind is bool else _legal(child, declared[name])
    return fixed


def check_genes(
    node: Node, methods: Sequence[str], genes: Sequence[GeneSpec], fixed: Fixed, fixed_node: Node | None
) -> None:
    """InputError where a chosen method lacks a value that it needs, or cannot take some of the values together that
    the ranges allow."""
    searched = {gene.name: gene for gene in genes}
    if any(gene.bands is not None for gene in genes):
        _check_banded(node, searched, fixed, fixed_node)
    for method in methods:
        _check_required(node.value["method"], method, {*fixed, *searched})
        _check_together(node, method, searched, fixed, fixed_node)


def _check_banded(node: Node, genes: Mapping[str, GeneSpec], fixed: Fixed, fixed_node: Node | None) -> None:
    """InputError where bands are searched beside what they do not go with."""
    if "lambda" in genes:
        node.value["lambda"].fail("lambda scales all bands, which have numbers of their own", "remove the gene")
    other = next((name for name, value in fixed.items() if (name, value) not in _PLAIN_SUM), None)
    if other is not None:
        (fixed_node or node).fail(f"{other} is {fixed[other]}, which bands do not go with", f"remove {other}")


# Methods


def _method(node: Node) -> tuple[GeneSpec | None, tuple[str, ...]]:
    if isinstance(node.value, list):
        node.fail("is a list", f"write {{choices: {node.shown()}}}" if node.value else "name a merge method")
    if not isinstance(node.value, dict):
        return None, (node.one_of(CHOICES, "merge method"),)
    parts = node.declared(METHOD)
    names = [child.one_of(CHOICES, "merge method") for child in parts["choices"].sequence()]
    if len(set(names)) != len(names) or not names:
        parts["choices"].fail(f"is {parts['choices'].shown()}", "name each method once, at least one")
    per = _per(parts.get("per"), ("layers",), "method", "a method can differ by layer group only")
    init = parts["init"].one_of(names, "choice") if "init" in parts else None
    if len(names) == 1:
        return None, (names[0],)
    return GeneSpec("method", per, init=init, choices=tuple(names), where=node.where), tuple(names)


def _check_sources(node: Node, method: str, sources: int) -> None:
    least, most = METHODS[CHOICES[method].method].sources
    if not least <= sources <= most:
        wanted = f"{'' if least == most else 'at least '}{least} source{'s' if least > 1 else ''}"
        problem = f"{method} merges the base with {wanted}, this space has {sources}"
        node.fail(problem, f"choose another method, or give {wanted}")


def _check_required(node: Node, method: str, present: Collection[str]) -> None:
    for parameter in CHOICES[method].parameters:
        if parameter.default is None and parameter.name not in present:
            problem = f"{method} needs {parameter.name!r}, which is neither a gene nor fixed"
            node.fail(problem, f"add a gene `{parameter.name}: {{low: 0, high: 1}}`")


def _check_together(
    node: Node, name: str, genes: Mapping[str, GeneSpec], fixed: Fixed, fixed_node: Node | None
) -> None:
    """A method's own check, at the ends of every range and just inside them."""
    method = METHODS[CHOICES[name].method]
    if method.check is None:
        return
    checked = [p for p in method.parameters if p.name in method.checked]
    for values in product(*(_probes(p, genes, fixed) for p in checked)):
        problem = method.check({p.name: value for p, value in zip(checked, values, strict=True)})
        if problem:
            place = next((node.value[key] for key in method.checked if key in genes), fixed_node or node)
            place.fail(f"{name} can meet values that do not go together: {problem}", "narrow the range")


def _probes(parameter: Parameter, genes: Mapping[str, GeneSpec], fixed: Fixed) -> list[float]:
    gene = genes.get(parameter.name)
    if gene is None:
        value = fixed.get(parameter.name, parameter.default)
        assert value is not None, "a required value is checked to be there"
        return [float(value)]
    step = _INSIDE * (gene.high - gene.low)
    return [gene.low, gene.high, gene.low + step, gene.high - step]


# Parameters


def _declared(methods: Sequence[str]) -> dict[str, Takers]:
    """Every parameter that the chosen methods take, by name."""
    declared: dict[str, Takers] = {}
    for method in methods:
        for parameter in CHOICES[method].parameters:
            declared.setdefault(parameter.name, {})[method] = parameter
    return declared


def _unknown_gene(node: Node, name: str, methods: Sequence[str], declared: dict[str, Takers]) -> None:
    owners = list(_declared(tuple(CHOICES)).get(name, ()))
    chosen = ", ".join(methods)
    if owners:
        node.fail(f"no chosen method uses the gene {name!r} (chosen: {chosen})", f"remove it; {owners[0]} would use it")
    searchable = ["method", *(p for p, takers in declared.items() if next(iter(takers.values())).kind is float)]
    node.fail(f"unknown gene {name!r}", suggestion(name, searchable))


def _agreed(node: Node, name: str, takers: Takers) -> Parameter:
    """The parameter, as the first of the methods declares it. InputError where it is a value of each source to one of
    them and of the whole merge to another: then it does not mean the same."""
    method, parameter = next(iter(takers.items()))
    for other, declared in takers.items():
        if declared.scope != parameter.scope:
            one, all_ = (method, other) if parameter.scope == "source" else (other, method)
            problem = f"{name} is a value of each source in {one}, and of the whole merge in {all_}"
            node.fail(problem, f"search {one} and {all_} in spaces of their own")
    return parameter


def _numeric(name: str, node: Node, takers: Takers) -> GeneSpec:
    parameter = _agreed(node, name, takers)
    if parameter.kind is not float:
        kind, example = ("flag", "true") if parameter.kind is bool else ("count", f"{parameter.default:g}")
        node.fail(f"{name!r} is a {kind}, not a gene", f"set it under `fixed:`, as `fixed: {{{name}: {example}}}`")
    if not isinstance(node.value, dict):
        node.fail(
            f"is {node.shown()}, not a range",
            f"write {{low: ..., high: ...}}, or put it under `fixed: {{{name}: ...}}`",
        )
    smooth = node.value.get("smooth")
    if smooth is not None and smooth.value not in (0, None):  # a run's own copy may hold a 0
        raise RemovedError("`smooth` was removed", "leave it out, or use `interpolate: true`", smooth.where)
    kept = {key: child for key, child in node.value.items() if key != "smooth"}
    parts = Node(kept, node.where).declared(GENE)
    low, high = _range(parts, name, takers)
    log = parts["log"].boolean() if "log" in parts else parameter.log and low > 0
    if log and low <= 0:
        parts["low"].fail(f"{low:g} has no logarithm", "give a low above 0, or log: false")
    if log and not math.isfinite(high / low):
        parts["high"].fail(f"{low:g} to {high:g} is a wider ratio than any number", "narrow the range, or log: false")
    per = _per(parts.get("per"), *_axes(name, parameter, takers))
    return GeneSpec(
        name=name,
        per=per,
        low=low,
        high=high,
        init=parts["init"].number(low, high) if "init" in parts else min(max(parameter.init, low), high),
        log=log,
        where=node.where,
        bands=_bands(node, parts.get("bands"), per),
    )


def _axes(name: str, parameter: Parameter, takers: Takers) -> tuple[tuple[Axis, ...], str, str]:
    """The axes that a numeric gene can have, its name, and why it has no others."""
    if parameter.scope != "source":
        return ("layers", "modules", "tensors"), name, f"{name} has one value for all sources"
    if name == "weight" and set(takers) == {_BANDED}:
        return AXES, name, ""
    reason = f"only the weight of {_BANDED}, as the only method, has bands"
    return ("sources", "layers", "modules", "tensors"), name, reason


def _bands(gene: Node, node: Node | None, per: Sequence[Axis]) -> Cut | Top | None:
    """How the axis `bands` cuts a matrix: all of its directions, or the largest, and the rest is a band."""
    if "bands" not in per:
        if node is not None:
            node.fail("says how to cut bands, and `per` has none", "add bands to `per`, or remove it")
        return None
    if "tensors" not in per:
        gene.fail(
            "is per bands, and not per tensors", "write `per: [sources, tensors, bands]`: a tensor has its own bands"
        )
    if node is None:
        mend = "add `bands: 8`, shares as `[0.1, 0.2, 0.7]`, `each`, or `{top: 64}`"
        gene.fail("is per bands, and does not say how many", mend)
    if not isinstance(node.value, dict):
        return _cut(node)
    parts = node.declared(BANDS, "{top: 64}")
    return Top(parts["top"].integer(1, _MOST_BANDS), _cut(parts["cut"]) if "cut" in parts else "each")


def _cut(node: Node) -> Cut:
    """How directions are cut: into a number of bands, by shares of the directions, or each by itself."""
    if isinstance(node.value, list):
        shares = tuple(child.number(0.0, 1.0) for child in node.sequence())
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1.0) > _INSIDE:
            node.fail(f"is {node.shown()}", "give shares of the directions that are above 0 and sum to 1")
        return shares
    if isinstance(node.value, str):
        node.one_of(("each",), "way to cut bands")
        return "each"
    return node.integer(1, _MOST_BANDS)


def _range(parts: Mapping[str, Node], name: str, takers: Takers) -> tuple[float, float]:
    low, high = (_legal(parts[key], takers) for key in ("low", "high"))
    if low > high:
        parts["high"].fail(f"low {low:g} is above high {high:g}", "swap them")
    if not math.isfinite(high - low):
        parts["high"].fail(f"{low:g} to {high:g} is wider than any number", "narrow the range")
    if low == high:
        problem = f"low and high are both {low:g}"
        parts["high"].fail(problem, f"a value that is not searched goes under `fixed: {{{name}: {low:g}}}`")
    return low, high


def _legal(node: Node, takers: Takers) -> float:
    """A number that each of the methods takes."""
    for method, parameter in takers.items():
        number = node.integer() if parameter.kind is int else node.number()
        if not parameter.low <= number <= parameter.high:
            legal = interval(parameter.low, parameter.high)
            problem = f"{number:g} is outside the legal range {legal} of {parameter.name} in {method}"
            node.fail(problem, "give a number inside it")
    return number


def _per(node: Node | None, legal: tuple[Axis, ...], name: str, reason: str) -> tuple[Axis, ...]:
    if node is None:
        return ()
    entries = node.sequence() if isinstance(node.value, list) else [node]
    axes = [entry.one_of(AXES, "axis") for entry in entries]
    for entry, axis in zip(entries, axes, strict=True):
        if axis not in legal:
            entry.fail(f"{name} cannot be per {axis}: {reason}", f"use {' or '.join(legal)}")
        if axis in ("layers", "modules") and "tensors" in axes:
            entry.fail(f"{name} is per {axis} and per tensors, which are finer", f"remove {axis}")
    return tuple(a for a in AXES if a in axes)
