"""Random masks without a random generator: element i is kept iff hash(seed, source, tensor, i) < density.

Nothing is stored, any part can be drawn alone and in any order, CPU and GPU agree, and the mask at a lower density is a
subset of the mask at a higher one, so a small step in density is a small step in weights. The steps:

1. `Draw.keys`: two 32-bit keys = the first 8 bytes of sha256(seed, source, tensor, block of 2^31 elements).
2. `mix`: h = hash of the element's number in its block under the two keys, uniform over the 2^32 words.
3. `limit`: the element is kept iff h <= density 2^32 - 1, both less 2^31, as int32 holds them.

The hash follows the 32-bit integer permutation "lowbias32" (C. Wellons, Prospecting for Hash Functions, 2018), keyed at
its start and in its middle by words of sha256(seed, source, tensor).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 31  # elements that one pair of keys numbers
_LOWEST = -(1 << 31)


def _signed(word: int) -> int:
    """The 32-bit word as torch's int32 holds it."""
    return word - (1 << 32) if word >= 1 << 31 else word


_FIRST, _SECOND, _THIRD = _signed(0x7FEB352D), _signed(0x846CA68B), _signed(0x9E3779B1)


def _xor_shift(words: Tensor, bits: int) -> Tensor:
    """words ^ (words >>> bits), in memory of its own: to write into that is twice as fast in plain torch."""
    # int32 shifts right with its sign; the mask makes it the unsigned shift
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1).bitwise_xor_(words)


def lowbias32(words: Tensor) -> Tensor:
    """A permutation of 32-bit words (int32; products wrap)."""
    words = _xor_shift(words, 16).mul_(_FIRST)
    words = _xor_shift(words, 15).mul_(_SECOND)
    return _xor_shift(words, 16)


def mix(index: Tensor, first: Tensor | int, second: Tensor | int) -> Tensor:
    """The hash of element numbers (int32) under two keys: int32, a permutation of all 2^32 values.

    It ends in a product: a mask compares, which looks at high bits first, and those a product mixes best. The second
    key comes in the middle, so that masks of different keys are not shifts of each other.
    """
    words = _xor_shift(index + first, 16).mul_(_FIRST)
    words = _xor_shift(words, 15) ^ second
    return _xor_shift(words.mul_(_SECOND), 16).mul_(_THIRD)


def limit(density: float) -> int:
    """The largest hash that is kept: each of the 2^32 values is equally likely. For 0 < density <= 1."""
    return min(max(int(density * (1 << 32)) - 1, 0), (1 << 32) - 1) + _LOWEST


def limits(densities: Tensor) -> Tensor:
    """`limit` of each density (float64): int32."""
    return ((densities * (1 << 32)).to(torch.int64) - 1).clamp(0, (1 << 32) - 1).add(_LOWEST).to(torch.int32)


@dataclass(frozen=True)
class Draw:
    """The random masks of one output tensor: `seed` is the recipe document's, `tensor` the output tensor's name."""

    seed: int
    tensor: str

    def keys(self, source: int, block: int = 0) -> tuple[int, int]:
        """The keys of source number `source` for the elements of one block."""
        text = f"{self.seed}\0{source}\0{self.tensor}\0{block}"
        first, second = struct.unpack("<ii", hashlib.sha256(text.encode()).digest()[:8])
        return first, second

    def words(self, source: int, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
        """The hashes of elements start..end of source number `source`: int32."""
        chunks = []
        while start < end:
            block, stop = start // BLOCK, min(end, (start // BLOCK + 1) * BLOCK)
            numbers = torch.arange(start - block * BLOCK, stop - block * BLOCK, dtype=torch.int32, device=device)
            chunks.append(mix(numbers, *self.keys(source, block)))
            start = stop
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def mask(self, source: int, density: float, like: Tensor) -> Tensor:
        """The mask of source number `source`: bool, in the shape of `like`. Each element is kept with probability
        `density` (resolution 2^-32)."""
        if density <= 0 or density >= 1:
            return torch.full_like(like, density >= 1, dtype=torch.bool)
        return (self.words(source, 0, like.numel(), like.device) <= limit(density)).reshape(like.shape)
