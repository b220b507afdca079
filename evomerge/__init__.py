"""evomerge searches for the best way to merge fine-tuned language models.

Every command is a function here: ``evomerge.search("space.yaml")``; that of `evomerge report` is ``write_report``, as
``evomerge.report`` is the package that makes tables and pages. They are imported when first used, because
torch, transformers and lm-eval take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.demo.run import quickstart
    from evomerge.errors import EvomergeError, InputError
    from evomerge.examine.align import align
    from evomerge.examine.check import check
    from evomerge.examine.doctor import doctor
    from evomerge.examine.evaluate import evaluate
    from evomerge.examine.extract import extract
    from evomerge.examine.init import init
    from evomerge.examine.path import path
    from evomerge.examine.reproduce import reproduce
    from evomerge.merging.disk.stream import merge
    from evomerge.merging.state_dicts import merge_tensors
    from evomerge.report.notebook import ScoredTrial, Study, open_run, resume, search
    from evomerge.report.page.write import write_report
    from evomerge.study.after.compare import compare
    from evomerge.study.after.dashboard import dashboard
    from evomerge.study.after.export import export
    from evomerge.study.after.rank import rank
    from evomerge.study.after.status import runs, status
    from evomerge.study.observer import Observer
    from evomerge.study.trackers.tracker import Tracker

__version__ = "0.1.0"
__all__ = [
    "EvomergeError",
    "InputError",
    "Observer",
    "ScoredTrial",
    "Study",
    "Tracker",
    "align",
    "check",
    "compare",
    "dashboard",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "init",
    "merge",
    "merge_tensors",
    "open_run",
    "path",
    "quickstart",
    "rank",
    "reproduce",
    "resume",
    "runs",
    "search",
    "status",
    "write_report",
]

_HOMES = {
    "EvomergeError": "evomerge.errors",
    "InputError": "evomerge.errors",
    "Observer": "evomerge.study.observer",
    "ScoredTrial": "evomerge.report.notebook",
    "Study": "evomerge.report.notebook",
    "Tracker": "evomerge.study.trackers.tracker",
    "align": "evomerge.examine.align",
    "check": "evomerge.examine.check",
    "compare": "evomerge.study.after.compare",
    "dashboard": "evomerge.study.after.dashboard",
    "doctor": "evomerge.examine.doctor",
    "evaluate": "evomerge.examine.evaluate",
    "export": "evomerge.study.after.export",
    "extract": "evomerge.examine.extract",
    "init": "evomerge.examine.init",
    "merge": "evomerge.merging.disk.stream",
    "merge_tensors": "evomerge.merging.state_dicts",
    "open_run": "evomerge.report.notebook",
    "path": "evomerge.examine.path",
    "quickstart": "evomerge.demo.run",
    "rank": "evomerge.study.after.rank",
    "reproduce": "evomerge.examine.reproduce",
    "resume": "evomerge.report.notebook",
    "runs": "evomerge.study.after.status",
    "search": "evomerge.report.notebook",
    "status": "evomerge.study.after.status",
    "write_report": "evomerge.report.page.write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
