"""What each command takes: its arguments and options, one function a command."""

from __future__ import annotations

import argparse

# Options that mergekit-yaml's command lines often have, and that change nothing here
_MERGEKITS = (
    "--copy-tokenizer", "--write-model-card", "--safe-serialization", "--clone-tensors", "--lazy-unpickle",
    "--async-write", "--low-cpu-memory", "--read-to-gpu", "--allow-crimes", "--trust-remote-code",
)  # fmt: skip

_WORKERS = "processes that score candidates, each with a model of its own; the GPUs are dealt among them"


def add_quickstart(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dir", default=".", help="where models, runs and files go (default: here)")
    command.add_argument("--trials", type=int, help="budget in place of the space file's")
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto")


def add_search(command: argparse.ArgumentParser) -> None:
    command.add_argument("space", metavar="SPACE.yaml")
    command.add_argument("--run", metavar="NAME", help="the run's name in ./runs (default: the file's name)")
    command.add_argument("--trials", type=int, metavar="N", help="budget of trials, references included")
    command.add_argument("--time", metavar="2h", help="budget of evaluation time: 90s, 20m, 4h, 2d")
    command.add_argument("--optimizer", metavar="NAME", help="in place of the file's")
    command.add_argument("--seed", type=int, metavar="N", help="of the optimizer and the random masks")
    _add_place(command)
    command.add_argument("--workers", type=int, default=1, metavar="N", help=_WORKERS)
    about = "ask for the next candidate as soon as a worker is free, not a generation at a time"
    command.add_argument("--asynchronous", action="store_true", help=about)
    command.add_argument("--fitness", metavar="FILE", help="in place of the file's")
    command.add_argument("--storage", metavar="URL", help="an Optuna storage in place of the run's journal")
    about = "override a key of the space file, or of the fitness file (fitness.batch_size=4)"
    command.add_argument("--set", dest="settings", action="append", default=[], metavar="key=value", help=about)
    command.add_argument("--from", dest="begin", metavar="RUN[:TRIAL]",
                         help="begin with another run's winner, carried over into this space")  # fmt: skip
    command.add_argument("--full", action="store_true", help="score every candidate on all items (economy: false)")
    command.add_argument("--dry-run", action="store_true", help="check everything that needs no weights, then stop")


def add_resume(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("--trials", type=int, metavar="TOTAL", help="new total budget of trials")
    command.add_argument("--time", metavar="2h", help="new total budget of evaluation time")
    _add_place(command, device=None)
    command.add_argument("--workers", type=int, metavar="N", help=f"{_WORKERS}; in place of the launch's")


def add_status(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", nargs="?")
    command.add_argument("--runs", default="runs", metavar="DIR", help="where the runs are (default: runs)")


def add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    command.add_argument("--trial", type=int, metavar="N", help="another trial than the winner")
    command.add_argument(
        "--allow-infeasible", action="store_true", help="even if it misses a floor, or was stopped early"
    )


def add_rank(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    about = "other weights, floors, confidence or objective, or fewer slices"
    command.add_argument("--fitness", required=True, metavar="NEW.yaml", help=about)
    command.add_argument("-o", "--output", metavar="FILE", help="write the new winner's recipe there")


def add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("first", metavar="A", help="a trial's number, or base, a source, uniform, winner")
    command.add_argument("second", metavar="B", nargs="?", help="default: the winner, or the best so far")
    command.add_argument("--split", choices=["search", "holdout"],
                         help="default: holdout where both have scores there, else search")  # fmt: skip


def add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE.yaml")
    command.add_argument("out", metavar="OUT_DIR")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    command.add_argument("--device", default="cpu", metavar="D", help="where to compute: cpu, cuda, cuda:1 or auto")
    command.add_argument("--cuda", action="store_true", help="the same as --device cuda")
    command.add_argument("-j", "--num-threads", type=int, metavar="N", help="processor threads to compute with")
    command.add_argument("--random-seed", type=int, metavar="N", help="of random masks, in place of the recipe's")
    command.add_argument("--out-shard-size", default="5GB", metavar="SIZE", help="largest weights file (default: 5GB)")
    command.add_argument(
        "-I", "--intermediate-dir", metavar="DIR", help="write the named documents' outputs there, too"
    )
    command.add_argument("--unsafe-truncate-embeddings", action="store_true",
                         help="merge embeddings of different size over the rows that all models have")  # fmt: skip
    for name, about in (("copy-tokenizer", "no tokenizer files"), ("write-model-card", "no README.md")):
        command.add_argument(f"--no-{name}", dest=name.replace("-", "_"), action="store_false", help=about)
    for name in _MERGEKITS:
        command.add_argument(name, action="store_true", dest="without_effect", help=argparse.SUPPRESS)


def add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL_OR_RECIPE")
    _add_fitness(command)
    command.add_argument("-o", "--output", metavar="FILE", help="write what --json prints to a file, too")
    command.add_argument("--items", metavar="FILE", help="write the score of every item: FILE.jsonl or FILE.parquet")
    _add_place(command)


def add_path(command: argparse.ArgumentParser) -> None:
    command.add_argument("start", metavar="A", help="a model or a recipe; a recipe alone starts at its base")
    command.add_argument("end", metavar="B", nargs="?", help="a model or a recipe")
    _add_fitness(command)
    command.add_argument("--points", type=int, default=11, metavar="N", help="how many, ends included (default: 11)")
    command.add_argument("--from", dest="first", type=float, default=0.0, metavar="T", help="default: 0, which is A")
    command.add_argument("--to", dest="last", type=float, default=1.0, metavar="T",
                         help="default: 1, which is B; 1.5 goes beyond it by half of the way")  # fmt: skip
    command.add_argument("-o", "--output", default="path.png", metavar="FILE",
                         help="the picture: .png, .svg or .pdf (default: path.png)")  # fmt: skip
    _add_place(command)


def _add_fitness(command: argparse.ArgumentParser) -> None:
    command.add_argument("--fitness", required=True, metavar="FILE")
    command.add_argument("--split", choices=["search", "holdout", "all"], default="holdout")
    command.add_argument("--reference", action="append", default=[], metavar="NAME=MODEL",
                         help="a model that relative floors refer to, such as base=models/base")  # fmt: skip


def _add_place(command: argparse.ArgumentParser, device: str | None = "auto") -> None:
    about = "cpu, cuda, cuda:1, several GPUs (cuda:0,cuda:1) or auto (one, or all if the model needs them)"
    command.add_argument("--device", default=device, metavar="D", help=about if device else "in place of the launch's")
    about = "the most memory for base and sources: 20GB, or device=20GB,host=64GB; the rest is read from the files"
    command.add_argument("--memory", metavar="SIZE", help=about)
