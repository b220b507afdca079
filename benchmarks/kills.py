"""Kills and damage: is anything lost, and does each study go on as if nothing had been?

    python benchmarks/kills.py [--kills 100] [--merges 50] [--cuts 300] [--flips 300] [--kinds racing ...] [--seed 0]

- Kills: searches over tiny models are killed (SIGKILL) at random moments and resumed, until one session ends. Then all
  trials, items, `best.yaml`, the winner, the holdout scores and the exported recipe are compared with those of a search
  that ran through. Of an asynchronous search, whose proposals depend on which worker ends first, it is compared that no
  ended trial has changed or is missing, and that the budget is reached.
- Merges: `evomerge merge` is killed at random moments, without and with `--overwrite`, in one file and in shards. The
  target is then absent, the old one, or the new one, as a whole; the next merge gives the same bytes.
- Cuts: the journal of a finished search ends at a random byte. Flips: a random bit of the journal (of a finished or cut
  one) or of items is turned; items are emptied, halved or missing. Scores are a function of the recipe there
  (`_damage.py`), everything else is the true search.

Each case ends as the uninterrupted one, or with one line and exit code 2; else it is a difference or a traceback, which
is printed. Sessions are forked from one process that has imported everything. Exits with 1 where a case is neither.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from _damage import (
    FREE_KINDS,
    cut_journal,
    flip_items,
    flip_journal,
    free_executor,
    lose_items,
    write_free_study,
)
from _free import write_study

from tests.conftest import save_tiny, write_task

KINDS = ("racing", "default", "gradient", "two workers", "asynchronous", "pareto")
_REASON = re.compile(r"^error: |/\S*/|\d+")
"""What differs between two refusals for one reason."""

MERGES = ("merge", "merge --overwrite", "merge, sharded")
RUN = "study"


# Sessions.


def warm_up() -> None:
    """Imports what the sessions use, so that they need not."""
    for module in ("cma", "lm_eval", "optuna", "pandas", "pyarrow.parquet", "rich.live", "scipy.stats", "transformers"):
        importlib.import_module(module)
    for module in ("cli", "evaluator.evaluator", "merging.disk.stream", "report.data", "report.live", "report.results"):
        importlib.import_module(f"evomerge.{module}")
    for optimizer in ("bayesian", "cma_es", "gradient", "genetic", "optuna_samplers"):
        importlib.import_module(f"evomerge.optimize.{optimizer}")
    import torch

    torch.set_num_threads(1)


def fork(folder: Path, arguments: Sequence[str], free: bool = False) -> int:
    """Starts a command of evomerge in a folder, its output in `log`. Returns the process."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        handle = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        from evomerge.cli import main
        from evomerge.study import search

        if free:
            search.executor_of = free_executor  # type: ignore[assignment]
        code = main(list(arguments))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """The exit code; -9 of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(process: int, seconds: float) -> int:
    """The exit code of a process that is killed if it still runs then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return wait(process)


# What a run holds.


def facts(folder: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on kills."""
    import evomerge

    with _inside(folder):
        run = evomerge.status(RUN)
        assert run.release is not None
        return {
            "trials": [_trial(folder, t, "search") for t in run.search.trials],
            "release": [_trial(folder, t, "holdout") for t in run.release.leaderboard.trials],
            "winner": run.winner and run.winner.number,
            "best.yaml": run.folder.best.read_text() if run.folder.best.exists() else None,
            "export": evomerge.export(RUN, allow_infeasible=True),
        }


def _trial(folder: Path, trial: Any, split: Any) -> Any:
    from evomerge.study.run.items import load_items

    kept = load_items(folder / "runs" / RUN / "items", trial.number, split)
    items = {name: sorted((i.item, i.score, i.weight, str(i.raw)) for i in of.values()) for name, of in kept.items()}
    result = (trial.state, trial.scores, trial.stderr, trial.bounds, trial.objective, trial.digest, trial.evaluated)
    return trial.number, trial.label, trial.genome, trial.recipe_id, result, trial.reason, trial.pruned_by, items


class _inside:
    """A context in a folder. (`contextlib.chdir`, with its type known to Python 3.11's checkers.)"""

    def __init__(self, folder: Path) -> None:
        self._folder, self._before = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self._folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


def difference(expected: dict[str, Any], folder: Path) -> str:
    """The first thing in which a run differs; empty where nothing does."""
    return _first_difference(expected, facts(folder), "")


def _first_difference(a: Any, b: Any, place: str) -> str:
    if a == b:
        return ""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(filter(None, (_first_difference(a[key], b[key], f"{place}.{key}") for key in a)))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next(
            filter(
                None, (_first_difference(x, y, f"{place}[{at}]") for at, (x, y) in enumerate(zip(a, b, strict=True)))
            )
        )
    return f"{place}: {str(a)[:300]} != {str(b)[:300]}"


# Kills of searches.


def write_files(folder: Path, models: Path, kind: str) -> list[str]:
    """Writes the files of a kind of study. Returns further arguments of its search."""
    optimizer: dict[str, Any] = {"name": "cma-es", "seed": 3, "population": 8}
    fitness: dict[str, Any] = {
        "include": ["tasks"],
        "batch_size": 64,
        "pruning": kind in ("racing", "two workers"),
        "slices": {
            "a": {"task": "tiny_a", "metric": "acc", "floor": 0.0},
            "b": {"task": "tiny_b", "metric": "acc", "floor": {"of": "base", "margin": 0.5}},
        },
    }
    if kind == "default":
        optimizer = {}
        del fitness["pruning"]
    if kind == "gradient":
        optimizer = {"name": "gradient", "seed": 3}
    if kind == "asynchronous":
        optimizer = {"name": "tpe", "seed": 3, "asynchronous": True}
    if kind == "pareto":
        optimizer = {"name": "nsga-ii", "seed": 3}
        fitness["objective"] = "pareto"
    write_tasks(folder / "tasks")
    write_study(folder, models / "base", {n: models / n for n in ("one", "two")}, optimizer, 20, fitness)
    return ["--workers", "2"] if kind in ("two workers", "asynchronous") else []


def write_tasks(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_task(folder, "tiny_a", 1)
    write_task(folder, "tiny_b", 2)


def kill_searches(place: Path, models: Path, kind: str, kills: int, draw: random.Random) -> Counter[str]:
    """Kills searches of a kind until there were so many kills, and compares each that ended."""
    study = place / "files"
    more = write_files(study, models, kind)
    search = ["search", str(study / "space.yaml"), "--run", RUN, *more]
    whole = place / "whole"
    whole.mkdir()
    started = time.monotonic()
    if (code := wait(fork(whole, search))) not in (0, 1):
        sys.exit(f"{kind}: the search ended with {code}\n{(whole / 'log').read_text()}")
    seconds = time.monotonic() - started
    expected = facts(whole)
    counts: Counter[str] = Counter()
    round_ = 0
    while counts["kills"] < kills:
        folder = place / f"{round_}"
        folder.mkdir()
        round_ += 1
        ended: dict[int, Any] = {}
        wrong = ""
        while not wrong:
            launched = (folder / "runs" / RUN / "environment.json").exists()
            process = fork(folder, ["resume", RUN] if launched else search)
            left = counts["kills"] < kills
            code = kill_after(process, draw.uniform(0, seconds)) if left else wait(process)
            if kind == "asynchronous":
                wrong = _lost(ended, folder)
            if code != -signal.SIGKILL:
                break
            counts["kills"] += 1
        text = (folder / "log").read_text(errors="replace")
        if not wrong and code in (0, 1):
            if kind == "asynchronous":
                trials = facts(folder)["trials"]
                wrong = "" if len(trials) == len(expected["trials"]) else f"{len(trials)} trials"
            else:
                wrong = difference(expected, folder)
        _count(counts, f"{kind}, study {round_}", code, text, wrong)
        if not wrong:
            shutil.rmtree(folder)
    return counts


def _lost(ended: dict[int, Any], folder: Path) -> str:
    """Which ended trial has changed or is missing since the last session; takes in those of this one."""
    import evomerge

    if not (folder / "runs" / RUN / "environment.json").exists():
        return ""
    with _inside(folder):
        trials = {t.number: _trial(folder, t, "search") for t in evomerge.status(RUN).search.trials if t.ranked}
    lost = [number for number, trial in ended.items() if trials.get(number) != trial]
    ended.update(trials)
    return f"trial {lost[0]} has changed" if lost else ""


def _count(counts: Counter[str], case: str, code: int, text: str, wrong: str) -> None:
    """Counts how a case ended, and prints it where it is wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in text or code not in (0, 1, 2):
        kind, shown = "tracebacks", "\n".join(lines[-12:])
    elif wrong:
        kind, shown = "differences", wrong
    elif code == 2:
        kind, shown = "refused", ""
        counts[f"refused: {_REASON.sub('', lines[-1])[:100]}"] += 1
    else:
        kind, shown = "equal", ""
    counts[kind] += 1
    if shown:
        print(f"{case}: {kind} (exit code {code}): {shown}", flush=True)


# Kills of merges.


def kill_merges(place: Path, kind: str, kills: int, draw: random.Random) -> Counter[str]:
    """Kills merges to disk."""
    from _synthetic import build

    base, *sources = build(place.parent / "synthetic", 3_000_000, 2)
    recipes = {}
    for name, weight in (("old", 0.2), ("new", 0.6)):
        models = [{"model": str(s), "parameters": {"weight": weight}} for s in sources]
        recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, "dtype": "bfloat16"}
        recipes[name] = place / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(recipe))
    shards = ["--out-shard-size", "1MB"] if "sharded" in kind else []
    expected = {}
    seconds = 0.0
    # Called as the killed ones are, and as deep: a checkpoint holds its own name, and its models as seen from itself
    whole = {name: place / name / "out" for name in recipes}
    for name, recipe_file in recipes.items():
        whole[name].parent.mkdir()
        started = time.monotonic()
        if wait(fork(place, ["merge", str(recipe_file), str(whole[name]), *shards])):
            sys.exit((place / "log").read_text())
        seconds = time.monotonic() - started
        expected[name] = _content(whole[name])
    counts: Counter[str] = Counter()
    overwrite = "overwrite" in kind
    while counts["kills"] < kills:
        folder = place / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if overwrite:
            shutil.copytree(whole["old"], folder / "out")
        command = ["merge", str(recipes["new"]), str(folder / "out"), *shards, *(["--overwrite"] if overwrite else [])]
        code = kill_after(fork(folder, command), draw.uniform(0, seconds))
        killed = code == -signal.SIGKILL
        counts["kills"] += killed
        target = _content(folder / "out") if (folder / "out").exists() else None
        wrong = ""
        if target not in ([expected["old"]] if overwrite else [None]) and target != expected["new"]:
            wrong = "the target is gone" if target is None else "a part of a checkpoint"
        if killed and not wrong and target != expected["new"]:
            code = wait(fork(folder, command))
            left = sorted(f.name for f in folder.iterdir() if f.name not in ("out", "log"))
            if _content(folder / "out") != expected["new"]:
                wrong = "the next merge differs"
            elif left:
                wrong = f"left behind: {', '.join(left)}"
        _count(counts, kind, 0 if code == -signal.SIGKILL else code, (folder / "log").read_text(), wrong)
    return counts


def _content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.suffix != ".md"}


# Damage.

Damage = Callable[[Path, random.Random], str]


def damage_runs(
    place: Path, models: Path, kinds: Sequence[str], damages: Sequence[Damage], count: int, draw: random.Random
) -> Counter[str]:
    """Damages copies of finished runs, and resumes them."""
    expected = {}
    for kind in kinds:
        whole = place / kind
        whole.mkdir(parents=True)
        write_tasks(whole / "tasks")
        write_free_study(whole, models, kind)
        if (code := wait(fork(whole, ["search", "space.yaml", "--run", RUN], free=True))) not in (0, 1):
            sys.exit(f"{kind}: the search ended with {code}\n{(whole / 'log').read_text()}")
        (whole / "log").unlink()
        expected[kind] = facts(whole)
        shutil.copytree(whole / "runs", place / f"{kind} runs")
    counts: Counter[str] = Counter()
    for case in range(count):
        kind, damage = kinds[case % len(kinds)], damages[case % len(damages)]
        folder = place / kind
        (folder / "log").unlink(missing_ok=True)
        shutil.rmtree(folder / "runs")
        shutil.copytree(place / f"{kind} runs", folder / "runs")
        run = folder / "runs" / RUN
        said = damage(run, draw)
        code = wait(fork(folder, ["resume", RUN], free=True))
        text = (folder / "log").read_text(errors="replace")
        wrong = difference(expected[kind], folder) if code in (0, 1) else ""
        if code == 2 and sum(line.startswith("error: ") for line in text.splitlines()) != 1:
            wrong = f"not one line: {text[-300:]}"
        _count(counts, f"{kind}, {said}", code, text, wrong)
    return counts


# The table.


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of searches, over all kinds")
    parser.add_argument("--merges", type=int, default=50, help="kills of merges, over all kinds")
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    warm_up()
    rows: dict[str, Counter[str]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        models = place / "models"
        save_tiny(models / "base", 1)
        for seed, name in enumerate(("one", "two"), 2):
            save_tiny(models / name, seed, near=models / "base", scale=0.2)
        for at, kind in enumerate(options.kinds if options.kills else ()):
            share = (at + 1) * options.kills // len(options.kinds) - at * options.kills // len(options.kinds)
            folder = place / f"search-{at}"
            rows[kind] = kill_searches(folder, models, kind, share, random.Random(f"{options.seed} {kind}"))
        for at, kind in enumerate(MERGES if options.merges else ()):
            share = (at + 1) * options.merges // len(MERGES) - at * options.merges // len(MERGES)
            folder = place / f"merge-{at}"
            folder.mkdir()
            rows[kind] = kill_merges(folder, kind, share, random.Random(f"{options.seed} {kind}"))
        damages: dict[str, tuple[int, list[Damage]]] = {
            "journal cut": (options.cuts, [cut_journal]),
            "bits flipped": (options.flips // 2, [flip_journal]),
            "bits of items, lost items": (options.flips - options.flips // 2, [flip_items, lose_items]),
        }
        for at, (name, (count, ways)) in enumerate(damages.items()):
            if count:
                draw = random.Random(f"{options.seed} {name}")
                rows[name] = damage_runs(place / f"damage-{at}", models, FREE_KINDS, ways, count, draw)
    columns = ("kills", "equal", "refused", "differences", "tracebacks")
    print(f"{'':<28}" + "".join(f"{c:>13}" for c in columns))
    for kind, counts in rows.items():
        print(f"{kind:<28}" + "".join(f"{counts.get(c, '-'):>13}" for c in columns))
    reasons = Counter({r: n for counts in rows.values() for r, n in counts.items() if r.startswith("refused: ")})
    for reason, count in reasons.most_common(8):
        print(f"{count:>5} {reason}")
    print(f"seed {options.seed}, {time.monotonic() - started:.0f} s")
    return 1 if any(counts["differences"] or counts["tracebacks"] for counts in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
