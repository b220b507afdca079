"""Tokenizers, special tokens, chat templates, generation settings and configurations of models, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.config import read_settings
from evomerge.checkpoints.preflight import TokenChanges, token_changes
from evomerge.checkpoints.structure import text_config
from evomerge.checkpoints.token_ids import reordered
from evomerge.checkpoints.tokenizer import chat_template, vocabulary
from evomerge.escape import quoted
from evomerge.examine.checks.findings import Finding, note, problem, warning
from evomerge.safety.read import is_there

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_GENERATION = "generation_config.json"
_UNLIKE_ANYWAY = ("_from_model_config", "transformers_version", "_name_or_path")
_COMPUTED_BY = (
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "hidden_act",
    "max_position_embeddings",
    "sliding_window",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_experts_per_tok",
)
"""Settings that the forward pass goes by; the merged model has the base's."""
_SHOWN = 4


def compare_tokens(base: Checkpoint, sources: Mapping[str, Checkpoint], policy: str) -> list[Finding]:
    """Compares vocabularies by id -> token: what the policy drops and fills in, what another policy would do, and ids
    that two models order differently. `policy`: "base", "union", a source's name, or a model's reference."""
    models = {"base": base, **sources}
    without = [name for name, model in models.items() if vocabulary(model) is None]
    findings = [note("tokens", f"no tokenizer that can be read: {', '.join(without)}")] if without else []
    known = policy if policy in ("base", "union", *sources) else "base"
    chosen = token_changes(base, sources, known, lambda name: None)
    if not chosen.changes:
        return findings
    findings += [warning("tokens", line) for line in chosen.dropped]
    findings += [note("tokens", line) for line in chosen.filled]
    if known == "base" and chosen.dropped:
        findings += [note("tokens", line) for line in _added(token_changes(base, sources, "union", lambda name: None))]
    findings += [
        warning("tokens", f"{pair}: their rows are matched by token; a tool that matches by id mixes them")
        for pair in reordered(models)
    ]
    return findings


def _added(union: TokenChanges) -> list[str]:
    """What the union adds to the base's tokens."""
    filled = next((change.filled for change in union.changes if change.model == "base"), ())
    shown = ", ".join(quoted(token, 30) for token in filled[:_SHOWN]) + (", ..." if len(filled) > _SHOWN else "")
    return [f"tokenizer union: adds {len(filled)} tokens to the base's ({shown})"] if filled else []


def lost_tokens(
    base: Checkpoint, sources: Mapping[str, Checkpoint], policy: str, required: Iterable[str]
) -> list[Finding]:
    """A problem for each required token that the merged model would not have."""
    models = {"base": base, **sources}
    tokens = {name: vocabulary(model) or {} for name, model in models.items()}
    findings = []
    for token in required:
        owners = [name for name, known in tokens.items() if token in known]
        kept = owners if policy == "union" else [name for name in owners if name == policy]
        if policy not in ("union", *models):
            kept = owners if "base" in owners else []
        if not owners:
            findings.append(problem("tokens", f"no model has the token {quoted(token)}"))
        elif not kept:
            mend = "tokenizer: union keeps it" if policy != "union" else ""
            text = f"tokenizer {policy} loses the token {quoted(token)} of {', '.join(owners)}; {mend}"
            findings.append(problem("tokens", text))
    return findings


def compare_special_tokens(models: Mapping[str, Checkpoint]) -> list[Finding]:
    """Names the special tokens that differ from the base's."""
    special = {name: _special(model) for name, model in models.items()}
    return _differences(special, _SPECIAL, "special tokens", "the merge takes those of its tokenizer")


def _special(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = _settings(checkpoint, "tokenizer_config.json", checkpoint.tokenizer_path)
    found = {}
    for key in _SPECIAL:
        value = settings.get(key)
        found[key] = value.get("content") if isinstance(value, dict) else value
    return found if settings else {}


def compare_templates(models: Mapping[str, Checkpoint]) -> list[Finding]:
    """Says which models have a chat template, and whether these are the same."""
    groups: dict[str, list[str]] = {}
    for name, model in models.items():
        template = chat_template(model)
        groups.setdefault((template or "").strip(), []).append(name)
    without = groups.pop("", [])
    if not groups:
        return []
    lacking = f"; none: {', '.join(without)}" if without else ""
    if len(groups) == 1:
        owners = next(iter(groups.values()))
        return [note("chat template", f"the same in {', '.join(owners)}{lacking}")] if without else []
    shown = "; ".join(", ".join(names) for names in groups.values())
    commonest = max(groups.values(), key=len)
    text = f"{len(groups)} different ones ({shown}{lacking}); `chat_template: auto` takes that of {commonest[0]}"
    return [warning("chat template", text)]


def compare_generation(models: Mapping[str, Checkpoint]) -> list[Finding]:
    """Names the generation settings that differ from the base's."""
    settings = {name: _settings(model, _GENERATION, model.path) for name, model in models.items()}
    keys = dict.fromkeys(key for known in settings.values() for key in known if key not in _UNLIKE_ANYWAY)
    return _differences(settings, keys, "generation", "the merge takes the base's")


def compare_configs(models: Mapping[str, Checkpoint]) -> list[Finding]:
    """Names the settings of the forward pass that differ from the base's."""
    settings = {name: dict(text_config(model.config)) for name, model in models.items()}
    return _differences(settings, _COMPUTED_BY, "config", "the merge takes the base's")


def _settings(checkpoint: Checkpoint, name: str, folder: Any) -> dict[str, Any]:
    return read_settings(folder / name, checkpoint.where) if is_there(folder / name, checkpoint.where) else {}


def _differences(
    settings: Mapping[str, Mapping[str, Any]], keys: Iterable[str], topic: str, what: str
) -> list[Finding]:
    """A warning for each key whose value is not the same in all models that have such settings. An absent one counts as
    null."""
    told = {name: values for name, values in settings.items() if values}
    lines: list[Finding] = []
    level: Callable[[str, str], Finding] = warning if topic == "config" else note
    for key in keys:
        groups: list[tuple[Any, list[str]]] = []
        for name, values in told.items():
            group = next((g for g in groups if g[0] == values.get(key)), None)
            if group is None:
                groups.append((values.get(key), [name]))
            else:
                group[1].append(name)
        if len(groups) > 1:
            lines.append(level(topic, f"{key} is {_shown(groups)}; {what}"))
    return lines


def _shown(groups: Sequence[tuple[Any, list[str]]]) -> str:
    return ", ".join(f"{quoted(value, 40)} in {', '.join(names)}" for value, names in groups)
