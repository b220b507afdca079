"""Builds the search space that a space file describes."""

from __future__ import annotations

from evomerge.files.objects import SpaceSpec
from evomerge.space.base import Models, SearchSpace
from evomerge.space.blocks import BlockSpace, MergedBlockSpace
from evomerge.space.slots import SlotSpace
from evomerge.space.space import Space


def space_of(spec: SpaceSpec, models: Models) -> SearchSpace:
    """The space of merges, of slots, or of blocks. Raises InputError where it does not fit the models."""
    flow = spec.dataflow
    if flow is None:
        return Space(spec, models)
    if flow.both:
        return MergedBlockSpace(spec, models)
    return SlotSpace(spec, models) if flow.blocks is None else BlockSpace(spec, models)
