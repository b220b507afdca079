"""What everybody would try first, before a search: known models, equal weights, a greedy soup of the best of them.

Users have 50 to 200 evaluations, and where they begin decides more than by what they are led. So the initial genome
and the ladder of equal weights are scored first; then the parents are taken into the best of all, one by one, as long
as that does not make it worse (greedy soup: Wortsman et al. 2022, "Model soups", recipe 1, arXiv:2203.05482). The best
by the feasibility-first order is where the search begins, and all of them are known to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.optimize.base import GenomeId, Optimizer, Sequential, Start, identity
from evomerge.optimize.ordering import rank_key
from evomerge.optimize.planned import Batches, Planned
from evomerge.space.landmarks import UNIFORM, sources_of
from evomerge.types import Dimension, Genome, Outcome


class WarmStart(Sequential):
    """Proposes the landmarks that are not known yet, all at once, then the soups, then what another optimizer does."""

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, make: Callable[[Start], Optimizer], **common: Any
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self._make = make
        self._inner: Optimizer | None = None
        self._known = list(self.start.known)
        known = {identity(genome) for genome, _ in self._known}
        # Who begins with the winner of another search needs no ladder, and no soup.
        self._landmarks = self.start.landmarks if self.start.genome is None else {}
        first = {identity(g): g for g in (self._initial(), *self._landmarks.values())}
        self._ladder = [genome for name, genome in first.items() if name not in known]
        self._soup: Soup | None = None
        if not self._ladder:
            self._go_on()

    def _room(self) -> int:
        if self._inner is not None:
            return self._inner.open
        if self._soup is not None:
            return 1 - len(self._asked)
        return len(self._ladder) - self.count

    @property
    def exhausted(self) -> str | None:
        return self._inner.exhausted if self._inner is not None else super().exhausted

    @property
    def rivals(self) -> int:
        if self._inner is not None:
            return self._inner.rivals
        return 0 if self._soup is not None else len(self.history)

    @property
    def places(self) -> int:
        return self._inner.places if self._inner is not None else 1

    @property
    def why(self) -> str:
        if self._inner is not None:
            return self._inner.why
        if self._soup is not None:
            return "greedy soup"
        names = {identity(genome): label for label, genome in self._landmarks.items()}
        return names.get(identity(self._ladder[self.count]), "") if self.open > 0 else ""

    def _recall(self, genome: Genome) -> None:
        if self._inner is None:
            super()._recall(genome)
        else:
            self._inner.recall(genome)
            self._asked.append(dict(genome))

    def _propose(self) -> Genome:
        if self._inner is not None:
            return self._inner.ask()
        if self._soup is not None:
            mixture = self._soup.next
            assert mixture is not None
            return mixture
        return self._ladder[self.count]

    def _learn(self, outcome: Outcome) -> None:
        genome = self.history[-1][0]
        if self._inner is not None:
            self._inner.tell(genome, outcome)
            return
        self._known.append((genome, outcome))
        if self._soup is not None:
            self._soup.tell(outcome)
        if len(self.history) >= len(self._ladder):
            self._go_on()

    def _go_on(self) -> None:
        """From the landmarks to the soup, and from there to the search."""
        best = min(self._known, key=lambda pair: rank_key(pair[1]))
        if self._soup is None:
            parents = [identity(g) for label, g in self._landmarks.items() if not label.startswith("equal")]
            ingredients = [best[0], *(g for g, _ in self._known if identity(g) in parents)]
            self._soup = Soup(self.dimensions, ingredients, {identity(g): outcome for g, outcome in self._known})
        if self._soup.next is None:
            self._inner = self._make(Start(best[0], self.start.landmarks, tuple(self._known)))


class Soup:
    """A greedy soup (Wortsman et al. 2022, recipe 1): `next` is the mixture to score, None once every ingredient was
    tried; what is known of a mixture already is not asked again."""

    def __init__(
        self, dimensions: Sequence[Dimension], ingredients: Sequence[Genome], known: Mapping[GenomeId, Outcome]
    ) -> None:
        """Begins with the best of the ingredients; the outcomes of all of them are `known`."""
        self._dimensions, self._known = dimensions, dict(known)
        distinct = {identity(genome): genome for genome in ingredients}.values()
        first, *self._ingredients = sorted(distinct, key=lambda genome: rank_key(self._known[identity(genome)]))
        self.members, self._outcome = [first], self._known[identity(first)]
        self.next = self._mixture()

    def tell(self, outcome: Outcome) -> None:
        """The outcome of `next`."""
        assert self.next is not None
        self._taste(outcome)
        self.next = self._mixture()

    def _taste(self, outcome: Outcome) -> None:
        """Keeps the ingredient in hand if the mixture with it is no worse than the one without."""
        ingredient = self._ingredients.pop(0)
        if rank_key(outcome) <= rank_key(self._outcome):
            self._outcome = outcome
            self.members.append(ingredient)

    def _mixture(self) -> Genome | None:
        """The mean of the members and the next ingredient, where that is not known yet."""
        while self._ingredients:
            members = [*self.members, self._ingredients[0]]
            mixed = {d.key: self._mean(d, members) for d in self._dimensions}
            if identity(mixed) not in self._known:
                return mixed
            self._taste(self._known[identity(mixed)])
        return None

    def _mean(self, dimension: Dimension, members: Sequence[Genome]) -> Any:
        """The mean of a number; of a choice, the first member's."""
        values = [member[dimension.key] for member in members]
        if dimension.choices:
            return values[0]
        return dimension.tidy(sum(float(v) for v in values) / len(values))


class UniformSoup(Planned):
    """The average of all sources, which a study scores among its references: then nothing is left to propose."""

    def _plan(self) -> Batches:
        uniform = self.start.landmarks.get(UNIFORM)
        yield [self._initial() if uniform is None else uniform]
        return "the uniform average is scored" if uniform is not None else "the space does not hold the uniform average"


class GreedySoup(Planned):
    """Recipe 1: the sources, best first, are taken into the average one by one, as long as it gets no worse."""

    def _plan(self) -> Batches:
        sources = sources_of(self.start.landmarks)
        if not sources:
            yield [self._initial()]
            return "the space does not hold the sources"
        yield list(sources.values())
        soup = Soup(self.dimensions, list(sources.values()), self._outcomes)
        while soup.next is not None:
            mixture = soup.next
            yield [mixture]
            soup.tell(self._outcomes[identity(mixture)])
        members = ", ".join(label for label, genome in sources.items() if genome in soup.members)
        return f"every source was tried; in the soup are {members}"
