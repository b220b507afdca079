"""Bad input: one line that says where, what and how to mend; exit code 2; no traceback; nothing written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.journal import Journal

from .conftest import save_tiny

Study = Callable[..., Path]
Check = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs a command that must be refused; returns its one line."""

    def run(*arguments: object, wrote_nothing: bool = True) -> str:
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], printed.err
        assert "Traceback" not in printed.err
        if wrote_nothing:
            assert not Path("runs").exists()
        return lines[-1]

    return run


def line_of(file: Path, text: str) -> int:
    return next(i for i, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def test_missing_file(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    assert "spaces.yaml: no such file; did you mean 'space.yaml'?" in complaint("search", "spaces.yaml")


def test_invalid_yaml(tiny_study: Study, complaint: Check) -> None:
    space = tiny_study()
    space.write_text("base: models/base\nsources: [one, two\ngenes: {}\n")
    line = complaint("search", "space.yaml")
    assert "space.yaml:2: sources: is not valid YAML: the [ that is opened in this line is not closed by line 3" in line


def edited(section: str, key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Sets one dotted key of the space (`space.a.b`) or the fitness file; None removes it."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        target: Any = {"space": space, "fitness": fitness}[section]
        *path, last = key.split(".")
        for part in path:
            target = target[part]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return change


CASES: dict[str, tuple[str, str, Any, str, str]] = {
    # name: file, key, value, the text whose line is named, what the message says
    "unknown key": ("space", "optimiser", "tpe", "optimiser", "unknown key 'optimiser'; did you mean 'optimizer'?"),
    "unknown key in a gene": ("space", "genes.weight.hihg", 1, "hihg", "unknown key 'hihg'; did you mean 'high'?"),
    "missing key": ("space", "base", None, "sources:", "has no 'base'"),
    "unknown method": ("space", "genes.method", "tie", "method:", "unknown merge method 'tie'; did you mean 'ties'?"),
    "unknown optimizer": (
        "space",
        "optimizer.name",
        "cmaes",
        "name:",
        "unknown optimizer 'cmaes'; did you mean 'cma-es'",
    ),
    "removed optimizer": (
        "space",
        "optimizer.name",
        "gp",
        "name: gp",
        "optimizer.name: the optimizer gp was removed; use surrogate",
    ),
    "removed optimizer for fronts": ("space", "optimizer", "nsga-iii", "optimizer: nsga", "use nsga-ii or tpe"),
    "removed option of a gene": (
        "space",
        "genes.weight.smooth",
        2.0,
        "smooth: 2",
        "genes.weight.smooth: `smooth` was removed; leave it out, or use `interpolate: true`",
    ),
    "unknown option": ("space", "optimizer.popsize", 4, "popsize", "cma-es takes no such option"),
    "illegal option": ("space", "optimizer.sigma", 3, "sigma", "3 is not legal for cma-es"),
    "path to nowhere": (
        "space",
        "optimizer",
        {"name": "path", "end": "tow"},
        "end: tow",
        "optimizer.end: path knows no model 'tow'; did you mean 'two'?",
    ),
    "range reversed": ("space", "genes.weight.low", 2.0, "high: 1.0", "low 2 is above high 1; swap them"),
    "range not legal": (
        "space",
        "genes",
        {"method": "ties", "weight": {"low": 0, "high": 1}, "density": {"low": 0.1, "high": 1.5}},
        "high: 1.5",
        "genes.density.high: 1.5 is outside the legal range [0, 1] of density",
    ),
    "unused gene": (
        "space",
        "genes.density",
        {"low": 0.1, "high": 1.0},
        "density:",
        "no chosen method uses the gene 'density' (chosen: task_arithmetic)",
    ),
    "misspelt gene": ("space", "genes.wieght", {"low": 0, "high": 1}, "wieght", "did you mean 'weight'?"),
    "gene per wrong axis": (
        "space",
        "genes.lambda",
        {"low": 0, "high": 1, "per": "sources"},
        "per: sources",
        "one value for all",
    ),
    "no gene": ("space", "genes", {"method": "ties"}, "method: ties", "ties needs 'weight'"),
    "too many groups": ("space", "layers", 5, "layers:", "5 groups, but the base has 2 layers"),
    "source missing": ("space", "sources.two", "models/tow", "two: models", "did you mean the folder models/two?"),
    "unknown task": ("fitness", "slices.a.task", "tinny_a", "task: tinny_a", "did you mean 'tiny_a'"),
    "unknown metric": ("fitness", "slices.a.metric", "acc_nrom", "metric: acc_nrom", "acc_nrom"),
    "no metric": ("fitness", "slices.a.metric", None, "a:", "has no 'metric'"),
    "floor of unknown source": (
        "fitness",
        "slices.b.floor.of",
        "twoo",
        "of: twoo",
        "floor relative to an unknown source 'twoo'; did you mean 'two'?",
    ),
    "floor of no kind": ("fitness", "slices.a.floor", {"of": "base"}, "floor:", "needs either `keep`"),
    "unknown objective": (
        "fitness",
        "objective",
        "maen",
        "objective:",
        "unknown objective 'maen'; did you mean 'mean'?",
    ),
    "split of one": ("fitness", "split", {"search": 1.0}, "search: 1.0", "leaves one split without items"),
    "batch size": ("fitness", "batch_size", 0, "batch_size", "outside [1, inf)"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_values(name: str, tiny_study: Study, complaint: Check) -> None:
    section, key, value, marker, message = CASES[name]
    file = tiny_study(edited(section, key, value)).with_name(f"{section}.yaml")
    said = complaint("search", "space.yaml")
    assert message in said
    if value is not None:
        assert f"{file.name}:{line_of(file, marker)}: " in said


def test_a_soup_needs_a_space_that_holds_it(tiny_study: Study, complaint: Check) -> None:
    def without(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["weight"] = {"low": 0.6, "high": 1.0, "per": ["sources"]}
        space["optimizer"] = "greedy-soup"

    file = tiny_study(without)
    line = line_of(file, "optimizer:")
    said = complaint("search", "space.yaml", "--dry-run")
    assert f"space.yaml:{line}: optimizer: greedy-soup goes by the uniform average, which the space" in said
    assert "optimizer: path goes by the base, which" in complaint("search", "space.yaml", "--optimizer", "path")


def test_settings_name_themselves(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    assert "--set: genes.weight" in complaint("search", "space.yaml", "--set", "genes.weight.high=-1")
    assert "--set" in complaint("search", "space.yaml", "--set", "novalue")


def damage(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_truncated_weights(tiny_study: Study, complaint: Check) -> None:
    file = tiny_study().parent / "models/two/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    said = complaint("search", "space.yaml")
    assert "space.yaml:" in said
    assert "model.safetensors" in said
    assert "truncated" in said


def test_corrupt_weights(tiny_study: Study, complaint: Check) -> None:
    file = tiny_study().parent / "models/two/model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    assert "model.safetensors" in complaint("search", "space.yaml")


def test_shapes_differ(tiny_study: Study, complaint: Check) -> None:
    folder = tiny_study().parent
    save_tiny(folder / "models/two", 9, intermediate_size=32)
    said = complaint("search", "space.yaml")
    assert "mlp.down_proj.weight is [16, 32], in the base [16, 24]" in said


def test_architectures_differ(tiny_study: Study, complaint: Check) -> None:
    file = tiny_study().parent / "models/two/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "mistral"}))
    assert "two is a mistral model, the base is a llama model" in complaint("search", "space.yaml")


def test_nan_in_weights(tiny_study: Study, complaint: Check) -> None:
    folder = tiny_study().parent / "models/two"
    damage(folder, lambda t: t["model.norm.weight"].__setitem__(0, float("nan")))
    said = complaint("search", "space.yaml")
    assert "model.norm.weight holds 1 values that are NaN or Inf" in said


def test_quantized_checkpoint(tiny_study: Study, complaint: Check) -> None:
    file = tiny_study().parent / "models/two/config.json"
    about = {"quant_method": "hqq"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": about}))
    said = complaint("search", "space.yaml")
    assert "quantized" in said
    assert "dequantize" in said


def test_slice_without_items(tiny_study: Study, complaint: Check) -> None:
    space = tiny_study()
    (space.parent / "tasks/tiny_b.jsonl").write_text(
        (space.parent / "tasks/tiny_b.jsonl").read_text().split("\n")[0] + "\n"
    )
    said = complaint("search", "space.yaml")
    assert "fitness.yaml:" in said
    assert "slices.b" in said
    assert "no items" in said


def test_run_name_taken(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=5)
    before = RunFolder.named("space").journal.read_bytes()
    said = complaint("search", "space.yaml", wrote_nothing=False)
    assert "the run 'space' is there already" in said
    assert "`evomerge resume space`" in said
    assert RunFolder.named("space").journal.read_bytes() == before


def test_unknown_run(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=5)
    assert "did you mean 'space'?" in complaint("resume", "spcae", wrote_nothing=False)
    assert "no run 'spcae'" in complaint("status", "spcae", wrote_nothing=False)


def test_run_held_by_another_process(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=5)
    code = (
        "import sys; from evomerge.study.run.folder import RunFolder\n"
        "with RunFolder.named('space').lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        said = complaint("resume", "space", wrote_nothing=False)
    finally:
        holder.communicate("")
    assert f"held by process {holder.pid}" in said
    assert main(["resume", "space"]) == 0


def test_full_disk_leaves_the_study_intact(
    tiny_study: Study, complaint: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny_study()
    evomerge.search(space, run="whole", trials=9)
    append = Journal.append_logs
    calls = []

    def full(self: Journal, logs: list[dict[str, Any]]) -> None:
        calls.append(1)
        if len(calls) == 40:
            with open(self.file, "ab") as stream:
                stream.write(json.dumps(logs[0]).encode()[:15])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, logs)

    monkeypatch.setattr(Journal, "append_logs", full)
    said = complaint("search", "space.yaml", "--run", "cut", "--trials", 9, wrote_nothing=False)
    assert "is full; every finished trial is kept" in said
    assert "evomerge resume cut" in said
    monkeypatch.setattr(Journal, "append_logs", append)
    evomerge.resume("cut")
    whole, cut = (evomerge.status(run).search.trials for run in ("whole", "cut"))
    assert [(t.genome, t.scores, t.digest) for t in cut] == [(t.genome, t.scores, t.digest) for t in whole]


def test_really_full_disk(tiny_study: Study, complaint: Check, tmp_path: Path) -> None:
    space = tiny_study()
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        said = complaint("search", space, "--run", disk / "run", "--trials", 60, wrote_nothing=False)
        assert "is full; every finished trial is kept" in said
        assert evomerge.status(disk / "run").search.trials
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        evomerge.resume(disk / "run")
        assert len(evomerge.status(disk / "run").search.trials) == 60
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_export_of_unknown_trial(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=5)
    assert "has no complete trial 99" in complaint("export", "space", "--trial", 99, wrote_nothing=False)


def test_relative_floor_without_its_reference(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    said = complaint("evaluate", "models/one", "--fitness", "fitness.yaml")
    assert "--reference base=MODEL" in said


def test_no_such_device(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    assert "no device 'cuda:7' here" in complaint("search", "space.yaml", "--device", "cuda:7")


@pytest.mark.parametrize("value", ["2024-99-99", '!!int "abc"', "&a [*a]", "!!float x", '"a\\0b"'])
def test_odd_yaml_values(value: str, tiny_study: Study, complaint: Check) -> None:
    space = tiny_study()
    space.write_text(space.read_text().replace("base: models/base", f"base: {value}"))
    assert "space.yaml" in complaint("search", "space.yaml")


def test_export_to_a_bad_place(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    evomerge.search("space.yaml", trials=6)
    for place in ("no/such/x.yaml", "models"):
        assert "--output: cannot write" in complaint(
            "export", "space", "--allow-infeasible", "-o", place, wrote_nothing=False
        )


def test_runs_that_cannot_be_made(tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    Path("runs").write_text("a file")
    assert "no folder that can be written" in complaint("search", "space.yaml", wrote_nothing=False)


@pytest.mark.parametrize(
    ("flag", "value"), [("--trials", "0"), ("--trials", "-3"), ("--time", "3x"), ("--time", "0s"), ("--items", "0")]
)
def test_budgets_that_are_none(flag: str, value: str, tiny_study: Study, complaint: Check) -> None:
    tiny_study()
    assert f"error: {flag}: " in complaint("search", "space.yaml", flag, value)
    assert f"error: {flag}: " in complaint("search", "space.yaml", flag, value, "--dry-run")
