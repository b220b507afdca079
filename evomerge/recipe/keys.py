"""The keys of a recipe, with what they mean: mergekit's (0.1.5), `experts`, `adapters` and `core_rank`."""

from __future__ import annotations

from evomerge.files.keys import Key, Keys

DOCUMENT: Keys = {
    "merge_method": Key("the merge method", None),
    "models": Key("whole models; a `base_model` that is not listed is added, without parameters", "one of the three"),
    "slices": Key("layers that are merged together, and stack to the output's", "one of the three"),
    "modules": Key("for models of several layer stacks: `models` or `slices` of each, by name", "one of the three"),
    "base_model": Key("the common ancestor; config and tokenizer are its", "the first model's"),
    "parameters": Key("of the method, see [Values](#values)", "the method's defaults"),
    "dtype": Key("what inputs are cast to: `float64`, `float32`, `float16`, `bfloat16`", "the models' own"),
    "out_dtype": Key("what is written", "`dtype`"),
    "tokenizer": Key("whose tokens the merged model has, and where their rows come from", "the base's"),
    "tokenizer_source": Key("the same in short: `base`, `union` or a model", "the base's"),
    "chat_template": Key(
        "`auto` (the commonest among the models), the name of a template, one of the models, or a Jinja text",
        "the tokenizer's",
    ),
    "random_seed": Key("of the random masks", "0"),
    "experts": Key(
        "`each` or `fused`: whether a mixture's experts are merged each by itself, or those of a layer as one tensor",
        "`each`",
    ),
    "adapters": Key(
        "`full` or `core`: whether LoRA sources are merged as changes of whole weights, or in the small space of their "
        "changes (Core Space)",
        "`full`",
    ),
    "core_rank": Key("of `adapters: core`: so many directions of that space are kept (Compress-then-Merge)", "all"),
    "name": Key("of a document that others use as a model; the one without a name is the output", "none: the output"),
}
INPUT: Keys = {
    "model": Key(
        "a folder, a hub id (`org/name@revision`), either with an adapter (`model+adapter`), or a document", None
    ),
    "parameters": Key("of this model, see [Values](#values)", "those of its slice"),
}
LAYERS: Keys = {
    "model": INPUT["model"],
    "layer_range": Key("`[start, end)`; all sources of a slice have equally many layers", None),
    "parameters": INPUT["parameters"],
}
SLICE: Keys = {
    "sources": Key("models with their layers", None),
    "parameters": Key("of this slice, see [Values](#values)", "the module's, or the document's"),
    "base_model": Key("in place of the document's", "the document's"),
}
MODULE: Keys = {
    "models": Key("whole models", "or `slices`"),
    "slices": Key("layers that stack", "or `models`"),
    "parameters": Key("of this module, see [Values](#values)", "the document's"),
}
REFERENCE: Keys = {
    "model": Key("a path or hub id, or `{path, revision}`", None),
    "lora": Key("an adapter in the same form, which is merged into the model", "none"),
    "override_architecture": Key("makes no difference", "none"),
}
"""A model reference that is written as a mapping."""

VALUE: Keys = {
    "value": Key("a number or a flag, or a list: a gradient across the layers of the slice", None),
    "filter": Key("a part of the names of the tensors that the value is for", "all tensors"),
}
BANDED: Keys = {
    "bands": Key("a number for each band of the matrix's singular directions, in place of a value", None),
    "filter": VALUE["filter"],
    "sizes": Key("the directions of each band", "equally many"),
    "top": Key("so many of the largest directions are cut; the last number is then that of all others", "all are cut"),
}
TOKENIZER: Keys = {
    "source": Key("`base`, `union` or a model", "`union`"),
    "tokens": Key("rules for single tokens, by their text", "none"),
    "pad_to_multiple_of": Key("the vocabulary's size is rounded up to a multiple of it", "no padding"),
}
TOKEN: Keys = {
    "source": Key(
        "a model; `{kind: zero}`; or `{kind: model_token, model: ..., token: ...}` (or `token_id`): a row of it",
        "the usual rule",
    ),
    "force": Key("whether models that have the token take the row, too", "`false`"),
}
ROW: Keys = {
    "kind": Key("`model_token`", None),
    "model": Key("the model that gives the row", None),
    "token": Key("the row's token, by its text", "or `token_id`"),
    "token_id": Key("the row's token, by its number", "or `token`"),
}
