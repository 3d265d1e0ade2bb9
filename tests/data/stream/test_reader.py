"""The reader: the right samples, whatever the ranks, threads and entry points, and what happens to bad ones."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.shard.index import Index, open_index
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream, BrokenDataError
from pretrain.data.stream.windows import Inline, Numbers, Windows
from pretrain.records import Batch
from pretrain.view import crop, region
from pretrain.view.decode import decode
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_shards, write_tar

SMALL = Shuffle(streams=3, run_length=2, run_window=4, window=4)
VIEW = ViewSpec(8, scale=(0.5, 1.0))


def stream(
    index: Index, numbers: Numbers, threads: int = 0, shuffle: Shuffle | None = SMALL, seed: int = 0
) -> BatchStream:
    return BatchStream(index, Order(index.counts, seed, shuffle), numbers, (VIEW,), threads=threads)


def colours(batch: Batch) -> list[int]:
    """Which samples these are, by their pixels."""
    pixels = batch.views[0][0, :, :, 4, 4].int()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_index(write_shards(tmp_path / "d", [10, 7, 1]), str(tmp_path / "i"))


@pytest.mark.parametrize(("world", "threads"), [(1, 0), (2, 0), (2, 2), (3, 1)])
def test_uneven_shards_come_whole_on_any_ranks_and_threads(index: Index, world: int, threads: int) -> None:
    """Shards of 10, 7 and 1 samples: nothing is lost, repeated or waited for, in three epochs of 18."""
    ranks = [iter(stream(index, Numbers(rank, world, 3), threads)) for rank in range(world)]
    seen: dict[int, int] = {}
    for _ in range(3 * 18 // (3 * world)):
        for rank in ranks:
            batch = next(rank)
            assert batch.views[0].dtype == torch.uint8
            assert [int(key) for key in batch.keys] == colours(batch)
            assert [key % 10 for key in colours(batch)] == batch.labels.tolist()
            seen.update(zip(batch.g.tolist(), colours(batch), strict=True))
    assert sorted(seen) == list(range(54))
    for epoch in range(3):
        assert sorted(seen[g] for g in range(18 * epoch, 18 * epoch + 18)) == list(range(18))


@pytest.mark.parametrize("threads", [0, 3])
def test_any_entry_continues_the_same_stream(index: Index, threads: int) -> None:
    whole = list(itertools.islice(stream(index, Numbers(0, 1, 2), threads), 30))
    for start in (2, 10, 34):
        (later,) = itertools.islice(stream(index, Numbers(start, 1, 2)), 1)
        expected = whole[start // 2]
        assert later.keys == expected.keys
        assert torch.equal(later.views[0], expected.views[0])
        assert later.g.tolist() == [start, start + 1]


def test_threads_change_nothing(index: Index) -> None:
    for one, other in itertools.islice(
        zip(stream(index, Numbers(0, 1, 5), 0), stream(index, Numbers(0, 1, 5), 4), strict=False), 20
    ):
        assert torch.equal(one.views[0], other.views[0])
        assert (one.keys, one.labels.tolist()) == (other.keys, other.labels.tolist())


def test_a_finite_stream_ends_with_what_is_left(index: Index) -> None:
    batches = list(stream(index, Numbers(0, 1, 8, stop=18), threads=2, shuffle=None))
    assert [len(batch) for batch in batches] == [8, 8, 2]
    assert [key for batch in batches for key in colours(batch)] == list(range(18))


def test_bytes_are_let_go(index: Index) -> None:
    reading = stream(index, Numbers(0, 1, 4))
    from pretrain.data.stream.windows import Inline, Windows

    windows = Windows(index, reading.order, reading.numbers, Inline())
    most = 0
    for gs in itertools.islice(reading.numbers.batches(), 45):
        for g in gs:
            windows.ask(g)
        for g in gs:
            windows.take(g)
        most = max(most, len(windows._samples))
    assert most <= SMALL.streams * SMALL.window  # the stated bound
    assert len(windows._asked) <= SMALL.streams


def broken_index(tmp_path: Path, broken: set[int], count: int = 20) -> Index:
    members = [(f"{n:05d}.png", b"no image" if n in broken else image_bytes(n)) for n in range(count)]
    return open_index([str(write_tar(tmp_path / "t.tar", members))], str(tmp_path / "i"))


def test_a_bad_sample_is_replaced_by_one_that_depends_on_seed_and_g_alone(tmp_path: Path) -> None:
    index = broken_index(tmp_path, {3, 11})
    runs = []
    for threads, batch in ((0, 4), (2, 5)):
        batches = list(stream(index, Numbers(0, 1, batch, stop=40), threads))
        bad = [(one.g, one.key) for item in batches for one in item.replaced]
        runs.append((bad, [key for item in batches for key in colours(item)]))
    assert runs[0] == runs[1]
    bad, seen = runs[0]
    assert sorted(key for _, key in bad) == ["00003", "00003", "00011", "00011"]
    good = set(range(20)) - {3, 11}
    for epoch in range(2):
        assert set(seen[20 * epoch : 20 * epoch + 20]) == good  # every good one, and stand-ins among them
    assert {one.cause for item in batches for one in item.replaced} != {""}


def mixed_index(tmp_path: Path) -> Index:
    """JPEGs as cameras make them and otherwise, one cut off, and a PNG."""
    members = []
    for number in range(8):
        coarse = np.random.default_rng(number).integers(256, size=(20, 24, 3), dtype=np.uint8)
        image, file = Image.fromarray(coarse).resize((150 + number, 110), Image.Resampling.BICUBIC), io.BytesIO()
        image.save(file, "PNG" if number == 3 else "JPEG", progressive=number == 4, subsampling=number % 3)
        data = file.getvalue()
        members.append((f"{number}.{'png' if number == 3 else 'jpg'}", data[:-300] if number == 5 else data))
    return open_index([str(write_tar(tmp_path / "m.tar", members))], str(tmp_path / "i"))


@pytest.mark.parametrize("random", [True, False])
def test_decoding_parts_changes_no_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: bool) -> None:
    if region.extension is None:
        pytest.skip("pretrain_region is not installed: make native")
    index = mixed_index(tmp_path)
    views = (ViewSpec(48, scale=(0.2, 0.6)), ViewSpec(16, count=2, scale=(0.05, 0.3)))
    reading = BatchStream(index, Order(index.counts, 0, SMALL), Numbers(0, 1, 4, stop=40), views, random, threads=2)
    parts = list(reading)
    monkeypatch.setattr(region, "extension", None)
    for part, whole in zip(parts, reading, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(part.views, whole.views, strict=True))
        assert part.keys == whole.keys
        assert [(one.g, one.key) for one in part.replaced] == [(one.g, one.key) for one in whole.replaced]
    assert {bad.key for batch in parts for bad in batch.replaced} == {"5"}


def test_large_images_are_scaled_only_if_that_is_asked_for(tmp_path: Path) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(256, size=(10, 12, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((1203, 1001), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    index = open_index([str(write_tar(tmp_path / "l.tar", [("0.jpg", file.getvalue())]))], str(tmp_path / "i"))
    spec = ViewSpec(48, scale=(0.5, 1.0))
    small, usual = (
        next(iter(BatchStream(index, Order([1], 0, None), Numbers(0, 1, 4), (spec,), scaled=scaled))).views[0][0]
        for scaled in (True, False)
    )
    draws = crop.draws(0, torch.arange(4), (spec,))
    pixels = decode(file.getvalue())
    for view, numbers in zip(usual, draws, strict=True):
        assert torch.equal(view, crop.crop(pixels, crop.random_box(numbers[0], 1001, 1203, spec), spec))
    difference = (small.double() - usual.double()).square().mean()
    assert 0 < difference < 255**2 / 10**3  # at least 30 dB, half a pixel's shift included


def test_data_without_any_image_ends_with_a_sentence(tmp_path: Path) -> None:
    index = broken_index(tmp_path, set(range(20)))
    with pytest.raises(BrokenDataError, match=r"samples in a row cannot be decoded, last `\d+` of `t.tar`"):
        next(iter(stream(index, Numbers(0, 1, 4))))


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BatchStream:
    """Batches of 4 from 4 streams in windows of 16, of shards that pass for remote."""
    monkeypatch.setattr(BatchStream, "remote", True)
    opened = open_index(write_shards(tmp_path / "far", [100, 300]), str(tmp_path / "i"))
    return stream(opened, Numbers(0, 1, 4, 400), threads=2, shuffle=Shuffle(4, 2, 96, 16))


def test_what_is_asked_ahead_changes_nothing_and_stays_within_two_windows_a_stream(far: BatchStream) -> None:
    assert far.readers > 8
    assert far.reach == 4 * 16 // 2 // 4 - far.ahead
    windows, most = Windows(far.index, far.order, far.numbers, Inline()), 0
    decoding: list[range] = []
    for gs in windows.ahead(far.numbers.batches(), far.reach):
        held = defaultdict(set)
        for g in windows._samples:
            epoch, number, offset = far.order.place(g)
            held[number].add((epoch, far.order.window_at(number, offset)[0]))
        most = max(most, *map(len, held.values()))
        decoding.append(gs)
        if len(decoding) > far.ahead:
            for g in decoding.pop(0):
                windows.take(g)
    assert most == 2
    plain = stream(far.index, far.numbers, shuffle=far.order.shuffle)
    assert plain.reach == 0
    assert [key for batch in far for key in batch.keys] == [key for batch in plain for key in batch.keys]


class Later(Executor):
    """Does what is submitted when the test says so."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks.append(lambda: function(*args, **kwargs))
        return Future()


def test_what_is_needed_first_is_read_first(far: BatchStream) -> None:
    """The first batch needs four runs of the many that its windows are read in, and they are not asked for first."""
    later = Later()
    windows = Windows(far.index, far.order, far.numbers, later)
    first = next(windows.ahead(far.numbers.batches(), far.reach))
    assert len(later.tasks) > 8
    for task in later.tasks[: len(first)]:
        task()
    assert all(windows._samples[g][2].done() for g in first)
