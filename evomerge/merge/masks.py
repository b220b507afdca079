"""Random masks without a random generator: element i is kept iff hash(seed, source, tensor, i) < density.

Nothing is stored, any part can be drawn alone and in any order, CPU and GPU agree, and the mask at a lower density is a
subset of the mask at a higher one, so a small step in density is a small step in weights.

The hash is two rounds of the 32-bit integer permutation "lowbias32" (C. Wellons, Prospecting for Hash Functions, 2018),
keyed before each round by words of sha256(seed, source, tensor).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merge.arithmetic import spans

_CHUNK = 1 << 18  # elements hashed at a time, so that the rounds stay in cache; the bits do not depend on it
_BLOCK = 1 << 31  # elements that one pair of keys numbers


def _signed(word: int) -> int:
    """The 32-bit word as torch's int32 holds it."""
    return word - (1 << 32) if word >= 1 << 31 else word


_FIRST, _SECOND = _signed(0x7FEB352D), _signed(0x846CA68B)


def _xor_shift(words: Tensor, bits: int) -> None:
    # int32 shifts right with its sign; the mask makes it the unsigned shift
    words.bitwise_xor_((words >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _lowbias32(words: Tensor) -> None:
    """Permute 32-bit words (int32, in place; products wrap)."""
    _xor_shift(words, 16)
    words.mul_(_FIRST)
    _xor_shift(words, 15)
    words.mul_(_SECOND)
    _xor_shift(words, 16)


@dataclass(frozen=True)
class Draw:
    """The random masks of one output tensor: `seed` is the recipe document's, `tensor` the output tensor's name."""

    seed: int
    tensor: str

    def _keys(self, source: int, block: int) -> tuple[int, int]:
        text = f"{self.seed}\0{source}\0{self.tensor}\0{block}"
        first, second = struct.unpack("<ii", hashlib.sha256(text.encode()).digest()[:8])
        return first, second

    def words(self, source: int, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
        """The hashes of elements start..end of source number `source`: int32, uniform over all 2^32 values."""
        pieces = []
        while start < end:
            block, stop = start // _BLOCK, min(end, (start // _BLOCK + 1) * _BLOCK)
            first, second = self._keys(source, block)
            offset = block * _BLOCK
            words = torch.arange(start - offset, stop - offset, dtype=torch.int32, device=device)
            _lowbias32(words.bitwise_xor_(first))
            _lowbias32(words.bitwise_xor_(second))
            pieces.append(words)
            start = stop
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def mask(self, source: int, density: float, like: Tensor, chunk: int = _CHUNK) -> Tensor:
        """Which elements of `like` source number `source` keeps: bool, of its shape, each kept with probability
        `density` (resolution 2^-32)."""
        kept = torch.empty(like.numel(), dtype=torch.bool, device=like.device)
        if density <= 0 or density >= 1:
            return kept.fill_(density >= 1).reshape(like.shape)
        limit = int(density * (1 << 32)) - (1 << 31)
        for span in spans(like.numel(), chunk):
            torch.lt(self.words(source, span.start, span.stop, like.device), limit, out=kept[span])
        return kept.reshape(like.shape)
