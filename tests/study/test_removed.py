"""A run of an earlier version that used what was removed cannot be resumed, and says so; the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import evomerge
from evomerge.cli import main
from evomerge.study.run.folder import RunFolder

Study = Callable[..., Path]


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        (
            "name: random",
            "name: gp",
            "the run 'space' cannot be resumed: the optimizer gp was removed; launch a new",
        ),
        ("name: random", "name: nsga-iii", "cannot be resumed: the optimizer nsga-iii was removed; launch a new run"),
        (
            "    per:\n",
            "    smooth: 2.0\n    per:\n",
            "`smooth` was removed; launch a new run; status, rank",
        ),
    ],
)
def test_a_run_that_used_it_says_so(
    tiny_study: Study, capsys: pytest.CaptureFixture[str], now: str, before: str, said: str
) -> None:
    evomerge.search(tiny_study(), optimizer="random", trials=5)
    own = RunFolder.named("space").space
    assert now in own.read_text()
    own.write_text(own.read_text().replace(now, before))
    capsys.readouterr()
    assert main(["resume", "space", "--trials", "6"]) == 2
    assert said in capsys.readouterr().err
    assert main(["status", "space"]) == 0  # what is recorded is still shown
    if "gp" in before:  # and can be begun with
        assert evomerge.search(tiny_study(), run="next", trials=6, from_run="space:4").search.trials[4].genome


@pytest.mark.parametrize("neutral", ["0", "0.0", "false", "null"])
def test_a_run_that_did_not_use_it_opens(tiny_study: Study, neutral: str) -> None:
    evomerge.search(tiny_study(), optimizer="random", trials=5)
    own = RunFolder.named("space").space
    own.write_text(own.read_text().replace("    per:\n", f"    smooth: {neutral}\n    per:\n"))
    assert len(evomerge.resume("space", trials=6).search.trials) == 6
