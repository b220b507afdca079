"""Model soups: averages of all sources, or of chosen ones (Wortsman et al. 2022, "Model soups", arXiv:2203.05482)."""

from __future__ import annotations

from evomerge.optimize.base import identity
from evomerge.optimize.planned import Batches, Planned
from evomerge.optimize.warm_start import Soup
from evomerge.space.landmarks import UNIFORM, sources_of


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
