"""What every scorer has to hold to. Another package tests its own by a class of these tests:

```python
class TestScorers(ScorerConformance):
    names = ("my_scorer",)
    items = ({"question": "one", "answer": "1"}, {"question": "two", "answer": "2"})

    @pytest.fixture
    def model(self): ...

    @pytest.fixture
    def tokenizer(self): ...
```
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from evomerge.plugins import scorers
from evomerge.scoring.python.callables import numbers
from evomerge.testing.suite import Suite

_CLOSE = 1e-4
"""What a batch of another size may change of a score, by rounding."""


def scorer(name: str) -> Callable[..., Any]:
    """The function of a scorer."""
    module, _, function = scorers()[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


class ScorerConformance(Suite):
    """Tests of the scorers `names`. A class has the fixtures `model` and `tokenizer` besides.

    Attributes:
        items: at least two items, as they stand in the scorer's data.
    """

    items: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def scores(self, name: str, model: Any, tokenizer: Any, places: Sequence[int] | None = None) -> list[float]:
        """The scores of the items at these places; None: of all."""
        chosen = [copy.deepcopy(dict(self.items[i])) for i in (range(len(self.items)) if places is None else places)]
        with torch.no_grad():
            return numbers(scorer(name)(model, tokenizer, chosen), len(chosen), name)

    def test_each_item_gets_a_number(self, name: str, model: Any, tokenizer: Any) -> None:
        assert len(self.items) >= 2
        assert len(self.scores(name, model, tokenizer)) == len(self.items)

    def test_scores_are_the_same_again(self, name: str, model: Any, tokenizer: Any) -> None:
        """A resumed search has to find the scores that it found."""
        first = self.scores(name, model, tokenizer)
        random.seed(5), torch.manual_seed(5)
        assert self.scores(name, model, tokenizer) == first

    def test_an_item_is_scored_by_itself(self, name: str, model: Any, tokenizer: Any) -> None:
        """A search that prunes asks for some of the items, in any company."""
        whole = self.scores(name, model, tokenizer)
        turned = self.scores(name, model, tokenizer, [*range(len(self.items))][::-1])
        assert turned[::-1] == pytest.approx(whole, abs=_CLOSE)
        for place, score in enumerate(whole):
            assert self.scores(name, model, tokenizer, [place]) == pytest.approx([score], abs=_CLOSE)

    def test_the_model_stays_as_it_is(self, name: str, model: Any, tokenizer: Any) -> None:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        mode = model.training
        self.scores(name, model, tokenizer)
        assert model.training == mode
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
