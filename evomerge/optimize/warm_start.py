"""Known models first, then the search: reference genomes, then a greedy soup of the best of them.

Users have 50 to 200 evaluations, and where a search begins decides more than how it goes on. So the initial genome and
the ladder of equal weights are scored first. Then the parents are taken into the best of all, one by one, as long as
that does not make it worse (greedy soup: Wortsman et al. 2022, "Model soups", recipe 1, arXiv:2203.05482). The search
begins at the best by the feasibility-first order, and knows all of them.

The soups alone are optimizers, too: `uniform-soup` and `greedy-soup`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from evomerge.files.objects import INCLUDE
from evomerge.optimize.base import GenomeId, Optimizer, Proposal, Reason, Start, identity
from evomerge.optimize.ordering import rank_key
from evomerge.optimize.phased import Phased
from evomerge.optimize.planned import Batches, Planned
from evomerge.space.genes import takes_part
from evomerge.space.reference_genomes import SOUP, ReferenceKind, sources_of
from evomerge.types import Dimension, Genome, Outcome


class WarmStart(Phased):
    """Proposes the reference genomes that are not known yet, all at once, then the soups, then the genomes of another
    optimizer."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        make: Callable[[Start], Optimizer],
        *,
        start: Start,
        asynchronous: bool = False,
    ) -> None:
        """`make`: builds the other optimizer."""
        self._dimensions, self._seed, self._make = dimensions, seed, make
        self._asynchronous = asynchronous
        super().__init__(start)

    def _phases(self) -> Iterator[Optimizer]:
        # A search that begins with the winner of another one needs no ladder, and no soup.
        references = self.start.references if self.start.genome is None else {}
        for phase in (_ReferencePhase, _SoupPhase):
            start = Start(self.start.genome, references, tuple(self._known))
            yield phase(self._dimensions, self._seed, start=start, asynchronous=self._asynchronous)
        best = min(self._known, key=lambda pair: rank_key(pair[1]))
        yield self._make(Start(best[0], self.start.references, tuple(self._known)))


class _ReferencePhase(Planned):
    """The initial genome and the reference genomes."""

    def _plan(self) -> Batches:
        self._labels = {identity(r.genome): label for label, r in self.start.references.items()}
        yield [self._initial(), *(reference.genome for reference in self.start.references.values())]
        return "all reference genomes are scored"

    def _proposal(self, genome: Genome) -> Proposal:
        label = self._labels.get(identity(genome))
        return Proposal(genome) if label is None else Proposal(genome, Reason.REFERENCE, label=label)


class Soup:
    """A greedy soup (Wortsman et al. 2022, recipe 1). `next` is the mixture to score, None once every ingredient was
    tried. Mixtures with known outcomes are not asked again."""

    def __init__(
        self, dimensions: Sequence[Dimension], ingredients: Sequence[Genome], known: Mapping[GenomeId, Outcome]
    ) -> None:
        """Begins with the best ingredient. `known` holds the outcomes of all ingredients."""
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
        """Keeps the next ingredient if the mixture with it is no worse than the one without."""
        ingredient = self._ingredients.pop(0)
        if rank_key(outcome) <= rank_key(self._outcome):
            self._outcome = outcome
            self.members.append(ingredient)

    def _mixture(self) -> Genome | None:
        """The mean of the members and the next ingredient, where its outcome is not known yet."""
        while self._ingredients:
            members = [*self.members, self._ingredients[0]]
            mixture = {d.key: self._mean(d, members) for d in self._dimensions}
            if identity(mixture) not in self._known:
                return mixture
            self._taste(self._known[identity(mixture)])
        return None

    def _mean(self, dimension: Dimension, members: Sequence[Genome]) -> Any:
        """The mean of a number; of a choice, the first member's."""
        values = [member[dimension.key] for member in members]
        if dimension.choices:
            return values[0]
        if dimension.gene == INCLUDE:  # what any of them merges
            return max(values)
        return dimension.tidy(sum(float(v) for v in values) / len(values))


class _Soups(Planned):
    """Plans with a greedy soup in them."""

    def _mixtures(self, ingredients: Sequence[Genome]) -> Generator[Sequence[Genome], None, list[Genome]]:
        """Batches of one mixture each; returns the soup's members."""
        soup = Soup(self.dimensions, ingredients, self._outcomes)
        while soup.next is not None:
            mixture = soup.next
            yield [mixture]
            soup.tell(self._outcomes[identity(mixture)])
        return soup.members


class _SoupPhase(_Soups):
    """The best genome, and the parents and their average taken into it, best first."""

    def _plan(self) -> Batches:
        parents = self._parents()
        best = min(self.start.known, key=lambda pair: rank_key(pair[1]))
        yield from self._mixtures([best[0], *(g for g, _ in self.start.known if identity(g) in parents)])
        return "every parent was tried"

    def _parents(self) -> set[GenomeId]:
        """The parents and their average; of a pool, from which subsets were proposed, the sources in these."""
        references = self.start.references
        proposed = [r.genome for r in references.values() if r.kind is ReferenceKind.SUBSET]
        if proposed:
            keys = {d.place["sources"]: d.key for d in self.dimensions if d.gene == INCLUDE}
            named = {s for s, key in keys.items() if any(takes_part(genome[key]) for genome in proposed)}
            return {identity(genome) for source, genome in sources_of(references).items() if source in named}
        return {identity(r.genome) for r in references.values() if r.kind is not ReferenceKind.EQUAL_WEIGHTS}

    def _proposal(self, genome: Genome) -> Proposal:
        return Proposal(genome, Reason.SOUP, label=SOUP)


class UniformSoup(Planned):
    """The average of all sources. A study scores it among its references: then nothing is left to propose."""

    def _plan(self) -> Batches:
        references = self.start.references.values()
        uniform = next((r.genome for r in references if r.kind is ReferenceKind.UNIFORM), None)
        yield [self._initial() if uniform is None else uniform]
        return "the uniform average is scored" if uniform is not None else "the space does not hold the uniform average"


class GreedySoup(_Soups):
    """Recipe 1: the sources, best first, are taken into the average one by one, as long as it gets no worse."""

    def _plan(self) -> Batches:
        sources = sources_of(self.start.references)
        if not sources:
            yield [self._initial()]
            return "the space does not hold the sources"
        yield list(sources.values())
        members = yield from self._mixtures(list(sources.values()))
        names = ", ".join(label for label, genome in sources.items() if genome in members)
        return f"every source was tried; in the soup are {names}"
