"""Puts the resident model behind lm-eval's model class. Imports torch and lm-eval: import it where it is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from evomerge.checkpoints.tokenizer import tokenizing
from evomerge.safety.templates import check_rendered, rendering
from evomerge.scoring.engine.plan import Plan
from evomerge.scoring.engine.shortcuts import Shortcuts


class BoundedChat:
    """Makes one text of a conversation, for lm-eval's model classes."""

    tokenizer: Any

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text. The template came with a checkpoint, so its time and memory are bounded.

        Raises:
            InputError: the template fails, takes too much, or makes too long a text.
        """
        owner = str(self.tokenizer.name_or_path)
        with rendering(owner):
            text: str = super().apply_chat_template(chat_history, add_generation_prompt)  # type: ignore[misc]
        check_rendered(text, owner)
        return text


class ResidentLM(BoundedChat, HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Runs `HFLM` over a model whose weights change between calls.

    It keeps nothing that depends on the weights. `plan` prepares requests once, `answer` answers them with the current
    weights. lm-eval's methods work as usual, and remember token ids. The tokenizer is a copy: lm-eval adds a padding
    token to it, and the caller's is exported with the winner.
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
        """Whether text is decoded by the engine's loop; None until that has been compared (see `generation`)."""

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The tokens of a text. InputError where the tokenizer fails on it."""
        key = (string, add_special_tokens, left_truncate_len)
        if key not in self._encoded:
            with tokenizing(str(self.tokenizer.name_or_path)):
                self._encoded[key] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return list(self._encoded[key])

    def plan(self, requests: Sequence[Any]) -> Any:
        """Prepares lm-eval instances of one request type, in order. The plan's `tokens` has the number of scored tokens
        of each (0 for generation). Reads no weights.

        Raises:
            InputError: no weights could answer a request.
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
        """Answers a plan's requests with the current weights, in order, as `HFLM` does: (loglikelihood, is_greedy), a
        float for loglikelihood_rolling, a string for generate_until."""
        if isinstance(plan, Plan):
            return plan.answer(self)
        from evomerge.scoring.engine.generation import generate

        return generate(self, plan)
