"""Random numbers are those of the published generator, and depend on their key alone."""

from __future__ import annotations

import pytest
import torch

from pretrain.random import Purpose, permutation, philox, uniform, words

# Known answers of Random123 (Salmon et al.), kat_vectors, philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    assert [int(word) for word in philox(key[0] | key[1] << 32, (a, b, c, d))] == list(expected)


def test_a_sample_draws_the_same_numbers_in_any_batch() -> None:
    g = torch.tensor([5, 2**40 + 3, 17])
    together = uniform(7, Purpose.MASK, g, 10)
    for row, one in zip(together, g, strict=True):
        assert torch.equal(row, uniform(7, Purpose.MASK, one[None], 10)[0])
    assert torch.equal(together[:, :6], uniform(7, Purpose.MASK, g, 6))


def test_seed_purpose_and_number_each_change_the_numbers() -> None:
    g = torch.tensor([5])
    base = words(1, Purpose.MASK, g, 8)
    assert not torch.equal(base, words(2, Purpose.MASK, g, 8))
    assert not torch.equal(base, words(1 + 2**32, Purpose.MASK, g, 8))
    assert not torch.equal(base, words(1, Purpose.CROP, g, 8))
    assert not torch.equal(base, words(1, Purpose.MASK, g + 2**32, 8))


def test_uniform_numbers_are_uniform() -> None:
    draws = uniform(3, Purpose.CROP, torch.arange(20_000), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.histc(draws.flatten(), bins=16, min=0, max=1) / draws.numel() * 16
    assert (histogram - 1).abs().max() < 0.03  # 160 000 draws: 3 % of a bin is 3 standard deviations
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert neighbours.abs() < 0.01


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000])
def test_permutation_is_one(size: int) -> None:
    assert permutation(0, Purpose.SHARDS, 3, size).sort().values.tolist() == list(range(size))


def test_permutations_are_equally_likely() -> None:
    first = torch.tensor([permutation(0, Purpose.SHARDS, epoch, 4).tolist() for epoch in range(2400)])
    codes = (first * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.bincount()
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert (counts - 100).abs().max() < 50  # 5 standard deviations
