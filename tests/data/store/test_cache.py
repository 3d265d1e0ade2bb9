"""Copies of remote shards: never more than was allowed, never anything but the source's bytes, whatever happens."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain.data.module import ShardData
from pretrain.data.shard.index import open_index
from pretrain.data.store import cache as module
from pretrain.data.store.cache import Cache, bytes_of, problems
from pretrain.data.store.source import Reader, access_of
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Numbers
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards
from tests.data.store.servers import Handler, serving

BLOCK = module._BLOCK
SIZE = 10 * BLOCK + 100
BYTES = random.Random(0).randbytes(SIZE)
TABLE = 4 * 11
FORK = multiprocessing.get_context("fork")  # these processes touch files alone


class Source:
    """Gives ranges of BYTES, and notes which were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return BYTES[start:stop]


def whole(cache: Cache, name: str = "a") -> int:
    """Reads a shard from end to end in odd pieces; returns how often the source was asked."""
    source = Source()
    pieces = [(start, min(start + 50_001, SIZE)) for start in range(0, SIZE, 50_001)]
    assert b"".join(cache.read(name, SIZE, *piece, source) for piece in pieces) == BYTES
    return len(source.asked)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*.copy"))


def names(cache: Cache) -> set[str]:
    """Which of the shards a … f have a copy."""
    copies = {path.name for path in cache.folder.glob("*.copy")}
    return {
        name for name in "abcdef" if f"{module.hashlib.sha256(name.encode()).hexdigest()[:32]}-{SIZE}.copy" in copies
    }


def test_what_was_read_once_is_not_asked_for_again(tmp_path: Path) -> None:
    """And only what is missing is asked for, in whole blocks."""
    cache, source = Cache(tmp_path, 1 << 30), Source()
    assert cache.read("a", SIZE, 3 * BLOCK + 5, 3 * BLOCK + 9, source) == BYTES[3 * BLOCK + 5 : 3 * BLOCK + 9]
    assert cache.read("a", SIZE, 2 * BLOCK, SIZE, source) == BYTES[2 * BLOCK :]
    assert source.asked == [(3 * BLOCK, 4 * BLOCK), (2 * BLOCK, SIZE)]
    assert cache.read("a", SIZE, 2 * BLOCK + 1, SIZE - 1, source) == BYTES[2 * BLOCK + 1 : SIZE - 1]
    assert len(source.asked) == 2
    assert whole(Cache(tmp_path, 1 << 30)) == 2  # another process: blocks 0 and 1, whose pieces overlap
    assert cache.read("other", SIZE, 0, 9, source) == BYTES[:9]
    assert len(source.asked) == 3


def test_the_bound_is_kept_and_the_longest_unread_goes_first(tmp_path: Path) -> None:
    limit = 3 * (SIZE + TABLE) + 1000
    cache = Cache(tmp_path, limit)
    for name in "abcabd":  # c was read longest ago when d comes
        whole(cache, name)
        assert on_disk(tmp_path) <= limit + 3 * 8192  # what the file system rounds up
        time.sleep(0.01)  # a file's times are as coarse as the system's clock
    assert names(cache) == {"a", "b", "d"}
    with cache._ledger(1.0) as ledger:
        assert ledger is not None
        assert ledger.used() == ledger.count_anew() == 3 * (SIZE + TABLE)
    assert whole(cache, "a") == 0
    Cache(tmp_path, SIZE + TABLE)  # less is allowed from now on
    assert len(names(cache)) == 1


def test_a_shard_larger_than_the_bound_is_kept_in_part_and_drives_nothing_out_in_vain(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 5 * BLOCK)
    whole(cache)
    assert 3 * BLOCK < on_disk(tmp_path) <= 5 * BLOCK + 8192
    assert whole(cache) > 0
    small = Cache(tmp_path / "small", SIZE + TABLE)
    whole(small)
    assert small.read("b", 100 * BLOCK, 0, 20 * BLOCK, lambda start, stop: bytes(stop - start)) == bytes(20 * BLOCK)
    assert names(small) == {"a"}


def _corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4 * BLOCK + 7] ^= 1
    path.write_bytes(data)


def _blank(path: Path) -> None:
    """As a crashed system may leave it: the length is there, the bytes are not."""
    with open(path, "r+b") as file:
        file.write(bytes(2 * BLOCK))


@pytest.mark.parametrize("damage", [_corrupt, _blank, lambda p: os.truncate(p, 5 * BLOCK), lambda p: os.truncate(p, 0)])
@pytest.mark.parametrize("again", [False, True])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, damage: Callable[[Path], None], again: bool) -> None:
    """Whether this process or another one that starts comes upon it."""
    cache = Cache(tmp_path, 2 * SIZE)
    whole(cache)
    (path,) = tmp_path.glob("*.copy")
    damage(path)
    cache = Cache(tmp_path, 2 * SIZE) if again else cache
    assert whole(cache) > 0
    assert whole(cache) == 0
    with cache._ledger(1.0) as ledger:
        assert ledger is not None
        assert ledger.used() == ledger.count_anew() == SIZE + TABLE


def _killed_in_the_fourth_block(folder: str) -> None:
    real = os.pwrite

    def torn(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > BLOCK:
            real(descriptor, bytes(data)[: 3 * BLOCK + BLOCK // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, data, offset)

    os.pwrite = torn  # type: ignore[assignment]
    Cache(Path(folder), 1 << 30).read("a", SIZE, 0, SIZE, Source())


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """In the middle of a block, with the lock held: what is torn is not taken for whole, and is counted."""
    process = FORK.Process(target=_killed_in_the_fourth_block, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    cache, source = Cache(tmp_path, 1 << 30), Source()
    with cache._ledger(1.0) as ledger:
        assert ledger is not None
        assert ledger.used() == SIZE + TABLE  # all that was to be written
    assert cache.read("a", SIZE, 0, SIZE, source) == BYTES
    assert source.asked == [(3 * BLOCK, SIZE)]
    assert whole(cache) == 0


def _hammer(folder: str, seed: int, results: multiprocessing.Queue[str]) -> None:
    cache, draw = Cache(Path(folder), 25 * BLOCK), random.Random(seed)
    for _ in range(400):
        start = draw.randrange(SIZE)
        stop = draw.randrange(start, SIZE) + 1
        if cache.read(draw.choice("abcd"), SIZE, start, stop, Source()) != BYTES[start:stop]:
            results.put("wrong bytes")
            return
        with cache._ledger(30.0):
            if on_disk(Path(folder)) > 25 * BLOCK + 4 * 8192:
                results.put("too much")
                return
    results.put("good")


def test_processes_share_a_folder_that_is_too_small_for_them(tmp_path: Path) -> None:
    results = FORK.Queue()
    processes = [FORK.Process(target=_hammer, args=(str(tmp_path), seed, results)) for seed in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=300) for _ in processes] == ["good", "good"]
    for process in processes:
        process.join()
    with Cache(tmp_path, 25 * BLOCK)._ledger(1.0) as ledger:
        assert ledger is not None
        assert ledger.used() == ledger.count_anew()


def test_a_full_disk_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path, 1 << 30)
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) > 100:
            raise OSError(module.errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert whole(cache) > 0
        assert whole(cache) > 0
    (record,) = caplog.records
    assert f"`{tmp_path}` cannot be written (No space left on device)" in record.getMessage()


def test_a_first_batch_visits_so_many_shards_that_blocks_are_kept_instead_of_them() -> None:
    order = Order([1000] * 1281, 0, Shuffle())
    assert len({order.locate(g)[0] for g in range(256)}) == 192


def test_settings() -> None:
    assert [bytes_of(text) for text in ("500MB", "1.5 TB", "2GiB", 7, "7", "8 b")] == [
        500_000_000, 1_500_000_000_000, 2 << 30, 7, 7, 8,
    ]  # fmt: skip
    assert bytes_of("much") is bytes_of("-3GB") is bytes_of("GB") is None
    assert dict(problems(None, "much")).keys() == {"cache_size"}
    assert dict(problems("s3://b", "200")).keys() == {"cache_size", "cache_dir"}
    assert dict(problems("/x", "200GB")) == {}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write copies of shards to `.*/file/x`"):
        access_of(None, str(tmp_path / "file" / "x"), "1GB")


# ── with a server ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Handler]]]:
    write_shards(tmp_path / "served", [20, 13, 30])
    with serving(tmp_path / "served") as both:
        yield both


def test_a_second_epoch_asks_for_nothing(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    """And is the same as one without a cache."""
    address, handler = server
    urls, access = [f"{address}/good/s-00000{n}.tar" for n in range(3)], access_of(None, str(tmp_path / "c"), "1GB")
    index = open_index(urls, str(tmp_path / "i"), access=access)
    order = Order(index.counts, 0, Shuffle(streams=4, run_length=2, run_window=8, window=8))

    def epoch(number: int, opened: object) -> list[str]:
        numbers = Numbers(63 * number, 1, 9, 63 * number + 63)
        stream = BatchStream(opened, order, numbers, (ViewSpec(8),), threads=2)
        return [key for batch in stream for key in batch.keys]

    handler.asked.clear()
    first = epoch(0, index)
    assert len(handler.asked) > 3
    handler.asked.clear()
    second = epoch(1, index)
    assert len(handler.asked) == 3  # each shard's version, once a reader
    assert sorted(first) == sorted(second)
    plain = open_index(urls, str(tmp_path / "i"))
    assert [epoch(0, plain), epoch(1, plain)] == [first, second]


def test_within_a_reader_the_version_is_asked_for_once(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    address, handler = server
    url, data = f"{address}/good/s-000000.tar", (tmp_path / "served" / "s-000000.tar").read_bytes()
    reader = Reader(access_of(None, str(tmp_path / "c"), "1GB"))
    for _ in range(2):
        assert reader.read(url, 0, len(data), len(data)) == data
    assert len(handler.asked) == 2  # the version, the bytes


@pytest.mark.parametrize("mode", ["good", "whole"])
def test_another_version_of_a_shard_is_not_served_from_the_old_copy(
    server: tuple[str, type[Handler]], tmp_path: Path, mode: str
) -> None:
    address, handler = server
    path, access = tmp_path / "served" / "s-000000.tar", access_of(None, str(tmp_path / "c"), "1GB")
    url, size = f"{address}/{mode}/s-000000.tar", path.stat().st_size
    for tag in ("one", "two"):
        handler.tags["s-000000.tar"] = f'"{tag}"'
        path.write_bytes(random.Random(tag).randbytes(size))
        assert Reader(access).read(url, 7, 5000, size) == path.read_bytes()[7:5000]


def test_a_run_reads_through_it(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    """And so does its reader process, to which the cache's settings travel."""
    address, _ = server
    urls = [f"{address}/good/s-00000{n}.tar" for n in range(3)]
    data = ShardData(
        urls, num_workers=0, index_dir=str(tmp_path / "i"), cache_dir=str(tmp_path / "c"), cache_size="1GB"
    )
    stream = pickle.loads(pickle.dumps(data.batches(0, 0, 16, (ViewSpec(8),)).stream))
    assert len(next(iter(stream))) == 16
    assert stream.index.access.cache.limit == 10**9
    assert on_disk(tmp_path / "c") > 0


def test_a_folder_with_files_of_the_users_own_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("my own notes")
    whole(Cache(tmp_path, 25 * BLOCK))
    assert (tmp_path / "count").read_text() == "my own notes"
    (tmp_path / ".pretrain-cache-count").write_text("somebody else's")
    with pytest.raises(UserError, match="is not a cache's"):
        Cache(tmp_path, 25 * BLOCK)
    assert (tmp_path / ".pretrain-cache-count").read_text() == "somebody else's"


def test_what_another_user_filled_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the times of its files nor its count can be changed."""
    whole(Cache(tmp_path, 25 * BLOCK))
    opening = os.open

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opening(path, flags, *mode)

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "open", read_only)
    cache = Cache(tmp_path, 25 * BLOCK)
    assert whole(cache) == 0
    assert whole(cache, "b") > 0
