"""What a check found, as tables and lines, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.checkpoints.samples.sums import Estimate, TensorSums
from evomerge.examine.check import Checked
from evomerge.examine.checks.advice import by_chance
from evomerge.examine.checks.signals import Signal, mean
from evomerge.merging.resident.placement import size
from evomerge.numbers import number
from evomerge.report.shown import Cell, Column, Row, Sheet

_MOST_ROWS, _MOST_LAYERS = 14, 8
Cells = Mapping[tuple[int | None, str], Sequence[TensorSums]]


def check_tables(result: Checked) -> list[Sheet]:
    """The models, what was sampled of the sources, and of their pairs, and where they conflict."""
    tables = [_models(result)]
    if result.deltas is not None and result.deltas.tensors:
        tables.append(_sources(result))
        tables += [_pairs(result)] if len(result.deltas.sources) > 1 else []
        tables += [_modules(result.deltas), _layers(result.deltas)]
    return tables


def check_lines(result: Checked) -> list[str]:
    """Findings, signals, advice, the plan, and the answer in the last line."""
    lines = [f"{f.level}: {f.topic}: {f.text}" for f in result.findings]
    told = [
        f"{_signal(s)} (rank correlation {s.correlation:+.2f})" for s in result.signals if s.correlation is not None
    ]
    lines += [f"goes with the loss of equal-weight merges (docs/check.md): {'; '.join(told)}"] if told else []
    others = [_signal(signal) for signal in result.signals if signal.correlation is None]
    lines += [f"shown, does not predict: {'; '.join(others)}"] if others else []
    lines += [f"try: {a.what}: {a.why}" for a in result.advice]
    lines += [f"{topic}: {fact}" for topic, fact in result.plan.items()]
    problems = sum(finding.level == "problem" for finding in result.findings)
    answer = "can be merged" if result.mergeable else f"cannot be merged as they are: {problems} problem"
    return [*lines, answer + ("s" if problems > 1 else "")]


def check_data(result: Checked) -> dict[str, Any]:
    """All of a check, with the numbers of each module of each layer."""
    return {
        "mergeable": result.mergeable,
        "models": [asdict(model) for model in result.models],
        "findings": [asdict(finding) for finding in result.findings],
        "lineage": _lineage(result),
        "signals": [asdict(signal) for signal in result.signals],
        "advice": [asdict(advice) for advice in result.advice],
        "plan": result.plan,
    }


def by_place(deltas: Deltas) -> Cells:
    """The tensors of each module of each layer, in the order of the model."""
    cells: dict[tuple[int | None, str], list[TensorSums]] = {}
    for tensor in deltas.tensors:
        cells.setdefault((tensor.layer, tensor.module), []).append(tensor)
    return cells


def conflict(deltas: Deltas, tensors: Sequence[TensorSums]) -> Estimate | None:
    """The share of elements that two sources moved apart, the mean of the pairs."""
    return mean([deltas.conflict(one, other, tensors) for one, other in combinations(deltas.sources, 2)])


def relative(deltas: Deltas, tensors: Sequence[TensorSums]) -> Estimate | None:
    """|delta| / |base|, the mean of the sources."""
    return mean([deltas.relative(source, tensors) for source in deltas.sources])


# Tables


def _models(result: Checked) -> Sheet:
    columns = [
        Column("architecture", numbers=False),
        Column("layers"),
        Column("tensors"),
        Column("parameters"),
        Column("dtype", numbers=False),
        Column("tokens"),
        Column("licence", numbers=False),
    ]
    rows = [
        Row(
            [model.name],
            [
                Cell(model.architecture),
                Cell(str(model.layers)),
                Cell(str(model.tensors)),
                Cell(_count(model.elements)),
                Cell(f"{model.dtype}{' (quantized)' if model.quantized else ''}"),
                Cell("-" if model.tokens is None else str(model.tokens)),
                Cell(model.licence or "-"),
            ],
        )
        for model in result.models
    ]
    legend = [f"{model.name}: {model.quantized}" for model in result.models if model.quantized]
    return Sheet("Models", ["model"], columns, rows, legend)


def _sources(result: Checked) -> Sheet:
    deltas, spectrum = result.deltas, result.spectrum
    assert deltas is not None
    columns = [
        Column("mean |delta|"),
        Column("|delta| / |base|"),
        Column("changed"),
        Column("cosine", "with base"),
        Column("effective rank", "of blocks"),
    ]
    rows = []
    for source in deltas.sources:
        rank = spectrum.rank.get(source) if spectrum is not None else None
        rows.append(
            Row(
                [source],
                [
                    _cell(deltas.mean_size(source), 2),
                    _cell(deltas.relative(source), 3),
                    _share(deltas.changed(source)),
                    _cell(deltas.with_base(source), 3),
                    _share(rank),
                ],
            )
        )
    return _sheet("Deltas from the base", "source", columns, rows, [_read(deltas), *_blocks(result)])


def _pairs(result: Checked) -> Sheet:
    deltas, spectrum = result.deltas, result.spectrum
    assert deltas is not None
    columns = [Column("cosine"), Column("signs", "opposed"), Column("directions", "shared")]
    rows = []
    for pair in combinations(deltas.sources, 2):
        shared = spectrum.shared.get(pair) if spectrum is not None else None
        cells = [_cell(deltas.cosine(*pair), 3), _share(deltas.conflict(*pair)), _share(shared)]
        rows.append(Row([f"{pair[0]}, {pair[1]}"], cells))
    chance = f"by chance: {spectrum.chance:.0%} of directions, " if spectrum is not None and spectrum.shared else ""
    return _sheet("Pairs of deltas", "sources", columns, rows, [f"{chance or 'by chance: '}half of the signs"])


def _modules(deltas: Deltas) -> Sheet:
    """One row a module, over all layers."""
    by_module: dict[str, list[TensorSums]] = {}
    for tensor in deltas.tensors:
        by_module.setdefault(tensor.module, []).append(tensor)
    largest = sorted(by_module, key=lambda m: -sum(t.elements for t in by_module[m]))[:_MOST_ROWS]
    shown = {module: tensors for module, tensors in by_module.items() if module in largest}
    left = len(by_module) - len(shown)
    return _places("By module, over all layers", "module", deltas, shown, [f"and {left} smaller ones"] if left else [])


def _layers(deltas: Deltas) -> Sheet:
    """One row a layer, or a run of layers where there are many."""
    layers = sorted({tensor.layer for tensor in deltas.tensors if tensor.layer is not None})
    step = -(-len(layers) // _MOST_LAYERS)
    groups = [layers[i : i + step] for i in range(0, len(layers), step)] if layers else []
    shown = {
        f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]): [t for t in deltas.tensors if t.layer in group]
        for group in groups
    }
    return _places("By layer", "layers" if step > 1 else "layer", deltas, shown, ["of each place by itself: --json"])


def _places(
    title: str, head: str, deltas: Deltas, places: Mapping[str, Sequence[TensorSums]], legend: Sequence[str]
) -> Sheet:
    """One row a group of tensors: how far each source moved, and how far they differ."""
    several = len(deltas.sources) > 1
    columns = [Column(source, "|delta| / |base|") for source in deltas.sources]
    columns += [Column("signs", "opposed"), Column("cancelled")] if several else []
    rows = []
    for name, tensors in places.items():
        cells = [_cell(deltas.relative(source, tensors), 3) for source in deltas.sources]
        cells += [_share(conflict(deltas, tensors)), _share(deltas.cancelled(tensors))] if several else []
        rows.append(Row([name], cells))
    chance = [f"by chance: half of the signs, {by_chance(len(deltas.sources)):.0%} cancelled"] if several else []
    return _sheet(title, head, columns, rows, [*chance, *legend])


def _sheet(title: str, head: str, columns: Sequence[Column], rows: Sequence[Row], legend: Sequence[str]) -> Sheet:
    """A table whose cells may have standard errors behind them."""
    errors = any(cell.more for row in rows for cell in row.cells)
    return Sheet(title, [head], columns, rows, legend, more="standard errors" if errors else "")


def _read(deltas: Deltas) -> str:
    """How much was read."""
    if all(tensor.whole for tensor in deltas.tensors):
        return f"all {_count(deltas.elements)} elements were read"
    share = deltas.sampled / max(1, deltas.elements)
    return f"estimated from {_count(deltas.sampled)} of {_count(deltas.elements)} elements ({share:.2g} of them)"


def _blocks(result: Checked) -> list[str]:
    if result.spectrum is None:
        return []
    return [f"ranks and directions are those of blocks of {result.spectrum.matrices} matrices, at most 256 x 256"]


def _cell(found: Estimate | None, digits: int) -> Cell:
    if found is None:
        return Cell("-")
    return Cell(f"{found.value:.{digits}g}", f" (±{found.error:.1g})" if found.error else "")


def _share(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("-")
    return Cell(f"{100 * found.value:.1f} %", f" (±{100 * found.error:.1g})" if found.error else "")


def _signal(signal: Signal) -> str:
    error = f" ± {signal.error:.1g}" if signal.error else ""
    return f"{signal.name} {number(signal.value, 3) if abs(signal.value) >= 0.1 else f'{signal.value:.2g}'}{error}"


def _count(count: int) -> str:
    return size(count).replace(" bytes", "").replace(" KB", " K").replace(" MB", " M").replace(" GB", " B")


# JSON


def _lineage(result: Checked) -> dict[str, Any] | None:
    deltas, spectrum = result.deltas, result.spectrum
    if deltas is None or not deltas.tensors:
        return None
    return {
        "sampled": deltas.sampled,
        "elements": deltas.elements,
        "not compared": deltas.unread,
        "sources": {
            source: {
                "mean size": _plain(deltas.mean_size(source)),
                "relative size": _plain(deltas.relative(source)),
                "changed": _plain(deltas.changed(source)),
                "cosine with base": _plain(deltas.with_base(source)),
                "effective rank": _plain(spectrum.rank.get(source) if spectrum else None),
            }
            for source in deltas.sources
        },
        "pairs": [
            {
                "sources": list(pair),
                "cosine": _plain(deltas.cosine(*pair)),
                "sign conflict": _plain(deltas.conflict(*pair)),
                "shared directions": _plain(spectrum.shared.get(pair) if spectrum else None),
            }
            for pair in combinations(deltas.sources, 2)
        ],
        "shared by chance": spectrum.chance if spectrum else None,
        "places": [
            {
                "layer": layer,
                "module": module,
                "relative size": {source: _plain(deltas.relative(source, tensors)) for source in deltas.sources},
                "sign conflict": _plain(conflict(deltas, tensors)),
                "cancelled": _plain(deltas.cancelled(tensors)),
            }
            for (layer, module), tensors in by_place(deltas).items()
        ],
        "untouched": deltas.untouched(),
    }


def _plain(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "error": found.error}
