"""Settings of the command line (``--set dotted.key=value``), laid over the tree of a file."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.escape import quoted, shortened
from evomerge.files.nodes import Node, from_data
from evomerge.files.trees import DEEPEST, LONGEST_KEY, parse_documents


def override(root: Node, setting: str, folder: Path | None = None) -> None:
    """Applies one ``dotted.key=value`` setting to a tree, creating the mappings on its way.

    Args:
        root: the tree, which is changed.
        setting: the text; the value is YAML.
        folder: where relative paths in the value start; by default the current folder.

    Raises:
        InputError: there is no key, it runs through a value that is not a mapping, or the value is not YAML.
    """
    dotted, equals, text = setting.partition("=")
    keys = dotted.strip().split(".")
    shown = shortened(dotted.strip(), 100)
    where = Where("--set", None, shown or None, folder)
    if not equals or not dotted.strip():
        problem = f"{quoted(setting, 100)} has no `key=value`"
        raise InputError(problem, "write for example --set budget.trials=50", where)
    if len(keys) > DEEPEST // 2 or len(dotted) > LONGEST_KEY:
        raise InputError(f"a key of {len(keys)} parts and {len(dotted):,} characters", "check the key", where)
    parsed = parse_documents(text, "--set") or [Node(None, where)]
    if len(parsed) > 1:
        raise InputError(f"holds {len(parsed)} YAML documents, expected 1", "give one value", where)
    target = root
    if keys[0] == "optimizer" and isinstance(root.value, dict):
        _spell_out(root.value, "optimizer", "name")
    for key in keys[:-1]:
        if not isinstance(target.value, dict):
            raise InputError("runs through a value that is not a mapping", "check the key", where)
        target = target.value.setdefault(key, Node({}, where))
    if not isinstance(target.value, dict):
        raise InputError("runs through a value that is not a mapping", "check the key", where)
    target.value[keys[-1]] = from_data(parsed[0].data, where)


def _spell_out(parent: dict[str, Node], key: str, name: str) -> None:
    """Writes the short form ``key: value`` as ``key: {name: value}``, so that a setting can go below `key`."""
    node = parent.get(key)
    if node is not None and isinstance(node.value, str):
        parent[key] = Node({name: node}, node.where)
