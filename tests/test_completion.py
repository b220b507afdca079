"""Completion: bash takes the script, and completes commands, options and runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from evomerge.cli import COMMANDS, main
from evomerge.completion import SHELLS


@pytest.fixture
def script(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab", reason="needs shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--completion", request.param])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_each_shell_gets_all_commands(script: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert all(name in script for name in (*COMMANDS, "workers", "fitness"))
    shell = request.node.callspec.params["script"]
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def completed(script: str, line: str, folder: Path) -> set[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    code = (
        f"{script}\nCOMP_WORDS=({' '.join(repr(w) for w in words)})\nCOMP_CWORD={len(words) - 1}\n"
        f"COMP_LINE={line!r}\nCOMP_POINT={len(line)}\n"
        'f=$(complete -p evomerge | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n$f\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    return {word.strip() for word in done.stdout.split("\n")} - {""}


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script: str, tmp_path: Path) -> None:
    (tmp_path / "runs/support").mkdir(parents=True)
    (tmp_path / "space.yaml").write_text("")
    assert completed(script, "evomerge resu", tmp_path) == {"resume"}
    assert completed(script, "evomerge search --tri", tmp_path) == {"--trials"}
    assert completed(script, "evomerge resume sup", tmp_path) == {"support"}
    assert "space.yaml" in completed(script, "evomerge search sp", tmp_path)


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--completion", "csh"]) == 2
    assert "none of bash, zsh, fish" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["--completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "error: --completion: shtab is not installed; pip install 'evomerge[completion]'\n"
    )
