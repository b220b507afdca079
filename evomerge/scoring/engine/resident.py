"""lm-eval's own model class around the resident model. Imports torch and lm-eval: import it where it is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from evomerge.scoring.engine.plan import Plan
from evomerge.scoring.engine.shortcuts import Shortcuts


class ResidentLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """`HFLM` over a model whose weights change between calls.

    It keeps nothing that depends on the weights. What does not, a candidate should not pay for: `plan` prepares
    requests once, `answer` asks the model of now. lm-eval's own methods work as ever, and remember token ids. It works
    on a copy of the tokenizer, because lm-eval gives its tokenizer a padding token and the caller's goes out with the
    winner.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, add_bos_token: bool | None = None) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            add_bos_token=add_bos_token,
        )
        self._encoded: dict[tuple[str, bool | None, int | None], list[int]] = {}
        self.shortcuts = Shortcuts(model, self.backend)
        self.greedy: bool | None = None
        """Whether text is decoded by the engine's own loop; None until it has been compared (see engine.generation)."""

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        key = (string, add_special_tokens, left_truncate_len)
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return list(self._encoded[key])

    def plan(self, requests: Sequence[Any]) -> Any:
        """Prepare lm-eval instances of one request type, in order; `.tokens` has the number of scored tokens of each
        (0 for generation). Looks at no weights.

        Raises:
            InputError: a request that no weights can answer.
            ValueError: request types are mixed.
        """
        kinds = {request.request_type for request in requests} or {"loglikelihood"}
        if len(kinds) > 1:
            raise ValueError(f"one plan has one request type, not {', '.join(sorted(kinds))}")
        kind = kinds.pop()
        if kind == "generate_until":
            from evomerge.scoring.engine.generation import plan_generation

            return plan_generation(self, requests)
        return Plan(self, kind, requests)

    def answer(self, plan: Any) -> list[Any]:
        """What `HFLM` would answer to the plan's requests with the weights of now, in their order:
        (loglikelihood, is_greedy), a float for loglikelihood_rolling, a string for generate_until."""
        if isinstance(plan, Plan):
            return plan.answer(self)
        from evomerge.scoring.engine.generation import generate

        return generate(self, plan)
