"""Reads and writes mergekit's YAML (mergekit docs, `mergekit.config.MergeConfiguration` and `mergekit-multi`).

A file holds one document, or several in any order, all but one of them named. Keys that mergekit ignores are ignored
here too, except `random_seed`, which selects the random masks, `experts`, which says whether those of a layer are
merged as one tensor, and `adapters` and `core_rank`, which say whether adapters are merged in Core Space.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import printable
from evomerge.files.keys import required
from evomerge.files.kinds import load_recipe
from evomerge.files.nodes import MOST_LAYERS, Node, from_data
from evomerge.files.scalars import Schema
from evomerge.files.trees import parse_documents
from evomerge.recipe.keys import DOCUMENT, INPUT, LAYERS, MODULE, SLICE
from evomerge.recipe.recipe import Document, Input, Module, Recipe, Slice, to_data
from evomerge.recipe.token_rules import tokenizer_policy
from evomerge.recipe.values import dtype, is_set, parameters, reference, text
from evomerge.registry import METHODS
from evomerge.safety.names import check_name


def read_recipe(file: Path) -> Recipe:
    """Read a recipe file. Raises InputError with file, line and key."""
    return _named_recipe(load_recipe(file), Where(file))


def recipe_of(model: str | Path) -> Recipe | None:
    """Reads the recipe, if `model` is a recipe file. Raises InputError."""
    path = Path(model)
    return read_recipe(path) if path.suffix in (".yaml", ".yml") else None


def parse_recipe(content: str, file: Path | str = "recipe") -> Recipe:
    """Read a recipe from text. `file` is named in errors."""
    return _named_recipe(parse_documents(content, file, Schema.RECIPE), Where(file))


def recipe_from_data(data: list[dict[str, Any]]) -> Recipe:
    """The recipe of `recipe.to_data`'s mappings."""
    where = Where("recipe")
    return _recipe([from_data(document, where) for document in data], where)


def write_recipe(recipe: Recipe, header: str = "") -> str:
    """The recipe as YAML for mergekit-yaml (one document) or mergekit-multi (several). Numbers keep all their digits;
    the lines of `header` become comments, made printable."""
    comments = "".join(f"# {printable(line)}".rstrip() + "\n" for line in header.splitlines())
    return comments + yaml.dump_all(to_data(recipe), Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes short number lists on one line and never uses anchors, which some readers refuse."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: _Dumper, data: Any) -> yaml.Node:
    flat = all(not isinstance(v, list | dict) for v in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)


def _named_recipe(nodes: list[Node], where: Where) -> Recipe:
    """The recipe of a file that is not ours: the name of a document becomes the name of a folder."""
    for node in nodes:
        name = node.mapping().get("name")
        if name is not None and name.value is not None:
            check_name(name.text(), "document", name.where)
    return _recipe(nodes, where)


def _recipe(nodes: list[Node], where: Where) -> Recipe:
    if not nodes:
        raise InputError("is empty", "write a mergekit recipe", where)
    documents: dict[str | None, Document] = {}
    for node in nodes:
        document = _document(node)
        if document.name is None and None in documents:
            node.fail("has no 'name', and another document has none either", "name all but the one that is the output")
        if document.name in documents:
            node.fail(f"the name {document.name!r} stands twice", "give each document its own", "name")
        documents[document.name] = document
    return Recipe(tuple(_ordered(list(documents.values()))))


def _ordered(documents: list[Document]) -> list[Document]:
    """The documents, each after all that it uses, otherwise as written; the unnamed one, which is the output, last."""
    rest, ordered = sorted(documents, key=lambda d: d.name is None), list[Document]()
    names = {d.name for d in documents if d.name}
    needs = {d.name: names & _references(d) for d in documents}
    done: set[str | None] = set()
    while rest:
        ready = next((d for d in rest if needs[d.name] <= done), None)
        if ready is None:
            raise InputError("the documents use each other in a circle", "let one of them start", rest[0].where)
        rest.remove(ready)
        ordered.append(ready)
        done.add(ready.name)
    return ordered


def _references(document: Document) -> set[str | None]:
    """The references of a document: of its models, and of models that only its tokenizer comes from."""
    policy = document.tokenizer
    tokenizers = {policy.source, *(rule.model for rule in policy.tokens)} if policy else set()
    return {*Recipe((document,)).models(), *tokenizers}


def _document(node: Node) -> Document:
    parts = node.mapping(required(DOCUMENT))
    written = [k for k in ("models", "slices", "modules") if is_set(parts.get(k))]
    if len(written) != 1:
        close = next((suggestion(k, DOCUMENT) for k in parts if k not in DOCUMENT), "give one of them")
        node.fail("needs exactly one of models, slices and modules", close)
    base = _base(parts)
    core = is_set(parts.get("adapters")) and parts["adapters"].one_of(("full", "core"), "form") == "core"
    core_rank = parts["core_rank"].integer(1) if is_set(parts.get("core_rank")) else None
    if core_rank is not None and not core:
        parts["core_rank"].fail("is of Core Space, where nothing is merged here", "add adapters: core")
    return Document(
        method=parts["merge_method"].one_of(METHODS, "merge method"),
        slices=() if written == ["modules"] else _stacked(parts, base),
        modules=_modules(parts["modules"], base) if written == ["modules"] else (),
        base=base,
        parameters=parameters(parts.get("parameters")),
        dtype=dtype(parts.get("dtype")),
        out_dtype=dtype(parts.get("out_dtype")),
        tokenizer=tokenizer_policy(parts),
        chat_template=text(parts.get("chat_template")),
        name=text(parts.get("name")),
        seed=parts["random_seed"].integer(0, 2**63 - 1) if is_set(parts.get("random_seed")) else 0,
        where=node.where,
        fused_experts=is_set(parts.get("experts")) and parts["experts"].one_of(("each", "fused"), "form") == "fused",
        core=core,
        core_rank=core_rank,
    )


def _base(parts: dict[str, Node]) -> str | None:
    return reference(parts["base_model"]) if parts.get("base_model") and parts["base_model"].value else None


def _modules(node: Node, base: str | None) -> tuple[Module, ...]:
    modules = []
    for name, child in node.mapping().items():
        parts = child.declared(MODULE)
        if is_set(parts.get("models")) == is_set(parts.get("slices")):
            child.fail("needs exactly one of models and slices", "give one of them")
        modules.append(Module(name, _stacked(parts, base), parameters(parts.get("parameters")), child.where))
    if not modules:
        node.fail("names no module", "name at least one, such as default")
    return tuple(modules)


def _stacked(parts: dict[str, Node], base: str | None) -> tuple[Slice, ...]:
    return _models(parts["models"], base) if is_set(parts.get("models")) else _slices(parts["slices"])


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
    slices, layers = [], 0
    for child in node.sequence():
        parts = child.mapping(required(SLICE))
        inputs = [_input(source, layered=True) for source in parts["sources"].sequence()]
        if not inputs:
            parts["sources"].fail("names no model", "list at least one")
        _check_twice(child, inputs)
        lengths = {i.layers[1] - i.layers[0] for i in inputs if i.layers}
        if len(lengths) != 1:
            child.fail("its layer ranges differ in length", "give every source of a slice equally many layers")
        layers += lengths.pop()
        if layers > MOST_LAYERS:
            child.fail(f"the slices up to this one have {layers:,} layers, more than {MOST_LAYERS:,}", "give fewer")
        slices.append(Slice(tuple(inputs), parameters(parts.get("parameters")), child.where, _base(parts)))
    if not slices:
        node.fail("names no slice", "list at least one")
    if not layers:
        node.fail("has empty slices only", "give one of them layers")
    return tuple(slices)


def _check_twice(node: Node, inputs: list[Input]) -> None:
    for twice, count in Counter(i.model for i in inputs).items():
        if count > 1:
            node.fail(f"the model {twice!r} is listed twice", "list each model once")


def _input(node: Node, layered: bool) -> Input:
    parts = node.mapping(required(LAYERS if layered else INPUT))
    layers = _layers(parts["layer_range"]) if layered else None
    return Input(reference(parts["model"]), layers, parameters(parts.get("parameters")), node.where)


def _layers(node: Node) -> tuple[int, int]:
    pair = node.sequence()
    if len(pair) != 2:
        node.fail(f"is {node.shown()}, not [start, end]", "write for example [0, 8]")
    start, end = pair[0].integer(0, MOST_LAYERS), pair[1].integer(0, MOST_LAYERS)
    if end < start:
        node.fail(f"[{start}, {end}] ends before it starts", "give [start, end)")
    return start, end
