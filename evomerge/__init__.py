"""evomerge searches for the best way to merge fine-tuned language models.

Every command is a function here: ``evomerge.search("space.yaml")``. They are imported when first used, because
torch, transformers and lm-eval take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.demo.run import quickstart
    from evomerge.study.compare import compare
    from evomerge.study.evaluate import evaluate
    from evomerge.study.path import path
    from evomerge.study.rank import rank
    from evomerge.study.search import resume, search
    from evomerge.study.status import export, runs, status

from evomerge import merge

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "export", "merge", "path", "quickstart", "rank", "resume", "runs", "search", "status"]

_HOMES = {
    "compare": "evomerge.study.compare",
    "evaluate": "evomerge.study.evaluate",
    "export": "evomerge.study.status",
    "path": "evomerge.study.path",
    "quickstart": "evomerge.demo.run",
    "rank": "evomerge.study.rank",
    "resume": "evomerge.study.search",
    "runs": "evomerge.study.status",
    "search": "evomerge.study.search",
    "status": "evomerge.study.status",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
