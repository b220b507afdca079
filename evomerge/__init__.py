"""evomerge searches for the best way to merge fine-tuned language models.

Every command is a function here: ``evomerge.search("space.yaml")``. They are imported when first used, because
torch, transformers and lm-eval take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.demo.run import quickstart
    from evomerge.examine.align import align
    from evomerge.examine.check import check
    from evomerge.examine.doctor import doctor
    from evomerge.examine.evaluate import evaluate
    from evomerge.examine.init import init
    from evomerge.examine.path import path
    from evomerge.merging.disk.stream import merge
    from evomerge.study.after.compare import compare
    from evomerge.study.after.dashboard import dashboard
    from evomerge.study.after.export import export
    from evomerge.study.after.rank import rank
    from evomerge.study.after.status import runs, status
    from evomerge.study.search import resume, search

__version__ = "0.1.0"
__all__ = [
    "align",
    "check",
    "compare",
    "dashboard",
    "doctor",
    "evaluate",
    "export",
    "init",
    "merge",
    "path",
    "quickstart",
    "rank",
    "resume",
    "runs",
    "search",
    "status",
]

_HOMES = {
    "align": "evomerge.examine.align",
    "check": "evomerge.examine.check",
    "compare": "evomerge.study.after.compare",
    "dashboard": "evomerge.study.after.dashboard",
    "doctor": "evomerge.examine.doctor",
    "evaluate": "evomerge.examine.evaluate",
    "export": "evomerge.study.after.export",
    "init": "evomerge.examine.init",
    "merge": "evomerge.merging.disk.stream",
    "path": "evomerge.examine.path",
    "quickstart": "evomerge.demo.run",
    "rank": "evomerge.study.after.rank",
    "resume": "evomerge.study.search",
    "runs": "evomerge.study.after.status",
    "search": "evomerge.study.search",
    "status": "evomerge.study.after.status",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
