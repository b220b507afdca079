"""A path as slots: all layers of all models stand in a row, once or more, and a number says whether each is used."""

from __future__ import annotations

from evomerge.errors import InputError
from evomerge.files.objects import SpaceSpec
from evomerge.space.base import Models
from evomerge.space.genes import MOST_DIMENSIONS, dimension_key
from evomerge.space.paths import PathSpace, Place, spare
from evomerge.types import Dimension, Genome

_MOST_PAIRS = 256
"""Scales that `auto` gives each pair of layers one: about what some hundred trials can tell anything of."""

_USED = 0.5
"""The initial value of a layer that is used; of the others it is the negative."""


class SlotSpace(PathSpace):
    """A search space of slots. One is used where its value is above 0; where more are used than the limits allow, those
    with the smallest values are left out, and the later ones among equals."""

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        super().__init__(spec, models)
        kept = self._kept()
        dimensions: list[Dimension] = []
        for key, (model, layer), repeat in self._slots:
            init = _USED if repeat == 1 and model == self.first and layer in kept else -_USED
            place = {"sources": model, "layers": str(layer)}
            dimensions.append(Dimension(key, -1.0, 1.0, init, False, (), "use", place))
        self._make_scales()
        self.dimensions = (*dimensions, *self.scales.values())

    def facts(self) -> dict[str, str]:
        return {"slots": str(len(self._slots)), **super().facts()}

    def _kept(self) -> set[int]:
        """The layers of the first model with which the search begins: all, or what the limits allow of them."""
        depth = self._depth(self.first)
        kept = set(range(depth))
        for layer in spare(range(1, depth - 1), depth):
            if self.limits.hold(self._sizes((self.first, i) for i in kept)):
                break
            kept.remove(layer)
        return kept

    def _form(self) -> tuple[str, str]:
        self._slots = self._all_slots()
        form = self.flow.scales.form
        if form == "auto":
            count = len(self._pairs())
            form, reason = self._exact("pairs" if count <= _MOST_PAIRS else "shared")
            few = "few" if form == "pairs" else f"more than {_MOST_PAIRS}"
            return form, reason or f"{count} pairs of layers are {few}"
        form, reason = self._exact(form)
        if form == "pairs" and len(self._pairs()) > MOST_DIMENSIONS:
            problem = f"{len(self._pairs()):,} pairs of layers are more than {MOST_DIMENSIONS:,} searched values"
            raise InputError(problem, "write `scales: shared`", self.spec.at("scales"))
        return form, reason

    def _all_slots(self) -> list[tuple[str, Place, int]]:
        """Key, layer and repeat of each slot, in order."""
        repeats, slots = self.flow.repeats, []
        count = repeats * sum(map(self._depth, self.path.models))
        if count > MOST_DIMENSIONS:
            problem = f"{count:,} slots are more than {MOST_DIMENSIONS:,} searched values"
            raise InputError(problem, "give fewer repeats, or `blocks`", self.spec.at("repeats"))
        for repeat in range(1, repeats + 1):
            for model in self.path.models:
                for layer in range(self._depth(model)):
                    if (model, layer) not in self._ends:
                        places = [model, str(layer)] + ([str(repeat)] if repeats > 1 else [])
                        slots.append((dimension_key("use", places), (model, layer), repeat))
        return slots

    def _pairs(self) -> dict[tuple[Place, Place], None]:
        """The pairs of layers that can follow each other, each once."""
        first, last = self._ends
        distinct = list(dict.fromkeys(place for _, place, _ in self._slots))
        pairs: dict[tuple[Place, Place], None] = dict.fromkeys([(first, last)])
        for at, place in enumerate(distinct):
            following = distinct if self.flow.repeats > 1 else distinct[at + 1 :]
            pairs |= dict.fromkeys([(first, place), (place, last), *((place, other) for other in following)])
        return pairs

    def _make_scales(self) -> None:
        if self.form == "pairs":
            for before, after in self._pairs():
                self._scale_dimension(_pair(before, after))
        elif self.form == "shared":
            for names in dict.fromkeys(shared(before, after) for before, after in self._pairs()):
                self._scale_dimension(names)

    def _scale(self, before: Place, after: Place) -> str | None:
        if self.form == "none":
            return None
        return dimension_key("scale", _pair(before, after) if self.form == "pairs" else shared(before, after))

    def _places(self, genome: Genome) -> list[Place]:
        used = [(place, float(genome[key])) for key, place, _ in self._slots if float(genome[key]) > 0]
        (first, last), out = self._ends, set[int]()
        for at in sorted(range(len(used)), key=lambda at: (used[at][1], -at)):
            places = [first, *(place for i, (place, _) in enumerate(used) if i not in out), last]
            if self.limits.hold(self._sizes(places)):
                return places
            out.add(at)
        return [first, *(place for i, (place, _) in enumerate(used) if i not in out), last]


def _pair(before: Place, after: Place) -> tuple[str, ...]:
    return before[0], str(before[1]), after[0], str(after[1])


def shared(before: Place, after: Place) -> tuple[str, str, str]:
    """What the scales of like hops have in common: the models, and whether it leads back, on to the next layer, or
    ahead."""
    step = after[1] - before[1]
    return before[0], after[0], "on" if step == 1 else "ahead" if step > 1 else "back"
