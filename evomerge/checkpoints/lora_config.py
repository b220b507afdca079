"""Reads adapter_config.json: its settings, and the patterns by which some modules have settings of their own."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.config import read_settings
from evomerge.errors import InputError, Where
from evomerge.escape import quoted, shortened
from evomerge.safety.read import is_there

CONFIG = "adapter_config.json"
SECONDS = 3.0
"""Of the processor, for all patterns of an adapter over all of its modules: one that backtracks can take years.
Two patterns for each of 560 modules, as some adapters of 70B models have, take one and a half."""
_LONGEST_PATTERN = 1_000
# Settings with which B A is not what an adapter adds to a stored matrix
_REFUSED = ("layer_replication", "alora_invocation_tokens", "arrow_config", "use_qalora",
            "use_bdlora", "kasa_config", "monteclora_config")  # fmt: skip
_ALTERED_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
MERGE = "merge it into its base with peft (merge_and_unload, save_pretrained)"
_Error = Callable[[str, str], InputError]


class LoraConfig:
    """The settings of an adapter that decide its merged weights.

    Attributes:
        base, revision: the model that it was trained on; None if it does not say.
        rank_stabilized: whether B A is divided by the root of the rank.
        ties_weights: whether head and embeddings stayed one matrix in training.
        parameters: the ends of the names of parameters that are adapted by themselves, without a layer (experts).
        version: of the PEFT that wrote it, such as (0, 18); None if it does not say.
    """

    def __init__(self, config: Mapping[str, Any], error: _Error) -> None:
        """`error`: makes the error for a problem and how to mend it. Raises it if a setting is wrong, or if the adapter
        cannot be merged into weights."""
        self._error = error
        _check_kind(config, error)
        self.base, self.revision = (self._text(config, key) for key in ("base_model_name_or_path", "revision"))
        self.rank_stabilized, self.ties_weights = (
            bool(config.get("use_rslora")),
            bool(config.get("ensure_weight_tying")),
        )
        self._rank = _checked("r", config.get("r"), _is_rank, error)
        self._alpha = _checked("lora_alpha", config.get("lora_alpha"), _is_number, error)
        self._ranks = self._mapping(config, "rank_pattern", _is_rank)
        self._alphas = self._mapping(config, "alpha_pattern", _is_number)
        rows = config.get("trainable_token_indices") or []
        self._rows = rows if isinstance(rows, list) else self._mapping(config, "trainable_token_indices", _are_rows)
        if isinstance(rows, list):
            _checked("trainable_token_indices", rows, _are_rows, error)
        parameters = config.get("target_parameters") or []
        self.parameters: list[str] = _checked("target_parameters", parameters, _are_texts, error)
        version = re.match(r"(\d{1,9})\.(\d{1,9})", str(config.get("peft_version")))
        self.version = (int(version[1]), int(version[2])) if version else None
        self._left = SECONDS
        self._compiled: dict[str, Any] = {}  # the cache of `regex` holds 500, and large models have more modules

    def rank(self, module: str) -> int:
        """The rank of a module. Raises the error if a pattern is none, or takes too long; so do the next two."""
        return int(self._first_match(self._ranks, module, self._rank))

    def alpha(self, module: str) -> float:
        """The alpha of a module."""
        return float(self._first_match(self._alphas, module, self._alpha))

    def token_rows(self, module: str) -> list[int]:
        """The rows of a module's matrix that trained tokens replace."""
        rows: list[int] = self._rows if isinstance(self._rows, list) else self._first_match(self._rows, module, [])
        return rows

    def _text(self, config: Mapping[str, Any], key: str) -> str | None:
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(f"{key} in its {CONFIG} is {quoted(value)}, not a text", "mend it")
        return value or None

    def _mapping(self, config: Mapping[str, Any], key: str, legal: Callable[[Any], bool]) -> Mapping[str, Any]:
        """A setting that maps patterns to values."""
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise self._error(f"{key} in its {CONFIG} is not a mapping", "mend it")
        for pattern, value in patterns.items():
            _checked(f"{key}.{shortened(pattern, 60)}", value, legal, self._error)
        return patterns

    def _first_match(self, patterns: Mapping[str, Any], module: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of a module's name."""
        started = time.process_time()
        found = default
        for pattern, value in patterns.items():
            if self._matches(pattern, module, self._left - (time.process_time() - started)):
                found = value
                break
        self._left -= time.process_time() - started
        return found

    def _matches(self, pattern: str, module: str, seconds: float) -> bool:
        """Whether the end of a module's name matches a pattern; it may take some seconds."""
        import regex

        try:
            if pattern not in self._compiled:
                if len(pattern) > _LONGEST_PATTERN:
                    raise self._error(f"the pattern {quoted(pattern, 80)} has {len(pattern)} characters", "mend it")
                self._compiled[pattern] = regex.compile(rf"(.*\.)?({pattern})$")
            if seconds <= 0:
                raise TimeoutError
            return bool(self._compiled[pattern].match(module, timeout=seconds))
        except TimeoutError:
            problem = f"the pattern {quoted(pattern, 80)}, with those before it, takes more than {SECONDS:g} s"
            raise self._error(problem, "write it simpler") from None
        except (regex.error, RecursionError, MemoryError, OverflowError) as error:
            raise self._error(f"{quoted(pattern, 80)} is no regular expression ({error})", "mend it") from None


def read_config(folder: Path, error: _Error, where: Where | None = None) -> LoraConfig:
    """The settings of an adapter folder. InputError if it has none, or if they are wrong."""
    if not is_there(folder / CONFIG, where):
        raise InputError(f"{folder} is no adapter: it has no {CONFIG}", "give a LoRA adapter's folder", where)
    return LoraConfig(read_settings(folder / CONFIG, where), error)


def _check_kind(config: Mapping[str, Any], error: _Error) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise error(f"it is of type {shortened(kind, 40)}, not LORA", MERGE)
    used = next((key for key in _REFUSED if config.get(key)), None)
    if used:
        raise error(f"{used} in its {CONFIG} is not supported", MERGE)
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_ALTERED_BASE):
        problem = f"it belongs to a base whose weights its start ({shortened(start, 40)}) has altered"
        raise error(problem, "save it with peft's path_initial_model_for_weight_conversion")


def _checked(key: str, value: Any, legal: Callable[[Any], bool], error: _Error) -> Any:
    if not legal(value):
        raise error(f"{key} in its {CONFIG} is {quoted(value)}, not {_WANTED[legal]}", "mend it")
    return value


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf and abs(value) <= 1e30


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(type(row) is int and row >= 0 for row in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_WANTED: Mapping[Callable[[Any], bool], str] = {
    _is_rank: "a whole number above 0",
    _is_number: "a number",
    _are_rows: "a list of rows",
    _are_texts: "a list of texts",
}
