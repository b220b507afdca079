"""mergekit's YAML in and out (mergekit docs, `mergekit.config.MergeConfiguration` and `mergekit-multi`).

Read: one document, or several (all but the last named). Keys that mergekit ignores are ignored here too, except
`random_seed`, which selects the random masks. Keys that need parts that this version lacks are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import InputError, Where, suggestion
from evomerge.files.nodes import Node, from_data, load_documents, parse_documents
from evomerge.recipe.recipe import Document, Input, Recipe, Slice, to_data
from evomerge.registry import METHODS

_KNOWN = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "name",
          "tokenizer_source", "tokenizer", "chat_template", "random_seed", "modules"}  # fmt: skip


def read_recipe(file: Path) -> Recipe:
    """Read a recipe file. Raises InputError with file, line and key."""
    return _recipe(load_documents(file), Where(file))


def parse_recipe(text: str, file: Path | str = "recipe") -> Recipe:
    return _recipe(parse_documents(text, file), Where(file))


def recipe_from_data(data: list[dict[str, Any]]) -> Recipe:
    """The recipe of `recipe.to_data`'s mappings."""
    where = Where("recipe")
    return _recipe([from_data(document, where) for document in data], where)


def write_recipe(recipe: Recipe, header: str = "") -> str:
    """The recipe as YAML that mergekit-yaml (one document) or mergekit-multi (several) takes; numbers keep all
    their digits. `header` lines become comments."""
    comments = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    return comments + yaml.dump_all(to_data(recipe), Dumper=_Dumper, sort_keys=False, width=110)


_PARAMETERS = {p.name for method in METHODS.values() for p in method.parameters} | {
    "int8_mask", "gamma", "epsilon", "nuslerp_flatten", "nuslerp_row_wise", "normalize_weights", "eps", "max_iter",
    "tol", "filter_wise", "select_topk", "r", "alpha", "embed_slerp",
}  # fmt: skip
"""Every parameter of mergekit's methods. One that the recipe's method does not take is ignored, as mergekit does; a
name that no method takes is a typo."""


class _Dumper(yaml.SafeDumper):
    """Writes short number lists on one line and never uses anchors, which some readers refuse."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: _Dumper, data: Any) -> yaml.Node:
    flat = all(not isinstance(v, list | dict) for v in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)


def _recipe(nodes: list[Node], where: Where) -> Recipe:
    if not nodes:
        raise InputError("is empty", "write a mergekit recipe", where)
    documents: list[Document] = []
    for i, node in enumerate(nodes):
        document = _document(node)
        if i < len(nodes) - 1 and not document.name:
            node.fail("has no 'name'", "only the last document may go without, the others are named to be used by it")
        if document.name and document.name in {d.name for d in documents}:
            node.fail(f"the name {document.name!r} stands twice", "give each document its own", "name")
        documents.append(document)
    return Recipe(tuple(documents))


def _document(node: Node) -> Document:
    parts = node.mapping(["merge_method"])
    given = [k for k in ("models", "slices", "modules") if k in parts]
    if len(given) != 1:
        close = next((suggestion(k, _KNOWN) for k in parts if k not in _KNOWN), "give one of them")
        node.fail("needs exactly one of models, slices and modules", close)
    if given == ["modules"]:
        parts["modules"].fail("recipes for models of several modules are not supported yet", "merge them one by one")
    method = parts["merge_method"].one_of(METHODS, "merge method")
    base = _reference(parts["base_model"]) if parts.get("base_model") and parts["base_model"].value else None
    slices = _models(parts["models"], base) if "models" in parts else _slices(parts["slices"])
    return Document(
        method=method,
        slices=slices,
        base=base,
        parameters=_parameters(parts.get("parameters")),
        dtype=_dtype(parts.get("dtype")),
        out_dtype=_dtype(parts.get("out_dtype")),
        tokenizer_source=_tokenizer(parts),
        chat_template=_text(parts.get("chat_template")),
        name=_text(parts.get("name")),
        seed=parts["random_seed"].integer(0, 2**63 - 1) if _given(parts.get("random_seed")) else 0,
        where=node.where,
    )


def _given(node: Node | None) -> bool:
    return node is not None and node.value is not None


def _text(node: Node | None) -> str | None:
    return node.text() if node is not None and node.value is not None else None


def _tokenizer(parts: dict[str, Node]) -> str | None:
    if _given(parts.get("tokenizer")):
        parts["tokenizer"].fail("token policies are not supported yet", "use tokenizer_source: base, or remove it")
    return _text(parts.get("tokenizer_source"))


_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float": "float32", "half": "float16"}


def _dtype(node: Node | None) -> str | None:
    if node is None or node.value is None:
        return None
    name = node.text().removeprefix("torch.")
    if name not in _DTYPES:
        node.fail(f"unknown dtype {name!r}", suggestion(name, _DTYPES))
    return _DTYPES[name]


def _reference(node: Node) -> str:
    if isinstance(node.value, dict):
        node.fail("is a mapping, not a model reference", "write path[@revision]")
    return node.text()


def _models(node: Node, base: str | None) -> tuple[Slice, ...]:
    inputs = [_input(child, layered=False) for child in node.sequence()]
    if not inputs:
        node.fail("names no model", "list at least one")
    # mergekit appends a base that is not listed, without parameters.
    if base and base not in {i.model for i in inputs}:
        inputs.append(Input(base, where=node.where))
    _check_twice(node, inputs)
    return (Slice(tuple(inputs), where=node.where),)


def _slices(node: Node) -> tuple[Slice, ...]:
    slices = []
    for child in node.sequence():
        parts = child.mapping(["sources"])
        inputs = [_input(source, layered=True) for source in parts["sources"].sequence()]
        if not inputs:
            parts["sources"].fail("names no model", "list at least one")
        _check_twice(child, inputs)
        lengths = {i.layers[1] - i.layers[0] for i in inputs if i.layers}
        if len(lengths) != 1:
            child.fail("its layer ranges differ in length", "give every source of a slice equally many layers")
        slices.append(Slice(tuple(inputs), _parameters(parts.get("parameters")), child.where))
    if not slices:
        node.fail("names no slice", "list at least one")
    return tuple(slices)


def _check_twice(node: Node, inputs: list[Input]) -> None:
    names = [i.model for i in inputs]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        node.fail(f"the model {twice!r} is listed twice", "list each model once")


def _input(node: Node, layered: bool) -> Input:
    parts = node.mapping(["model", "layer_range"] if layered else ["model"])
    layers = None
    if layered:
        pair = parts["layer_range"].sequence()
        if len(pair) != 2:
            parts["layer_range"].fail(
                f"is {parts['layer_range'].shown()}, not [start, end]", "write for example [0, 8]"
            )
        layers = (pair[0].integer(0), pair[1].integer(1))
        if layers[1] <= layers[0]:
            parts["layer_range"].fail(f"{list(layers)} is empty", "the end comes after the start")
    return Input(_reference(parts["model"]), layers, _parameters(parts.get("parameters")), node.where)


def _parameters(node: Node | None) -> dict[str, Any]:
    if node is None or node.value is None:
        return {}
    return {name: _value(child) for name, child in node.mapping((), _PARAMETERS).items()}


def _value(node: Node) -> Any:
    """A scalar, a gradient, or filtered entries, checked for its form; the method checks its range."""
    if isinstance(node.value, dict):
        return [_entry(node)]
    if isinstance(node.value, list):
        if not node.value:
            node.fail("is an empty list", "give a number, a list of numbers, or entries of filter and value")
        if any(isinstance(child.value, dict) for child in node.value):
            return [_entry(child) for child in node.value]
        return tuple(child.number() for child in node.value)
    return node.value if isinstance(node.value, bool) or node.value is None else node.number()


def _entry(node: Node) -> dict[str, Any]:
    parts = node.mapping(["value"], ["filter"])
    value = _value(parts["value"])
    return {"filter": _text(parts["filter"]), "value": value} if _given(parts.get("filter")) else {"value": value}
