"""The keys of the two input files, with what they mean. The readers take the legal names from here, the reference of
the documentation takes all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """One key of a file.

    Attributes:
        meaning: what it says, in a line of Markdown.
        default: what holds where the file does not give it; None: it has to.
    """

    meaning: str
    default: str | None = ""


Keys = Mapping[str, Key]


def required(keys: Keys) -> list[str]:
    """The keys that have to be there."""
    return [name for name, key in keys.items() if key.default is None]


def optional(keys: Keys) -> list[str]:
    """The keys that may be left out."""
    return [name for name, key in keys.items() if key.default is not None]


# The search-space file

PATHS: Keys = {
    "path": Key("the models whose layers a path uses, in order", "all sources"),
    "repeats": Key("how often these layers stand in a row", "1"),
    "max_layers": Key("the most layers of a candidate", "twice the first model's"),
    "max_parameters": Key(
        "the most parameters of a candidate: a multiple of the first model's, or, above 1000, a number", "no limit"
    ),
    "scales": Key("input scales of a path's layers: a `form`, or a mapping with its range", "`auto`"),
    "blocks": Key("so many blocks of layers with searched borders", "none; 4 with `space: both`"),
}
"""What only a space of paths has, besides `space` itself."""

SPACE: Keys = {
    "base": Key("the common ancestor: a folder, or a hub id (`org/name@revision`)", None),
    "sources": Key(
        "its fine-tunes, by name, as a list, or as a pool: `{pool: models/*}`; a LoRA adapter is one like any other",
        None,
    ),
    "genes": Key("what is searched: the method, and ranges of its parameters", None),
    "fitness": Key("the fitness file", None),
    "tokenizer": Key(
        "whose tokens the merged model has: `base`, `union` (the base's, and what the sources add) or a source's name",
        "`base`",
    ),
    "chat_template": Key(
        "of the merged model: `auto` (the commonest among its models), `base`, a source's name, or a Jinja text",
        "`auto`",
    ),
    "dtype": Key("of the merged model: `float32`, `float16` or `bfloat16`", "the base's"),
    "layers": Key("layer groups: a number of equal groups, `each`, or ranges `[[0, 8], [8, 32]]` (end exclusive)", "1"),
    "modules": Key(
        "names and substrings of tensor names, of which the first found wins, or a list of ready-made names; the "
        "remaining tensors are `other`",
        "none",
    ),
    "interpolate": Key("`true`: the groups' numbers are knots, with straight lines between them", "`false`"),
    "fixed": Key("parameters of the methods that are not searched", "the method's defaults"),
    "freeze": Key("layers, sources and modules that are not searched", "nothing"),
    "optimizer": Key("a name, or a mapping with the optimizer's own options", "`surrogate`, seed 0"),
    "adapters": Key(
        "`full` or `core`: whether LoRA sources are merged as changes of whole weights, or in Core Space", "`full`"
    ),
    "core_rank": Key("of `adapters: core`: so many of its directions are kept", "all"),
    "budget": Key("when the search ends: totals, the first that is reached counts", "100 trials"),
    "polish": Key(
        "whether the budget's last trials score other forms of the best merge: `auto` (where a tenth of the budget is "
        "enough for them), `true` or `false`",
        "`auto`",
    ),
    "ray": Key("of a search on a Ray cluster: what each worker takes of a node, and of which nodes", "what suits it"),
    "space": Key(
        "`weights`, `dataflow` or `both`: whether weights are merged, layers are stacked, or both", "`weights`"
    ),
    **PATHS,
}

MODEL: Keys = {
    "path": Key("a folder, or a hub id", None),
    "revision": Key("of a hub id: a branch, a tag or a commit", "the hub's main branch"),
}
SOURCE: Keys = {
    **MODEL,
    "align": Key(
        "`true`, or the path of a specification: its hidden units are brought into the base's order first", "`false`"
    ),
}
TRAJECTORY: Keys = {
    "glob": Key("a pattern that the checkpoints' folders match; numbers in their names order them", "or `checkpoints`"),
    "checkpoints": Key("a list of folders or hub ids, oldest first", "or `glob`"),
    "curve": Key("how the last ones are weighted: `decay`, differences of a learning rate's decay", "`decay`"),
}
"""A source that is the checkpoints of one training run."""

SOURCE_GENES: Keys = {
    "include": Key(
        "`true`: each source has a number of its own, and takes no part below 0.5", "`true` for a pool, else `false`"
    ),
    "window": Key("of trajectories: a range of how many of the last checkpoints are averaged", "1 to all, at most 16"),
    "exponent": Key(
        "of trajectories: a range of the decay's exponent; 1 weighs checkpoints alike, below it older ones more, above "
        "it newer ones",
        "0.25 to 4, from 0.5",
    ),
}
"""Genes that no method has."""

GENE: Keys = {
    "low": Key("the lower end of the range", None),
    "high": Key("the upper end of the range", None),
    "init": Key("where the search starts", "the parameter's own start, moved into the range"),
    "log": Key(
        "whether it is searched on a logarithmic scale", "`true` for logarithmic parameters with a `low` above 0"
    ),
    "per": Key(
        "the axes along which it takes separate values: `sources`, `layers`, `modules`, `tensors`, `bands`", "none"
    ),
    "bands": Key(
        "of a `weight` per `bands`: a number of bands, shares of the directions, `each`, or `{top, cut}`", "none"
    ),
}
METHOD: Keys = {
    "choices": Key("the methods to choose from", None),
    "per": Key("`[layers]`: each layer group has a method of its own", "none"),
    "init": Key("the method that the search starts with", "the first one"),
}
BANDS: Keys = {
    "top": Key("so many of the largest directions are cut, and all others are one more band", None),
    "cut": Key("how these are cut: a number of bands, shares, or `each`", "`each`"),
}
FREEZE: Keys = {
    "layers": Key("numbers, and ranges `[start, end)`, that stay the base's", "none"),
    "sources": Key("names, or names with the weight, that keep their values", "none"),
    "modules": Key("names that stay the base's, or names with the source whose they are", "none"),
}
BUDGET: Keys = {
    "trials": Key("trials, references and failures included", "no limit; 100 where no other is set"),
    "time": Key("time of evaluation: `90s`, `20m`, `4h`, `2d`", "no limit"),
    "items": Key("items of the search split on which references and candidates were scored", "no limit"),
}
RAY: Keys = {
    "num_cpus": Key(
        "processors of a worker; a part of one is shared",
        "those of its node, dealt to its GPUs; without GPUs as many as there are",
    ),
    "num_gpus": Key(
        "GPUs of a worker, between which its model is cut if it has to be; a part of one is shared",
        "1 where the cluster has some, else 0",
    ),
    "resources": Key("further resources of a worker, by Ray's names", "none"),
    "labels": Key("labels that a node has to have, with their values", "any node"),
    "runtime_env": Key("Ray's runtime environment of the workers, as Ray's documentation says", "none"),
}
SCALES: Keys = {
    "form": Key(
        "`pairs` (a value for each pair of layers), `shared` (one for all pairs of like kind), `none`, or `auto`: what "
        "suits the space",
        "`auto`",
    ),
    "low": Key("the lower end of the range, above 0 and at most 1", "0.5"),
    "high": Key("the upper end of the range, at least 1", "2.0"),
}
# The fitness file

FITNESS: Keys = {
    "slices": Key("what a merge must be able to do: slices, by name", None),
    "model": Key("`module:function` that builds the model, where it is no language model", "a language model"),
    "include": Key("folders with lm-eval task YAML, whose code is run", "none"),
    "objective": Key(
        "of the slices' scores: `mean`, `weighted_mean`, `geometric_mean`, `min`; or `pareto`, a front of trade-offs",
        "`mean`",
    ),
    "split": Key("the share of items that the optimizer sees, and the seed by which items are dealt", "0.5, seed 0"),
    "confidence": Key(
        "such as 0.95: floors are held against the one-sided lower confidence bounds of the scores", "off"
    ),
    "batch_size": Key("of the forward passes, fixed for the whole run", "16"),
    "engine": Key(
        "what answers: `resident` (the model in memory, by transformers), `vllm`, or `auto`: vLLM for generated "
        "answers where it is installed and there is a GPU",
        "`auto`",
    ),
    "pruning": Key(
        "the pruners, by which a candidate is scored on fewer than all items: `auto`, `true`, `false`, or some of "
        "`[early_stop, racing, representative]`",
        "`auto`",
    ),
}
SPLIT: Keys = {
    "search": Key("the share of items that the optimizer sees, between 0 and 1", "0.5"),
    "seed": Key("by which items are dealt to the two splits", "0"),
}
SLICE: Keys = {
    "task": Key("any lm-eval task, group or tag, from the `include` folders or lm-eval's own"),
    "python": Key("in place of a task: `module:function` beside the fitness file, called `(model, tokenizer, items)`"),
    "scorer": Key("in place of a task: a scorer that another package adds, by name"),
    "command": Key("in place of a task: a program, called with `{model}` or `{url}`, `{items}` and `{scores}`"),
    "cwd": Key("of `command`: the folder that it is run in", "the fitness file's"),
    "data": Key("of `python`, `scorer` and `command`: a JSONL file with the items", "needed there"),
    "measure": Key("in place of a task: `layers` or `parameters` of the candidate, less is better"),
    "metric": Key('as lm-eval reports it, or with its filter: `"exact_match,strict-match"`', "needed by a task"),
    "direction": Key("`higher` or `lower`: which is better", "as lm-eval says; `higher` of functions"),
    "floor": Key(
        "the worst score that is accepted: a number in the metric's own direction, or relative to a reference",
        "none: the slice only counts in the objective",
    ),
    "weight": Key("in `weighted_mean` and `geometric_mean`; 0: the slice is only held to its floor", "1"),
    "items": Key("at most so many items of each split", "all"),
    "of": Key("in place of a task: the slice whose answers `generated_tokens` or `truncated` measures"),
    "samples": Key("so many answers to each item, drawn with the temperature of `gen_kwargs`; their mean counts", "1"),
    "pass_at": Key("whether one of so many samples is right", "the mean of the samples"),
    "cluster": Key("the field of a document that items with a common origin share", "items are independent"),
    "range": Key("`[lowest, highest]` score of an item, where evomerge does not know it", "as the metric says"),
    "engine": Key("what answers this slice's questions, as `engine` of the file", "the file's"),
    "timeout": Key(
        "the most time that the slice may take for one candidate: `90s`, `20m`", "none; an hour for `command`"
    ),
}
SLICE_OPTIONS: Keys = {
    "num_fewshot": Key("examples before each question", "the task's"),
    "filter": Key("the filter of the metric, where it is not part of `metric`", "the task's only one"),
    "apply_chat_template": Key("whether prompts go through the chat template", "`false`"),
    "fewshot_as_multiturn": Key("whether each example is a turn of the chat", "`true`"),
    "system_instruction": Key("a text before each prompt", "none"),
    "gen_kwargs": Key("of generated answers: a mapping, or `a=1,b=2`", "the task's"),
    "add_bos_token": Key("whether a prompt begins with the model's first token", "the tokenizer's"),
}
"""What is handed to lm-eval as it is."""

FLOOR: Keys = {
    "of": Key("the reference: `base`, `best_source`, or a source's name", None),
    "keep": Key(
        "the least share of its score (where lower is better: at most its score divided by this)", "or `margin`"
    ),
    "margin": Key("how much worse than it is accepted; below 0: how much better it must be", "or `keep`"),
}
