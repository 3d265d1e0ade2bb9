"""Counter-based random numbers: every draw is a pure function of (seed, purpose, number, index).

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), in int64 tensor arithmetic,
so that a CPU and a GPU, any batch size and any rank draw the same numbers for the same sample. The key is the run's
seed; the 128-bit counter is (index, purpose, low word of the number, high word). Distinct counters never collide.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a draw is for. Numbers of different purposes are independent; values are never reused or renumbered."""

    SHARDS = 1  # order of the shards; number = epoch
    RUNS = 2  # order of runs of neighbours inside a run window
    SAMPLES = 3  # order of samples inside a window
    REPLACEMENT = 4  # which sample stands in for a broken one; number = g
    CROP = 5  # crop boxes; number = g
    FLIP = 6
    MASK = 7
    DROP_PATH = 8  # number = that of a row, index = 2 × block + branch
    COLOR = 9  # changes of colour; number = g
    SOURCE = 10  # the seed of a source of a mixture; number = its place among their names
    MIXTURE = 11  # which source is next; number = block


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        seed: 0 ≤ seed < 2⁶⁴, the key.
        counter: four int64 tensors of one (broadcast) shape that hold 32-bit words.

    Returns:
        four int64 tensors of that shape that hold independent, uniform 32-bit words.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        p0, p1 = (x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1])  # wraps modulo 2⁶⁴: the bits are those of the product
        x0, x1, x2, x3 = (((p1 >> 32) & _WORD) ^ x1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ x3 ^ k1, p0 & _WORD)
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return x0, x1, x2, x3


def words(seed: int, purpose: Purpose, number: Tensor, count: int) -> Tensor:
    """`count` uniform 32-bit words for each number: [B] int64 → [B, count] int64."""
    quads = torch.arange((count + 3) // 4, device=number.device)
    number = number[:, None]
    counter = (quads, torch.full_like(quads, purpose), number & _WORD, (number >> 32) & _WORD)
    shaped = torch.broadcast_tensors(*counter)
    return torch.stack(philox(seed, shaped), dim=-1).flatten(1)[:, :count]


def uniform(seed: int, purpose: Purpose, number: Tensor, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) with 24 bits for each number: [B] int64 → [B, count] float32."""
    return (words(seed, purpose, number, count) >> 8).to(torch.float32) * 2.0**-24


def permutation(seed: int, purpose: Purpose, number: int, size: int) -> Tensor:
    """A uniformly random order of `range(size)`: [size] int64."""
    return words(seed, purpose, torch.tensor([number]), size)[0].argsort(stable=True)
