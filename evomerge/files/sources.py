"""The sources of a search space: by name, as a pool of all models that match, or as the checkpoints of a training run.

A pattern is resolved when its file is read. A run keeps the list that it was launched with, and reads its file's
patterns again with that list alone.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from evomerge.files.common import read_model, read_source, resolve, start_of
from evomerge.files.keys import TRAJECTORY
from evomerge.files.kinds import folder_kind
from evomerge.files.nodes import Node
from evomerge.files.objects import CURVES, DECAY, Matched, ModelRef, Trajectory
from evomerge.safety.names import LONGEST, check_name
from evomerge.safety.paths import expanded, status

MOST_POOLED = 50
MOST_CHECKPOINTS = 16
"""The most checkpoints of a trajectory, its last ones, unless the gene `window` reaches further."""

_MOST_MATCHES = 10_000
_RESERVED = ("base", "best_source", "uniform", "winner")
_WILD = re.compile(r"[*?]|\[[^\]]+\]")
_GGUF = ".gguf"


@dataclass
class Sources:
    """The sources as read: the models by name (of a trajectory the newest checkpoint), the trajectories, and what
    patterns matched (None: there are none)."""

    refs: dict[str, ModelRef] = field(default_factory=dict)
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    matched: Matched | None = None


class SourceReader:
    """Reads `sources`. `base`: the space's. `known`: the paths that patterns may match; None: all."""

    def __init__(self, base: ModelRef, known: Collection[str] | None = None) -> None:
        self._base, self._known = base, known
        self._models: list[str] = []
        self._notes: list[str] = []

    def read(self, node: Node, can_be_none: bool = False, window: int | None = None) -> Sources:
        """`window`: how many checkpoints of a trajectory can take part, at most. Raises InputError."""
        pool = node if isinstance(node.value, list) else self._pool_in(node)
        if pool is not None:
            refs = self._pooled(pool)
            return Sources(refs, {}, Matched(tuple(self._models), tuple(self._notes), pool=True))
        if not isinstance(node.value, dict):
            mend = "write for example sources: {code: path/of/it}, a list, or {pool: models/*}"
            node.fail(f"is {node.shown()}, and each source needs a name", mend)
        sources = Sources()
        for name, child in node.mapping().items():
            check_source_name(name, child)
            if isinstance(child.value, dict) and not child.value.keys().isdisjoint({"glob", "checkpoints", "curve"}):
                trajectory = self._trajectory(child, window or MOST_CHECKPOINTS)
                sources.trajectories[name] = trajectory
                sources.refs[name] = trajectory.checkpoints[-1]
            else:
                sources.refs[name] = read_source(child)
        if not sources.refs and not can_be_none:
            node.fail("names no source", "add at least one fine-tune of the base")
        if self._models:
            sources.matched = Matched(tuple(self._models), tuple(self._notes))
        return sources

    # Pools.

    def _pool_in(self, node: Node) -> Node | None:
        """The node of ``{pool: ...}``; None where `pool` is a source's name, or there is none."""
        pool: Node | None = node.value.get("pool") if isinstance(node.value, dict) else None
        if pool is None or not (isinstance(pool.value, list) or self._is_pattern(pool)):
            return None
        other = next((child for name, child in node.value.items() if name != "pool"), None)
        if other is not None:
            other.fail("stands beside a pool", "list it in the pool: pool: [models/*, path/of/it]")
        return pool

    def _pooled(self, node: Node) -> dict[str, ModelRef]:
        entries = node.sequence() if isinstance(node.value, list) else [node]
        refs = _named({str(ref): ref for child in entries for ref in self._entries(child)}.values())
        if not refs:
            node.fail("names no source", "name models, or a pattern that matches some")
        if len(refs) > MOST_POOLED:
            node.fail(f"{len(refs)} models are more than the {MOST_POOLED} of a pool", "narrow the pattern")
        return refs

    def _entries(self, node: Node) -> Iterator[ModelRef]:
        if not self._is_pattern(node):
            yield read_source(node)
            return
        for path in self._matches(node):
            if str(path) == self._base.path:
                self._notes.append(f"{node.value}: {path.name} is the base, and no source")
            else:
                yield self._model(node, path)

    # Trajectories.

    def _trajectory(self, node: Node, most: int) -> Trajectory:
        parts = node.declared(TRAJECTORY, "{glob: ckpt-*, curve: decay}")
        if ("glob" in parts) == ("checkpoints" in parts):
            node.fail("needs `glob` or `checkpoints`", "write for example {glob: ckpt-*, curve: decay}")
        curve = parts["curve"].one_of(CURVES, "curve") if "curve" in parts else DECAY
        if "glob" in parts:
            refs = [self._model(parts["glob"], path) for path in self._matches(parts["glob"])]
        else:
            refs = [read_model(child) for child in parts["checkpoints"].sequence()]
        at = parts.get("glob") or parts["checkpoints"]
        refs = self._without_base(at, refs)
        if len(refs) < 2:
            problem = f"{len(refs) or 'no'} checkpoint{'' if len(refs) == 1 else 's'} beside the base"
            at.fail(f"{problem}, and an average needs two", "name more checkpoints of the run")
        return Trajectory(tuple(refs[-most:]), curve)

    def _without_base(self, node: Node, refs: list[ModelRef]) -> list[ModelRef]:
        """The checkpoints without the base, which may be the oldest one: recipes name a model once."""
        at = next((k for k, ref in enumerate(refs) if str(ref) == str(self._base)), None)
        if at is None:
            return refs
        if at > 0:
            problem = f"the base is {Path(refs[at].path).name}, which is not the oldest of these checkpoints"
            node.fail(problem, f"give as base {refs[0]}, or a model from before")
        self._notes.append(f"{Path(refs[0].path).name} is the base, and no checkpoint of the average")
        return refs[1:]

    # Patterns.

    def _is_pattern(self, node: Node) -> bool:
        text = node.value
        return isinstance(text, str) and bool(_WILD.search(text)) and status(resolve(node), node.where) is None

    def _matches(self, node: Node) -> list[Path]:
        """The models that a pattern matches, in natural order. InputError where there is none."""
        text = str(expanded(node.text(), node.where))
        start = start_of(node)
        found = sorted(islice(glob.iglob(text, root_dir=start, recursive=True), _MOST_MATCHES), key=natural)
        names: dict[Path, str] = {}
        for name in sorted(found, key=lambda name: os.path.islink(start / name)):  # a link only where it stands alone
            names.setdefault((start / name).resolve(), name)
        models = sorted((path for path in names if _is_model(path)), key=lambda path: natural(names[path]))
        if not models:
            shown = ", ".join(Path(name).name for name in found[:3])
            problem = f"{len(found)} matches, and none is a checkpoint ({shown})" if found else "matches nothing"
            node.fail(f"{node.value}: {problem}", "a checkpoint is a folder that holds config.json")
        if len(models) < len(found):
            others = [start / name for name in found if name != names[(start / name).resolve()]]
            self._notes.append(f"{node.value}: left out {_listed([p for p in names if p not in models], others)}")
        self._models += map(str, models)
        return models if self._known is None else _kept(node, models, self._known)

    def _model(self, node: Node, path: Path) -> ModelRef:
        return read_model(Node(str(path), node.where))


def _kept(node: Node, models: list[Path], known: Container[str]) -> list[Path]:
    kept = [path for path in models if str(path) in known]
    if not kept:
        node.fail(f"{node.value}: matches none of the models that it matched", "restore them")
    return kept


def _listed(strangers: Sequence[Path], links: Sequence[Path]) -> str:
    """What a pattern matched that is no checkpoint, and further links to checkpoints."""
    parts = [f"{path.name} (no checkpoint)" for path in strangers]
    parts += [f"{path.name} (a link to {path.resolve().name})" for path in links]
    return ", ".join(parts[:6]) + (f" and {len(parts) - 6} more" if len(parts) > 6 else "")


def _is_model(path: Path) -> bool:
    kind = folder_kind(path)
    return (kind is not None and kind.is_model) or (path.suffix == _GGUF and os.path.isfile(path))


def natural(text: str) -> tuple[list[str | int], str]:
    """The key of the natural order, in which ckpt-20 stands before ckpt-100."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)], text


def check_source_name(name: str, node: Node) -> None:
    """InputError where a text cannot name a source."""
    check_name(name, "source", node.where)
    if name in _RESERVED[:3] or not _identifies(name):
        node.fail(f"{name!r} cannot name a source", "use letters, digits, - and _; base is taken")


def _identifies(name: str) -> bool:
    return name.replace("-", "_").replace(".", "_").isidentifier()


def _named(refs: Collection[ModelRef]) -> dict[str, ModelRef]:
    """A pool's models by name: that of the folder, with its parent's where several folders have one name."""
    parts = [ref.path.rpartition("+")[2].rstrip("/").split("/") for ref in refs]
    count = Counter(names[-1] for names in parts)
    named: dict[str, ModelRef] = {}
    for ref, names in zip(refs, parts, strict=True):
        text = "-".join(names[-2:]) if count[names[-1]] > 1 else names[-1]
        name = _as_name(text.removesuffix(_GGUF))
        free = (f"{name}{number}" for number in ("", *(f"-{k}" for k in range(2, len(parts) + 2))))
        named[next(text for text in free if text not in named and text not in _RESERVED)] = ref
    return named


def _as_name(text: str) -> str:
    """The nearest text that can name a source."""
    name = "".join(c if c in "-." or f"_{c}".isidentifier() else "_" for c in text).lstrip("-.")[: LONGEST - 8]
    return name if _identifies(name) else f"_{name}"
