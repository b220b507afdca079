"""Remembers the attributes of an object, and puts them back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from evomerge.scoring.settings import now_and_then

_CONTAINERS = (dict, OrderedDict, list, tuple, set)
_DEPTH = 5
"""How deep containers in containers are remembered: a configuration has three levels."""
_LOST = object()


class Attributes:
    """An object's instance attributes as they are now. What a container holds is remembered, too; of any other object
    only which one it is."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self._now: dict[str, Any] = vars(owner)
        self._then = dict(self._now)
        containers = {key: value for key, value in self._now.items() if type(value) in _CONTAINERS}
        self._inside = {key: _copy(value) for key, value in containers.items() if value}
        self._empty = [(key, value) for key, value in containers.items() if not value]

    def changed(self) -> list[str]:
        """The names of the attributes that are not as they were."""
        then, now, inside = self._then, self._now, self._inside
        # A module has some thirty attributes, most of them the same objects or empty: those take little time.
        others = [k for k, v in then.items() if now.get(k, _LOST) is not v and not _same(now.get(k, _LOST), v)]
        filled = [key for key, value in self._empty if value and key not in others]
        filled += [key for key, value in inside.items() if key not in others and not _same(now.get(key, _LOST), value)]
        added = [key for key in now if key not in then] if len(now) > len(then) - len(others) else []
        return [*others, *filled, *added]

    def values(self, key: str) -> tuple[Any, Any]:
        """An attribute as it was and as it is; None where it was or is not there."""
        return self._then.get(key), self._now.get(key)

    def is_new(self, key: str) -> bool:
        return key not in self._then

    def difference(self, key: str) -> str:
        """``4 -> 1``: an attribute as it was and as it is."""
        then = self._inside.get(key, self._then.get(key, "nothing"))
        return now_and_then(then, self._now.get(key, "nothing"))

    def put_back(self, key: str) -> None:
        """Gives the object an attribute as it was, in the same container."""
        if key not in self._then:
            self._now.pop(key, None)
            return
        value = self._now[key] = self._then[key]
        inside = _copy(self._inside.get(key, type(value)() if type(value) in _CONTAINERS else None))
        if isinstance(inside, list) and isinstance(value, list):
            value[:] = inside
        elif isinstance(inside, dict | set):
            value.clear()
            value.update(inside)


def _copy(value: Any, depth: int = _DEPTH) -> Any:
    """A copy of nested containers that holds the same objects."""
    kind = type(value)
    if not depth:
        return value
    if kind is dict or kind is OrderedDict:
        return {key: _copy(inner, depth - 1) for key, inner in value.items()} if value else {}
    if kind is list or kind is tuple:
        return [_copy(inner, depth - 1) for inner in value]
    return set(value) if kind is set else value


def _same(now: Any, then: Any) -> bool:
    """Whether a value is what it was. `then`: of a container, its copy."""
    if now is then:
        return True
    kind = type(now)
    if kind is dict or kind is OrderedDict:
        return isinstance(then, dict) and now.keys() == then.keys() and all(_same(now[k], v) for k, v in then.items())
    if kind is list or kind is tuple:
        return isinstance(then, list | tuple) and len(now) == len(then) and all(map(_same, now, then))
    if kind is set:
        return isinstance(then, set) and now == then
    return kind in (bool, int, float, str, bytes) and kind is type(then) and bool(now == then)
