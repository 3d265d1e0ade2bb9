"""Slots of shared memory: none is filled again while somebody holds a piece of what is in it."""

from __future__ import annotations

import gc
import itertools
import mmap
from pathlib import Path

import pytest
import torch

from pretrain.data.module import ShardData
from pretrain.data.stream.ring import Parcel, Ring
from pretrain.records import Batch
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards

SPECS = (ViewSpec(8, count=2), ViewSpec(5, count=3))


def filled(ring: Ring, value: int, count: int = 4) -> Parcel:
    """What a reader sends when every pixel is `value`."""
    views = ring.views(count)
    for view in views:
        view.fill_(value)
    return ring.pack(Batch(views, torch.arange(count), torch.zeros(count, dtype=torch.int64), [""] * count, 0))


def test_a_slot_is_free_when_the_last_piece_of_its_batch_is_gone() -> None:
    ring = Ring(2, SPECS, batch=4)
    batch = filled(ring, 1).batch()
    assert [tuple(view.shape) for view in batch.views] == [(2, 4, 3, 8, 8), (3, 4, 3, 5, 5)]
    piece = batch.views[1][0, 1:2]
    del batch
    gc.collect()
    assert [filled(ring, 2).slot, filled(ring, 3).slot] == [
        1,
        None,
    ]  # the first is held by a slice, the others are sent
    assert piece.unique().tolist() == [1]
    del piece
    gc.collect()
    assert filled(ring, 4).slot == 0


def test_views_in_a_slot_do_not_overlap() -> None:
    ring = Ring(1, SPECS, batch=4)
    first, second = ring.views(4)
    first.fill_(1)
    second.fill_(2)
    assert first.unique().tolist() == [1]
    assert first.permute(0, 1, 3, 4, 2).is_contiguous()  # a crop is written in one piece


def test_a_batch_without_a_slot_arrives_all_the_same() -> None:
    ring = Ring(1, SPECS, batch=4)
    held = filled(ring, 1)
    other = filled(ring, 2)
    assert (held.slot, other.slot) == (0, None)
    assert [view.unique().tolist() for parcel in (held, other) for view in parcel.batch().views] == [[1], [1], [2], [2]]


def test_flags_of_many_slots_lie_before_all_of_them() -> None:
    ring = Ring(mmap.PAGESIZE + 1, [ViewSpec(1)], batch=1)
    parcels = [
        filled(ring, 0, 1) for _ in range(mmap.PAGESIZE + 1)
    ]  # zeros, which as flags would say that slots are free
    assert [parcel.slot for parcel in parcels] == list(range(mmap.PAGESIZE + 1))
    assert filled(ring, 0, 1).slot is None


def test_pinning_frees_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    ring = Ring(1, SPECS, batch=4)
    pinned = filled(ring, 7).pin_memory()
    gc.collect()
    assert filled(ring, 8).slot == 0
    assert pinned.views[0].unique().tolist() == [7]


@pytest.mark.parametrize("hold", [False, True])
def test_a_trainer_that_holds_batches_keeps_their_pixels(
    tmp_path: Path, hold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever collects batches gets new memory for the rest; whoever lets go of them gets a slot every time."""
    write_shards(tmp_path / "d", [10, 7, 1])
    here, there = (
        ShardData(str(tmp_path / "d"), num_workers=threads, index_dir=str(tmp_path / "i")).batches(3, 0, 6, SPECS)
        for threads in (0, 2)
    )
    slots, unpack = [], Parcel.batch

    def noting(parcel: Parcel) -> Batch:
        slots.append(parcel.slot)
        return unpack(parcel)

    monkeypatch.setattr(Parcel, "batch", noting)
    held = []
    for batch in itertools.islice(there, 24):
        held.append(batch if hold else [view.clone() for view in batch.views])
        del batch
    views = [batch.views if hold else batch for batch in held]
    for expected, actual in zip(itertools.islice(here, 24), views, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(expected.views, actual, strict=True))
    assert (None in slots) is hold
