"""Lets mkdocstrings see public functions that are made by a wrapper: `search = returns_study(launching.search)`."""

from __future__ import annotations

import copy
from typing import Any

import griffe


class Wrapped(griffe.Extension):
    """Describes such a name as the function that is wrapped, with what the wrapper makes it return."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for name in pkg.exports or ():
            made = pkg[str(name)].final_target
            if made.is_attribute and isinstance(made.value, griffe.ExprCall):
                inner = pkg.modules_collection[made.value.arguments[0].canonical_path]
                function = copy.copy(inner)
                # of `-> Callable[P, Study]` the last part
                function.returns = made.parent[made.value.function.name].returns.slice.elements[-1]
                function.parent = None
                made.parent.set_member(made.name, function)
