"""Merging. The package is also the public function: ``evomerge.merge(recipe, folder)`` is `stream.merge`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Python binds a package's name in its parent on import, so the function of that name lives in the package."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from evomerge.merge.stream import merge

        return merge(*args, **options)


sys.modules[__name__].__class__ = _Callable
