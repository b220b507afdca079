"""Matches the units of two language models by what they do on the items of a fitness file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from evomerge.checkpoints.layouts.unread import keys_of
from evomerge.evaluator.evaluator import Evaluator
from evomerge.evaluator.target import Target, load_evaluator
from evomerge.files.objects import FitnessSpec
from evomerge.merging.permutation.activation_matching import Recorder, Records, activation_matching
from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weight_matching import Matching
from evomerge.merging.permutation.weights import Weights
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Recipe
from evomerge.study.observer import Observer

_ITEMS = 64
"""Items of each slice that are looked at."""
_BYTES = 2_000_000_000
"""The most that both models' activations take."""
_PLACES = 4096

Call = dict[str, Any]
"""The arguments of a forward pass."""


def matcher(
    reference: str,
    model: str,
    symmetries: Symmetries,
    spec: FitnessSpec,
    seed: int,
    device: str,
    memory: str | None,
    observer: Observer,
) -> Callable[[Weights, Weights], Matching]:
    """Loads both models, runs them on search items, and returns what matches their units by that. `weights` then match
    the groups of which nothing was seen. InputError where a model cannot be loaded, or has other tokens."""
    target = Target.open(model)
    other = target.beside(reference)
    evaluator = load_evaluator(target, target.planned, [reference], spec, "search", device, memory, observer)
    observer.phase("recording activations")
    calls = _calls(evaluator, other, observer)
    one = _recorded(evaluator, calls, symmetries)
    _run(evaluator, target.recipe, observer)
    its = _recorded(evaluator, calls, symmetries)
    target.check_unchanged()

    def match(mine: Weights, weights: Weights) -> Matching:
        return activation_matching(symmetries, one, its, (mine, weights), seed)

    return match


def _run(evaluator: Evaluator, recipe: Recipe, observer: Observer) -> None:
    """Scores a model on a few search items of each slice."""
    slices = evaluator.suite.slices
    items = {name: frozenset(s.source.names("search")[:_ITEMS]) for name, s in slices.items()}
    evaluator.evaluate(recipe, "search", observer.slice_started, items)


def _calls(evaluator: Evaluator, recipe: Recipe, observer: Observer) -> list[Call]:
    """The forward passes in which a model is scored: of whole texts, not those that write one token after the other."""
    calls: list[Call] = []

    def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = named.get("input_ids", given[0] if given else None)
        if tokens is not None and tokens.shape[1] > 1 and named.get("past_key_values") is None:
            kept = {k: v for k, v in named.items() if k in ("attention_mask", "position_ids")}
            calls.append({"input_ids": tokens, **kept})

    resident = evaluator.resident
    assert isinstance(resident, Resident)
    handle = resident.model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        _run(evaluator, recipe, observer)
    finally:
        handle.remove()
    return calls


@torch.no_grad()
def _recorded(evaluator: Evaluator, calls: list[Call], symmetries: Symmetries) -> Records:
    """What the modules of the model that is in memory are given in these forward passes."""
    resident = evaluator.resident
    assert isinstance(resident, Resident)
    model = resident.model
    keys = {name: key for name, (key, _) in keys_of(model, symmetries.axes).items()}
    width = sum(group.units * group.members for group in symmetries.groups.values()) * 4
    places = max(64, min(_PLACES, _BYTES // (2 * 4 * max(1, width))))
    recorder = Recorder(symmetries, model, keys, places)
    padding = model.config.get_text_config().pad_token_id
    for call in calls:
        tokens = call["input_ids"]
        with recorder.listening(None if padding is None else tokens != padding):
            model(**call, use_cache=False)
    return recorder.records
