"""lm-eval's own model class around the resident model. Imports torch and lm-eval: import it where it is used."""

from __future__ import annotations

import copy
from typing import Any

from lm_eval.models.huggingface import HFLM


class ResidentLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """`HFLM` over a model whose weights change between calls.

    It keeps nothing that depends on the weights. What depends on the tokenizer alone, the token ids of a text, is
    kept, so that a candidate's cost is its forward passes. It works on a copy of the tokenizer, because lm-eval
    gives its tokenizer a padding token and the caller's goes out with the winner.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, add_bos_token: bool | None = None) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            add_bos_token=add_bos_token,
        )
        self._encoded: dict[tuple[str, bool | None, int | None], list[int]] = {}

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
