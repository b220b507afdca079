"""The rule for names: of runs, slices, sources, documents of a recipe, and files that an index lists.

A name becomes a part of a path, a key of a table, a word on the command line. So it is never a path itself.
"""

from __future__ import annotations

from evomerge.errors import InputError, Where

LONGEST = 128
"""Characters of a name. File systems take 255 bytes, and endings are added."""


def name_fault(name: str) -> str | None:
    """What keeps a text from being a name, or None. A name has 1 to 128 characters that print, no slash or backslash,
    no space at either end, and does not begin with a dot or a dash."""
    if not name:
        return "is empty"
    if len(name) > LONGEST or len(name.encode(errors="replace")) > 200:
        return f"has {len(name)} characters"
    if any(not c.isprintable() for c in name):
        return "has characters that do not print"
    if "/" in name or "\\" in name:
        return "is a path"
    if name[0] in ".-":
        return f"begins with {name[0]!r}"
    return "has a space at an end" if name != name.strip() else None


def check_name(name: str, what: str, where: Where | None = None) -> str:
    """The name. InputError if it is none; `what` says what it names ("slice")."""
    fault = name_fault(name)
    if fault is not None:
        problem = f"{name[:60]!r} {fault}, so it cannot name a {what}"
        raise InputError(problem, "use letters, digits, _, - and .", where)
    return name
