"""Every step of a merge that writes fails in turn: one line names it, nothing is left, an old checkpoint stays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from evomerge.checkpoints import partial
from evomerge.cli import main
from tests.faults import chosen, failing

WAYS = {
    "full": {"error": errno.ENOSPC},
    "quota": {"error": errno.EDQUOT, "forever": False},
    "read-only": {"error": errno.EROFS},
    "once": {"error": errno.EIO, "forever": False},
}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("overwrite", "exchanged"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("way", WAYS)
def test_every_write_of_a_merge_fails_in_turn(
    way, overwrite, exchanged, models, tmp_path, capsys, request, monkeypatch
):
    if not exchanged:
        monkeypatch.setattr(partial, "exchange", lambda one, other: False)
    disk, file = tmp_path / "disk", tmp_path / "recipe.yaml"
    file.write_text(
        f"name: mean\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {models['a']}}}]\n---\n"
        f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: mean}}, {{model: {models['b']}}}]\n"
        "tokenizer_source: union\n"
    )
    words = ["merge", str(file), str(disk / "out"), "-I", str(disk / "in"), "--out-shard-size", "20KB", "-j", "1"]
    if overwrite:
        words.append("--overwrite")
    old = {}
    if overwrite:
        assert main([*words, "--no-write-model-card"]) == 0
        old = everything(disk)
    shutil.copytree(disk, tmp_path / "before") if overwrite else (tmp_path / "before").mkdir()

    def fresh():
        shutil.rmtree(disk, ignore_errors=True)
        shutil.copytree(tmp_path / "before", disk)

    fresh()
    with failing(disk) as steps:
        assert main(words) == 0
    new = everything(disk)
    outputs = [disk / "in" / "mean", disk / "out"]
    faults = []
    for at in chosen(steps, 5, request, list(WAYS).index(way) + 4 * exchanged):
        fresh()
        capsys.readouterr()
        with failing(disk, at, **WAYS[way]) as failed:
            code = main(words)
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        left = everything(disk)
        visible = {name: content for name, content in left.items() if "/." not in f"/{name}"}
        hidden = sorted(left.keys() - visible.keys())
        problems = []
        if failed.failed and code != 0:
            if code != 2 or len(errors) != 1 or not any(str(output) in errors[0] for output in outputs):
                problems.append((code, errors))
        elif errors or visible != new:
            problems.append((code, errors, sorted(visible)))
        for output in outputs:  # each is old or new, and whole
            inside = f"{output.relative_to(disk)}/"
            kept = [{n: c for n, c in state.items() if n.startswith(inside)} for state in (visible, old, new)]
            moved_away = not exchanged and way == "read-only" and not kept[0]  # and put back below
            if kept[0] not in kept[1:] and not moved_away:
                problems.append(f"{output} is half: {sorted(kept[0])}")
        if hidden and way != "read-only" and failed.failed[0][0] not in ("unlink", "rename", "rmdir"):
            problems.append(f"left: {hidden}")
        if (code := main(words)) != 0 and not (code == 2 and visible and not overwrite):
            problems.append(f"again: {code} {capsys.readouterr().err}")
        elif code == 0 and everything(disk) != new:
            problems.append(f"again: {sorted(everything(disk))}")
        if problems:
            faults.append((at, failed.failed[:1], problems))
    for fault in faults:
        print(fault)
    assert not faults
