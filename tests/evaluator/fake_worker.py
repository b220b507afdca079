"""A worker without a model, which takes no time to load, and jobs that only it can do."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import attempt
from evomerge.evaluator.worker import _Pipe
from evomerge.scoring.slices import SuiteInfo

START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from tests.evaluator.fake_worker import main; main()"


@dataclass(frozen=True, eq=False)
class Saying:
    """Gives what it says, or dies: each time, or unless `marker`, which it makes, is there."""

    word: str
    dies: bool = False
    marker: str | None = None
    recipe: Any = None

    def run(self, bench: Any, on_slice: Any) -> Any:
        on_slice(self.word)
        if self.dies or (self.marker and not os.path.exists(self.marker)):
            if self.marker:
                open(self.marker, "w").close()
            os.kill(os.getpid(), 9)
        if self.word == "no":
            raise TrialError("no")
        return self.word, os.getpid(), int(os.environ["OMP_NUM_THREADS"])


def main() -> None:
    pipe = _Pipe(int(sys.argv[1]))
    setup = pipe.receive()
    if setup.share.device == "nowhere":
        pipe.send("error", InputError("no device 'nowhere' here", "use cpu"))
        return
    if setup.share.device == "deadly" or os.path.exists(setup.share.device):
        os.kill(os.getpid(), 9)
    pipe.send("placed")
    pipe.receive()
    pipe.send("ready", SuiteInfo({}, ()), {}, setup.share.device)
    while True:
        pipe.send("result", attempt(pipe.receive(), None, lambda name: pipe.send("observe", "slice_started", name)))  # type: ignore[arg-type]
