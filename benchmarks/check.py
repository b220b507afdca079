"""Which signals of `evomerge check` say how much an equal-weight merge loses?

    python benchmarks/check.py FOLDER [--root runs/check] [--items 48] [--json FILE]

FOLDER is as in specialists.py. Merges are the equal-weight averages of pairs and of all sources: of the four real
checkpoints, of the quickstart's models, and of fine-tunes of one base on two editions of the same texts; with deltas of
half and of twice the size; and with planted conflicts (`_planted.py`): the other source turned against the first, in
part or as a whole, its hidden units in another order in one layer or in all, nothing in common, and one trained
from another seed.

The loss of a merge is the mean, over the sources whose skill is still there, of
    (bits per byte of the merge - those of the source) / (those of the base - those of the specialist),
each on the source's own held-out items: 0 keeps all that was learned, 1 is no better than the base.

Prints the loss and the signals of each merge, and the Spearman rank correlation of each signal with the loss, with 95 %
bootstrap intervals (2,000 resamples of the merges): over all merges; with ranks within each family of models; and of
these over the merges without a planted conflict. A signal is said to predict where both intervals within families leave
out zero (`SIGNALS` in evomerge/examine/checks/signals.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import _planted
import _testbeds
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.samples.deltas import measure
from evomerge.checkpoints.samples.spectrum import spectrum
from evomerge.demo import train
from evomerge.examine.checks.signals import SIGNALS

State = Mapping[str, torch.Tensor]
RESAMPLES = 2000


@dataclass(frozen=True)
class Merge:
    """Sources to be averaged. `judged`: source -> the slice on which its skill is measured."""

    bed: str
    name: str
    sources: Mapping[str, State]
    judged: Mapping[str, str]
    planted: bool


def merges(name: str, bed: _testbeds.Testbed) -> Iterator[Merge]:
    """All merges of a testbed whose sources have the names of their slices."""
    base, sources = bed.base, bed.sources
    for size in sorted({2, len(sources)}):
        for group in combinations(sources, size):
            chosen = {source: sources[source] for source in group}
            yield Merge(name, " + ".join(group), chosen, {s: s for s in group}, False)
    for one, other in combinations(sources, 2):
        for factor in (0.5, 2.0):
            pair = {s: _planted.scaled(base, sources[s], factor) for s in (one, other)}
            yield Merge(name, f"{factor:g} {one} + {factor:g} {other}", pair, {s: s for s in pair}, False)

        def beside(what: str, state: State, skilled: bool, one: str = one, other: str = other) -> Merge:
            judged = {one: one, **({other: other} if skilled else {})}
            return Merge(name, f"{one} + {what} {other}", {one: sources[one], other: state}, judged, True)

        yield beside("opposed", _planted.opposed(base, sources[other], sources[one], 0.5, 1), False)
        yield beside("permuted layer of", _planted.permuted(sources[other], {1}, 2), True)
        yield beside("permuted", _planted.permuted(sources[other], None, 3), True)
        yield beside("shuffled", _planted.shuffled(sources[other], 4), True)
    for one in sources:
        against = {one: sources[one], "against": _planted.scaled(base, sources[one], -0.5)}
        yield Merge(name, f"{one} - half of it", against, {one: one}, True)


def other_seed(bed: _testbeds.Testbed, root: Path) -> Iterator[Merge]:
    """A specialist beside one that was trained from another seed."""
    train.prepare(root, settings=train.Settings(seed=1))
    for one, other in (("shipping", "refunds"), ("refunds", "catalog"), ("catalog", "shipping")):
        stranger = load_file(root / "models/quickstart" / other / "model.safetensors")
        sources = {one: bed.sources[one], other: stranger}
        yield Merge("quickstart", f"{one} + {other} of another seed", sources, {s: s for s in sources}, True)


def editions(bed: _testbeds.Testbed) -> Iterator[Merge]:
    """Two fine-tunes whose answers to the same questions conflict."""
    old, new = bed.sources
    for factor in (0.5, 1.0, 2.0):
        pair = {s: _planted.scaled(bed.base, bed.sources[s], factor) for s in (old, new)}
        yield Merge("editions", f"{factor:g} {old} + {factor:g} {new}", pair, {old: "shipping", new: "refunds"}, False)


def loss_of(merge: Merge, bed: _testbeds.Testbed, items: int) -> float:
    """What the average loses of its sources' skills."""
    average = {n: torch.stack([s[n] for s in merge.sources.values()]).mean(0) for n in bed.base}
    lost = []
    for source, slice_ in merge.judged.items():
        asked = bed.items[slice_][:items]
        specialist = bed.sources[source]
        states = (average, merge.sources[source], bed.base, specialist)
        merged, own, base, best = (_testbeds.scores(bed.model, state, [asked])[0] for state in states)
        lost.append((merged - own) / (base - best))
    return float(np.mean(lost))


def signals_of(merge: Merge, bed: _testbeds.Testbed, like: Path) -> dict[str, float]:
    """The signals of check, from checkpoints on disk as it reads them. `like`: the base's folder."""
    with tempfile.TemporaryDirectory() as place:
        folders = {}
        for name, state in {"base": bed.base, **merge.sources}.items():
            folder = folders[name] = Path(place, name)
            shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
        base = Checkpoint.open(str(folders.pop("base")))
        sources = {name: Checkpoint.open(str(folder)) for name, folder in folders.items()}
        deltas, directions = measure(base, sources), spectrum(base, sources)
        found = {name: kind.of(deltas, directions) for name, kind in SIGNALS.items()}
    return {name: signal.value for name, signal in found.items() if signal is not None}


Rows = Sequence[Mapping[str, Any]]


def correlation(rows: Rows, signal: str, by_family: bool) -> tuple[float, float, float]:
    """Spearman's rank correlation of a signal with the loss, and the ends of its 95 % bootstrap interval.

    by_family: ranks are taken within each family of models, and divided by its size: whether a family's merges lose
        more than another's does not count. Resamples keep the families' sizes.
    """
    told = [row for row in rows if signal in row]
    families = [[row for row in told if row["bed"] == bed] for bed in dict.fromkeys(row["bed"] for row in told)]
    families = [family for family in families if len(family) > 2] if by_family else [told]
    random, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        found = _pooled(
            [[family[i] for i in random.integers(0, len(family), len(family))] for family in families], signal
        )
        drawn += [found] if np.isfinite(found) else []
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _pooled(families, signal), float(low), float(high)


def _pooled(families: Sequence[Rows], signal: str) -> float:
    """The correlation of ranks, which are taken within each family."""
    x, y = (
        np.concatenate([_centred([row[name] for row in family]) for family in families]) for name in (signal, "loss")
    )
    spread = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / spread) if spread > 0 else float("nan")


def _centred(values: Sequence[float]) -> Any:
    ranks = rankdata(values) / len(values)
    return ranks - ranks.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, default=Path("runs/check"))
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--json", type=Path, help="keep the numbers there")
    parser.add_argument("--print", action="store_true", help="print those of --json, and compute nothing")
    options = parser.parse_args()
    console = Console(width=170)
    if options.print:
        rows = json.loads(options.json.read_text())["merges"]
        console.print(_merges_table(rows), _table(correlations(rows)))
        return
    torch.set_num_threads(1)
    real = _testbeds.specialists(options.folder)
    quick, edited = _testbeds.quickstart(options.root), _testbeds.editions(options.root)
    beds = {"specialists": real, "quickstart": quick, "editions": edited}
    trained = options.root / "models/quickstart/base"
    likes = {"specialists": options.folder / "base", "quickstart": trained, "editions": trained}
    every = [
        *merges("specialists", real),
        *merges("quickstart", quick),
        *other_seed(quick, options.root / "other"),
        *editions(edited),
    ]
    rows = list[dict[str, Any]]()
    for merge in every:
        bed = beds[merge.bed]
        row = {"bed": merge.bed, "merge": merge.name, "planted": merge.planted}
        rows.append({**row, "loss": loss_of(merge, bed, options.items), **signals_of(merge, bed, likes[merge.bed])})
        console.print(
            f"{len(rows)} of {len(every)}: {merge.bed}: {merge.name}: {rows[-1]['loss']:.3f}", highlight=False
        )
    found = correlations(rows)
    console.print(_merges_table(rows), _table(found))
    if options.json:
        options.json.write_text(json.dumps({"merges": rows, "correlations": found}, indent=2) + "\n")


def correlations(rows: Rows) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Group of merges -> signal -> correlation and interval."""
    plain = [row for row in rows if not row["planted"]]
    groups = {
        f"all {len(rows)}": (rows, False),
        f"within families, {len(rows)}": (rows, True),
        f"within families, the {len(plain)} without planted conflicts": (plain, True),
    }
    return {
        name: {signal: correlation(members, signal, by_family) for signal in SIGNALS}
        for name, (members, by_family) in groups.items()
    }


def _merges_table(rows: Rows) -> Table:
    table = Table(title="Equal-weight merges")
    for column in ("models", "merge", "loss", *SIGNALS):
        table.add_column(column, justify="left" if column in ("models", "merge") else "right")
    for row in sorted(rows, key=lambda row: row["loss"]):
        numbers = [f"{row[name]:.3f}" if name in row else "-" for name in ("loss", *SIGNALS)]
        table.add_row(row["bed"], row["merge"], *numbers)
    return table


def _table(found: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Table:
    table = Table(title="Spearman rank correlation with the loss (95 % bootstrap interval)")
    table.add_column("signal")
    for group in found:
        table.add_column(group, justify="right")
    for name in SIGNALS:
        table.add_row(name, *("{:+.2f} ({:+.2f} to {:+.2f})".format(*found[group][name]) for group in found))
    return table


if __name__ == "__main__":
    main()
