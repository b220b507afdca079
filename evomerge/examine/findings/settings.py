"""Checks of what stands beside the weights: the configuration, the end of a text, the chat template."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.escape import shortened
from evomerge.examine.findings.finding import Evidence, Finding, Value, listed
from evomerge.examine.findings.models import ModelView
from evomerge.examine.findings.patient import Patient

_INERT = re.compile(
    r"dropout|token_id$|^_|vocab_size|num_hidden_layers|^n_layers?$|^num_layers$|layer_types|tie_word|dtype|architectures|"
    r"transformers_version|use_cache|initializer|pretraining_tp|max_position|^n_positions$|^n_ctx$|output_|return_dict|"
    r"label|problem_type|chunk_size|is_decoder|cross_attention|gradient_checkpointing|name_or_path|quantization|auto_map|"
    r"max_window_layers|router_aux|z_loss|task_specific|torchscript|finetuning_task|tokenizer_class|prefix"
)
"""Settings that change no forward pass at inference, or that other checks look at."""
_ROPE = re.compile(r"rope|rotary")
_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]")
"""Words of templates that are tokens of their own in the models that were trained with them."""


def configuration(patient: Patient) -> Finding | None:
    """Settings that change what the weights compute, and that no parent has."""
    if not patient.parents:
        return None
    own, theirs = _effective(patient.model), {p.name: _effective(p) for p in patient.parents}
    shared = [key for key in own if all(key in other for other in theirs.values())]
    found = {key: {n: c[key] for n, c in theirs.items()} for key in shared if own[key] not in _all(theirs, key)}
    if not found:
        return None
    evidence = tuple(Evidence(key, _word(own[key]), _words(beside)) for key, beside in list(found.items())[:4])
    return Finding(
        "configuration-of-another-model",
        f"config.json has values that no parent has: {listed(list(found))}",
        evidence,
        "the configuration was taken from another model, or edited: the weights were trained with other values",
        "copy these values from the base's config.json",
    )


def rope_apart(patient: Patient) -> Finding | None:
    """Parents that were trained with different position encodings."""
    theirs = {p.name: _effective(p) for p in patient.parents}
    keys = [k for k in _effective(patient.model) if _ROPE.search(k) and all(k in c for c in theirs.values())]
    apart = [k for k in keys if len({_word(c[k]) for c in theirs.values()}) > 1]
    if not apart:
        return None
    own = _effective(patient.model)
    evidence = tuple(Evidence(k, _word(own[k]), {n: _word(c[k]) for n, c in theirs.items()}) for k in apart[:3])
    return Finding(
        "parents-of-different-positions",
        f"the parents have different {listed(apart)}, and the merge has one",
        evidence,
        "a source was trained on for longer texts: its attention expects other rotations",
        "leave it out, or merge it with sources that have the same values",
        severity="harmful",
    )


def end_of_text(patient: Patient) -> Finding | None:
    """A generation that does not end where the parents' end."""
    model, parents = patient.model, patient.of_sources
    # What ends a parent's text, as far as the merge has that token: an unused one ends nothing.
    theirs = {p.name: p.end_words() for p in parents}
    own, wanted = model.end_words(), set[str]().union(*theirs.values())
    beside: dict[str, Value] = {name: _set(words) for name, words in theirs.items()}
    ends = Evidence("a generation ends at", _set(own), beside)
    named = Evidence(
        "end token of the tokenizer", model.end_token or "none", {p.name: p.end_token or "none" for p in parents}
    )
    if wanted and not own:
        says = "no end-of-text token is set: a generation goes on until its limit"
    elif wanted and not own & wanted:
        says = f"a generation ends at {_set(own)}, and the sources' at {_set(wanted)}"
    elif lost := _written(model) & wanted - own:
        says = f"the chat template ends a turn with {_set(lost)}, at which a generation does not end"
    elif _renamed(patient):
        says = f"the tokenizer's end token is {model.end_token or 'none'}, which is no source's"
        ends = named
    elif _configured(parents) and not _configured(parents) & _configured([model]):
        says = f"config.json does not name {_set(_configured(parents))} as end of text, as the sources' do"
    else:
        return None
    return Finding(
        "end-of-text",
        says,
        (ends, named) if ends is not named else (ends,),
        "generation_config.json, config.json or the tokenizer is another model's, or was not copied",
        "set eos_token_id in generation_config.json to what the sources have",
        severity="harmful",
    )


def _configured(views: Sequence[ModelView]) -> set[str]:
    """The end-of-text tokens that configurations name, by text."""
    found: set[str] = set()
    for view in views:
        ids = view.text.get("eos_token_id", view.config.get("eos_token_id"))
        found |= {view.by_id.get(i, f"id {i}") for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int}
    return found


def _renamed(patient: Patient) -> bool:
    """Whether the tokenizer names an end token that no source names, though all name one."""
    theirs = {p.end_token for p in patient.parents}
    return bool(theirs) and None not in theirs and patient.model.end_token not in theirs


def _written(model: ModelView) -> set[str]:
    """The tokens that the chat template holds."""
    template = model.template or ""
    words = {token for token in set(_MARKER.findall(template)) if token in (model.tokens or {})}
    return words | ({model.end_token} if model.end_token and "eos_token" in template else set())


def template(patient: Patient) -> Finding | None:
    """A chat template that is no parent's, or is missing."""
    model, parents = patient.model, patient.parents
    theirs = {p.name: p.template.strip() for p in parents if p.template}
    own = model.template.strip() if model.template else None
    shown = Evidence("chat template", _brief(own), {p.name: _brief(theirs.get(p.name)) for p in parents})
    lost = [m for m in dict.fromkeys(_MARKER.findall(own or "")) if m not in (model.tokens or {m: 0})]
    same = [p for p in parents if own is not None and theirs.get(p.name) == own]
    if own is None and patient.sources and 2 * sum(s.name in theirs for s in patient.sources) >= len(patient.sources):
        says, severity = "there is no chat template, and the sources have one", "harmful"
    elif own is not None and theirs and not same:
        says, severity = "the chat template is no parent's", "harmful"
    elif lost and own is not None and not any(all(m not in (p.tokens or {}) for m in lost) for p in same):
        says, severity = f"the chat template writes {listed(lost)}, which are no tokens of the model", "harmful"
    else:
        return None
    missing = [Evidence("words of the template that are no tokens", listed(lost))] if lost else []
    return Finding(
        "chat-template",
        says,
        (shown, *missing),
        "the tokenizer was copied from another model, or the recipe's chat_template asks for another format",
        "take the template of the source that answers questions: `chat_template: SOURCE` in the recipe",
        severity="harmful" if severity == "harmful" else "suspect",
    )


def _brief(text: str | None) -> str:
    """A template in a few words: its own markers where it has some, else its beginning."""
    if text is None:
        return "none"
    markers = list(dict.fromkeys(_MARKER.findall(text)))
    return f"{len(text)} characters, " + (listed(markers) if markers else shortened(" ".join(text.split()), 40))


def _set(words: set[str]) -> str:
    return ", ".join(sorted(words)) or "nothing"


def _effective(view: ModelView) -> dict[str, Any]:
    """The settings that decide what a model computes, with transformers' defaults, flat."""
    from transformers import AutoConfig
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        data: Any = AutoConfig.for_model(**view.config).to_dict()
    except Exception:  # a configuration can make transformers fail with anything; it is compared as it is then
        data = dict(view.config)
    finally:
        hf_logging.set_verbosity(level)
    return {key: value for key, value in _flat(data) if not any(_INERT.search(k) for k in key.split("."))}


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or len(value) < 8:
            found.append((f"{prefix}{key}", value))
    return found


def _all(theirs: Mapping[str, Mapping[str, Any]], key: str) -> list[Any]:
    return [config[key] for config in theirs.values()]


def _word(value: Any) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shortened(value if isinstance(value, str) else json.dumps(value, default=str), 60)
    return value


def _words(values: Mapping[str, Any]) -> dict[str, Value]:
    return {name: _word(value) for name, value in values.items()}
