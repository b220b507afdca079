"""Writes the reference of the site from what the code declares: `pages()` is every page of it, as Markdown."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence

from python_pages import python, testing
from texts import cell, docstring, escaped, lead, linked, prose, table

import evomerge
from evomerge.answers import EXIT_CODES
from evomerge.cli import parser
from evomerge.files import keys as files
from evomerge.files.module_groups import GROUPS
from evomerge.files.nodes import interval
from evomerge.files.objects import LENGTHS, MEASURES, OLD_KEYS
from evomerge.optimize.declarations import OPTIONS, Option, declaration
from evomerge.recipe import keys as recipe
from evomerge.registry import (
    CHOICES,
    METHODS,
    OBJECTIVES,
    OPTIMIZER_KEYS,
    OPTIMIZERS,
    PAPERS,
    REMOVED_OPTIMIZERS,
    Method,
    Parameter,
)

Keys = Mapping[str, files.Key]


def pages() -> dict[str, str]:
    """The pages by their place in the site's folder of pages."""
    made = {
        "commands": commands(),
        "space-file": space_file(),
        "fitness-file": fitness_file(),
        "recipe": recipe_file(),
        "methods": methods(),
        "optimizers": optimizers(),
        "metrics": metrics(),
        "python": python(),
        "testing": testing(),
    }
    lines = [f"- [{page.splitlines()[0].removeprefix('# ')}]({name}.md)" for name, page in made.items()]
    start = "# Reference\n\nThese pages are made from the code, so that they say what this version does.\n\n"
    made["index"] = start + "\n".join(lines) + "\n"
    return {f"reference/{name}.md": text for name, text in made.items()}


# Commands


def commands() -> str:
    """Every command with its words and options, and the exit codes."""
    root = parser()
    general = [action for action in root._actions if action.option_strings]
    parts = [
        "# Commands\n",
        "Results go to stdout, progress and errors to stderr. An error is one line. "
        "An option may stand before or behind the words of its command, and each takes `--help`.\n",
        "## evomerge\n",
        _options(general),
        "## Exit codes\n",
        table(["code", "meaning"], [[f"`{code}`", escaped(text)] for code, text in EXIT_CODES.items()]),
    ]
    for name, command in root.below.items():
        parts += _command(name, command)
    return "\n".join(parts)


def _command(name: str, command: argparse.ArgumentParser) -> list[str]:
    words = [action for action in command._actions if not action.option_strings]
    options = [action for action in command._actions if action.option_strings and action.dest != "help"]
    usage = " ".join([f"evomerge {name}", *map(_word, words), "[OPTIONS]"])
    function = next((f for f in (name, f"write_{name}") if f in evomerge.__all__), None)
    parts = [f"## evomerge {name}\n", f"{escaped(command.description or '')}\n", f"```\n{usage}\n```\n"]
    if words:
        rows = [[f"`{action.metavar}`", escaped(action.help or ""), _needed(action)] for action in words]
        parts.append(table(["word", "meaning", ""], rows))
    parts.append(_options(options))
    if function:
        parts.append(f"In Python: [`evomerge.{function}`](python.md#evomerge.{function}).\n")
    return parts


def _word(action: argparse.Action) -> str:
    forms = {"?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]"}
    return forms.get(str(action.nargs), "{}").replace("{}", str(action.metavar))


def _needed(action: argparse.Action) -> str:
    return "optional" if action.nargs in ("?", "*") else "required"


def _options(actions: Sequence[argparse.Action]) -> str:
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    silent = [flag for action in actions if action.help == argparse.SUPPRESS for flag in action.option_strings]
    rows = [[_flags(action), *_help(action)] for action in shown]
    text = table(["option", "meaning", "default"], rows)
    if silent:
        text += f"\nTaken, and without effect: {', '.join(f'`{flag}`' for flag in silent)}.\n"
    return text


def _flags(action: argparse.Action) -> str:
    takes = action.nargs != 0
    value = f" {action.metavar or (action.dest.upper() if not action.choices else 'NAME')}" if takes else ""
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def _help(action: argparse.Action) -> tuple[str, str]:
    """What an option means, and its default, which its help names or its declaration has."""
    text = action.help or ""
    named = re.search(r"(?:^| \()default: ([^()]*)\)?", text)
    meaning = text.replace(named[0], "").strip() if named else text
    if action.choices:
        legal = ", ".join(f"`{choice}`" for choice in action.choices)
        meaning = f"{escaped(meaning)}: {legal}" if meaning else legal
    else:
        meaning = escaped(meaning)
    if named:
        return meaning, escaped(named[1])
    if action.required:
        return meaning, "required"
    given = action.default not in (None, False, [], argparse.SUPPRESS)
    return meaning, f"`{action.default}`" if given and action.nargs != 0 else ""


# Files


def space_file() -> str:
    ready = [[f"`{name}`", ", ".join(f"`{part}`" for part in parts)] for name, parts in GROUPS.items()]
    optimizer = [[f"`{key}`", text] for key, text in OPTIMIZER_KEYS.items()]
    removed = ", ".join(f"`{old}` (use {new})" for old, new in REMOVED_OPTIMIZERS.items())
    return "\n".join(
        [
            "# Keys of the search-space file\n",
            "[The two files](../files.md) shows it as a whole. Paths in it are relative to the file.\n",
            _keys("The file", files.SPACE),
            _keys("A model", files.MODEL, "`base`, written as a mapping."),
            _keys("A source", files.SOURCE, "An entry of `sources`, written as a mapping."),
            _keys("Checkpoints of a run", files.TRAJECTORY, "An entry of `sources`, written as a mapping."),
            _keys("The method", files.METHOD, "`genes.method`, where it is not a name alone. [Methods](methods.md)."),
            _keys("A gene", files.GENE, "Any other entry of `genes`. [Methods](methods.md) says which there are."),
            _keys("Genes of no method", files.SOURCE_GENES, "Entries of `genes`. `window` and `exponent` are ranges."),
            _keys("Bands", files.BANDS, "`bands` of a gene, written as a mapping."),
            _keys("Frozen", files.FREEZE, "`freeze`."),
            "## The optimizer\n\n`optimizer`, beside the [options of each](optimizers.md).\n",
            table(["key", "meaning"], optimizer),
            f"Removed: {removed}.\n",
            _keys("The budget", files.BUDGET, "`budget`."),
            _keys("Scales of a path", files.SCALES, "`scales`, written as a mapping."),
            _keys("A cluster", files.RAY, "`ray`."),
            "## Ready-made modules\n\nNames that `modules` may list, and the parts of tensor names that they stand "
            "for: the first that the base has.\n",
            table(["module", "parts of names"], ready),
        ]
    )


def fitness_file() -> str:
    old = ", ".join(f"`{name}` for `{new}`" for name, new in OLD_KEYS.items())
    objectives = [[f"`{name}`", prose(docstring(target))] for name, target in OBJECTIVES.items()]
    objectives = [[name, "a front of trade-offs" if name == "`pareto`" else text] for name, text in objectives]
    return "\n".join(
        [
            "# Keys of the fitness file\n",
            "[The two files](../files.md#the-fitness-file) shows it as a whole. Paths are relative to the file.\n",
            _keys("The file", files.FITNESS),
            f"Old names are read, too: {old}.\n",
            _keys(
                "A slice",
                files.SLICE,
                "An entry of `slices`: one of `task`, `of`, `python`, `scorer`, `command` and `measure`.",
            ),
            _keys("Options of lm-eval", files.SLICE_OPTIONS, "Also of a slice with a `task`."),
            _keys("A floor", files.FLOOR, "`floor`, where it is not a number: with one of `keep` and `margin`."),
            _keys("The split", files.SPLIT, "`split`."),
            "## Objectives\n\nScores are oriented first: higher is better. Slices of weight 0 are no part of it.\n",
            table(["objective", "what it is"], objectives),
        ]
    )


def recipe_file() -> str:
    return "\n".join(
        [
            "# Keys of a recipe\n",
            "mergekit's form, of `mergekit-yaml` and `mergekit-multi`; [Merging to disk](../merge.md#recipes) tells "
            "what is stricter. Keys of a document that are not known are ignored, as mergekit does.\n",
            _keys("A document", recipe.DOCUMENT),
            _keys("A model", recipe.INPUT, "An entry of `models`."),
            _keys("A slice", recipe.SLICE, "An entry of `slices`."),
            _keys("A model of a slice", recipe.LAYERS, "An entry of `sources` of a slice."),
            _keys("A module", recipe.MODULE, "An entry of `modules`."),
            _keys("A model as a mapping", recipe.REFERENCE, "Wherever a model is named."),
            _keys("Values", recipe.VALUE, "A parameter is a number, a flag, a list, or some of these entries."),
            _keys("Values of bands", recipe.BANDED, "The same for `band_arithmetic`, which mergekit does not have."),
            _keys("The tokenizer", recipe.TOKENIZER, "`tokenizer`."),
            _keys("A token", recipe.TOKEN, "An entry of `tokens` of the tokenizer."),
            _keys("A row", recipe.ROW, "`source` of a token, to take the row of another one."),
        ]
    )


def _keys(title: str, keys: Keys, where: str = "") -> str:
    rows = [[f"`{n}`", cell(k.meaning), "required" if k.default is None else cell(k.default)] for n, k in keys.items()]
    filled = [row for row in rows if row[2]]
    text = f"{where}\n\n" if where else ""
    if not filled:
        return f"## {title}\n\n{text}{table(['key', 'meaning'], [row[:2] for row in rows])}"
    return f"## {title}\n\n{text}{table(['key', 'meaning', 'default'], rows)}"


# Methods


_BASES = {
    "subtracted": "subtracted from the others: deltas are merged",
    "optional": "subtracted, where there is one",
    "endpoint": "one end of the path",
    "ordinary": "a model like the others, or none",
}


def methods() -> str:
    """Every merge method with its parameters."""
    overview = [
        [f"[`{name}`](#{name})", _sources(method), _names(method, float), _names(method, bool, int)]
        for name, method in METHODS.items()
    ]
    parts = [
        "# Merge methods\n",
        "A search can name all of them but those that are marked as of recipes only. Genes are searched, the other "
        "parameters stand under `fixed`.\n",
        table(["method", "models beside the base", "genes", "other parameters"], overview),
    ]
    for name, method in METHODS.items():
        parts.append(f"## {name}\n\n{prose(lead(method.function))}\n\n{prose(docstring(method.function))}\n")
        parts.append(f"{_facts(name, method)}\n")
        if method.parameters:
            rows = [_parameter(parameter) for parameter in method.parameters]
            parts.append(table(["parameter", "of", "meaning", "legal", "default", "a search starts at"], rows))
    for name, choice in CHOICES.items():
        if name not in METHODS:
            settled = ", ".join(f"`{key}` {_value(value)}" for key, value in choice.settled.items())
            parts.append(f"## {name}\n\n[`{choice.method}`](#{choice.method}) with {settled}; for searches only.\n")
    return "\n".join(parts)


def _names(method: Method, *kinds: type) -> str:
    return ", ".join(f"`{p.name}`" for p in method.parameters if p.kind in kinds)


def _sources(method: Method) -> str:
    least, most = method.sources
    return f"{least:g}" if least == most else "any number" if least <= 1 else f"{least:g} or more"


def _facts(name: str, method: Method) -> str:
    facts = [f"The base is {_BASES[method.base]}."]
    if method.stochastic:
        facts.append("Elements are drawn at random, by the recipe's seed.")
    if method.spectral:
        facts.append("The last bits depend on the library for linear algebra and on the processor.")
    if method.own:
        facts.append("mergekit has no such method.")
    if method.differentiable:
        facts.append(f"Gradients: {', '.join(f'`{n}`' for n in method.differentiable)}.")
    if name not in CHOICES:
        facts.append("For recipes only.")
    start = lead(method.function)
    papers = ", ".join(f"arXiv:{number}" for number in PAPERS.get(name, ()) if number not in start)
    return linked(" ".join([*facts, f"Papers: {papers}." if papers else ""]))


def _parameter(p: Parameter) -> list[str]:
    gene = p.kind is float
    scale = ", logarithmic" if p.log else ""
    legal = "`true`, `false`" if p.kind is bool else _interval(p) + ("" if gene else ", whole") + scale
    default = "required" if p.default is None else _value(p.default)
    of = "each model" if p.scope == "source" else "the merge"
    return [f"`{p.name}`", of, escaped(p.meaning), cell(legal), default, f"{p.init:g}" if gene else ""]


def _interval(p: Parameter) -> str:
    return interval(p.low, p.high) if (p.low, p.high) != (-math.inf, math.inf) else "any number"


def _value(value: float | bool) -> str:
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"{value:g}"


# Optimizers


def optimizers() -> str:
    """Every optimizer with its options."""
    abilities = []
    for name in OPTIMIZERS:
        can = declaration(name)
        traded = f"2 to {can.objectives}" if can.objectives > 1 else ""
        gradient = "yes" if can.needs_gradient else ""
        abilities.append([f"[`{name}`](#{name})", "yes" if can.choices else "no", gradient, traded])
    parts = [
        "# Optimizers\n",
        "[Optimizers](../optimizers.md) says which one to use. All of them take the keys "
        f"{', '.join(f'`{key}`' for key in OPTIMIZER_KEYS)}, see [the space file](space-file.md#the-optimizer).\n",
        table(["optimizer", "takes choices", "needs gradients", "slices that it can trade off"], abilities),
    ]
    for name, target in OPTIMIZERS.items():
        shared = sum(other.partition(":")[0] == target.partition(":")[0] for other in OPTIMIZERS.values()) > 1
        start = "" if shared else f"{prose(lead(target))}\n\n"
        parts.append(f"## {name}\n\n{start}{prose(docstring(target))}\n")
        options = OPTIONS.get(name, {})
        rows = [
            [f"`{key}`", escaped(o.meaning), cell(_legal(o)), f"`{_word_of(o.default)}`"] for key, o in options.items()
        ]
        parts.append(table(["option", "meaning", "legal", "default"], rows) if rows else "It has no options.\n")
    return "\n".join(parts)


def _legal(option: Option) -> str:
    return re.sub(r"'([^']*)'", r"`\1`", option.legal)


def _word_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# Metrics


def metrics() -> str:
    """The metrics of lm-eval, with which of two scores is better, and what else scores."""
    from importlib.metadata import version

    from lm_eval.api import registry

    from evomerge.scoring.stats.aggregation import FORMULAS
    from evomerge.scoring.tasks.metrics import SHARES

    kinds: dict[str, list[str]] = {}
    for kind, names in registry.DEFAULT_METRIC_REGISTRY.items():
        for name in names:
            kinds.setdefault(name, []).append(f"`{kind}`")
    rows = []
    for name, higher in sorted(registry.HIGHER_IS_BETTER_REGISTRY.items()):
        aggregation = registry.METRIC_AGGREGATION_REGISTRY[name].__name__
        exact = "of the items" if aggregation in FORMULAS else "resampled"
        ends = "0 to 1" if name in SHARES else ""
        rows.append([f"`{name}`", _better(higher), ends, exact, ", ".join(kinds.get(name, []))])
    return "\n".join(
        [
            "# Metrics\n",
            "What `metric` of a slice can name, and what scores without one. Scores are shown in the metric's own "
            "direction; `direction` of a slice is for metrics that do not tell theirs.\n",
            f"## Metrics of lm-eval\n\nThose of version {version('lm_eval')}. A task may report others: whatever its "
            "`metric_list` or its own code names. A slice of a metric that a task does not report is an error, which "
            "names those that it does.\n",
            table(["metric", "better is", "an item has", "standard error", "default of tasks that are"], rows),
            "## Answers of another slice\n\nA slice with `of` measures what that slice's model has written; better is "
            "lower.\n",
            table(["metric", "better is"], [[f"`{name}`", _better(False)] for name in LENGTHS]),
            "## Functions and programs\n\nA slice with `python`, `scorer` or `command` is the mean of the numbers that "
            "its function returns or its program writes: better is higher, unless `direction: lower` says otherwise.\n",
            "## Sizes\n\nA slice with `measure` is a size of the candidate; better is lower.\n",
            table(["measure", "better is"], [[f"`{name}`", _better(False)] for name in MEASURES]),
        ]
    )


def _better(higher: bool) -> str:
    return "higher" if higher else "lower"
