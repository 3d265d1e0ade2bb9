"""The data of a run: loaders, their processes, and their failures."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from pretrain.data.module import ShardData
from pretrain.data.opening import open_shards
from pretrain.data.shard.index import Index
from pretrain.data.shard.sidecar import Part
from pretrain.data.stream.loader import READERS, Loader
from pretrain.data.stream.order import Order, Shuffle
from pretrain.records import Batch, UserError
from pretrain.trainer.run_folder import differences
from pretrain.view import region
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_shards, write_tar

VIEW = ViewSpec(8)


def data(tmp_path: Path, **arguments: object) -> ShardData:
    write_shards(tmp_path / "d", [10, 7, 1])
    return ShardData(str(tmp_path / "d"), index_dir=str(tmp_path / "i"), **arguments)  # type: ignore[arg-type]


def test_a_reader_process_gives_what_reading_here_gives(tmp_path: Path) -> None:
    loaders = [data(tmp_path, num_workers=threads).batches(3, 4, 6, [VIEW]) for threads in (0, 2)]
    for here, there in itertools.islice(zip(*loaders, strict=True), 8):
        assert torch.equal(here.views[0], there.views[0])
        assert here.keys == there.keys
        assert there.views[0].dtype == torch.uint8


def test_validation_is_the_same_every_time(tmp_path: Path) -> None:
    write_shards(tmp_path / "v", [5])
    with_val = data(tmp_path, val=str(tmp_path / "v"), num_workers=0, val_samples=4)
    batches = [[batch.views[0] for batch in with_val.val_batches(0, 3, [VIEW])] for _ in range(2)]
    assert [len(view[0]) for view in batches[0]] == [3, 1]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    (examples,) = with_val.examples(0, 2, [VIEW])
    assert torch.equal(examples.views[0], batches[0][0][:, :2])


@pytest.mark.parametrize("threads", [0, 1])
def test_a_shard_that_vanishes_stops_the_run_with_a_sentence(tmp_path: Path, threads: int) -> None:
    loader = data(tmp_path, num_workers=threads, shuffle=Shuffle(1, 1, 1, 1)).batches(0, 0, 2, [VIEW])
    for shard in (tmp_path / "d").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match=r"cannot read.*s-00000"):
        list(itertools.islice(loader, 40))


def test_too_many_bad_samples_stop_the_run_and_name_the_worst_shard(tmp_path: Path) -> None:
    write_shards(tmp_path / "d", [40])
    bad = [(f"b{n}.png", b"no image") for n in range(4)] + [(f"g{n}.png", image_bytes(n)) for n in range(6)]
    write_tar(tmp_path / "d" / "worst.tar", bad)
    shards = ShardData(str(tmp_path / "d"), num_workers=0, index_dir=str(tmp_path / "i"), max_bad_fraction=0.01)
    with pytest.raises(
        UserError,
        match=r"11 of \d+ samples cannot be decoded \(not_an_image 11\).*`worst.tar` with 11.*max_bad_fraction=0.01",
    ):
        list(itertools.islice(shards.batches(0, 0, 10, [VIEW]), 1000))
    tolerant = ShardData(str(tmp_path / "d"), num_workers=0, index_dir=str(tmp_path / "i"), max_bad_fraction=0.2)
    loader = tolerant.batches(0, 0, 10, [VIEW])
    list(itertools.islice(loader, 100))
    assert loader.bad.shards["worst.tar"] >= 80  # 4 in each of 20 epochs, and some stand-ins


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.txt", b"words")])
    with pytest.raises(UserError, match="no image in any of the 1 shards"):
        open_shards(str(tmp_path / "t.tar"), str(tmp_path / "i"))


def test_identity_names_the_difference(tmp_path: Path) -> None:
    one, other = data(tmp_path).identity(), data(tmp_path, shuffle=Shuffle(window=64)).identity()
    assert one["digest"] == other["digest"]
    assert one != other
    assert one["shards"][1].startswith("s-000001.tar 7 ")


def test_scaled_decoding_makes_another_run(tmp_path: Path) -> None:
    """And a run of before there was a choice is one without it."""
    usual, scaled = data(tmp_path), data(tmp_path, scaled_decode=True, val=str(tmp_path / "d"))
    assert "scaled_decode" not in usual.identity()
    assert scaled.identity() == usual.identity() | {"scaled_decode": True}
    (difference,) = differences({"data": usual.identity()}, {"data": scaled.identity()})
    assert difference == "data.scaled_decode: null there, true here"
    assert scaled.batches(0, 0, 2, [VIEW]).stream.scaled
    assert scaled.val_batches(0, 2, [VIEW]).stream.scaled
    assert not scaled.val_subset(0, 2, 2, [VIEW]).stream.scaled  # what a probe sees stays comparable
    assert not usual.batches(0, 0, 2, [VIEW]).stream.scaled


def test_the_log_says_once_that_parts_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for installed, lines in ((object(), 1), (None, 0)):
        monkeypatch.setattr(region, "extension", installed)
        caplog.clear()
        data(tmp_path, num_workers=0).batches(0, 0, 2, [VIEW])
        assert caplog.text.count("by pretrain_region") == lines


SCRIPT = """
    import sys, time
    from pretrain.data.module import ShardData
    from pretrain.view.spec import ViewSpec
    loader = ShardData(sys.argv[1], num_workers=2, index_dir=sys.argv[2]).batches(0, 0, 4, [ViewSpec(8)])
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    from pretrain.data.stream.loader import READERS
    print(next(iter(READERS)).pid, flush=True)
    sys.stdin.readline()
    if sys.argv[3] == "raise":
        raise RuntimeError("a bug")
"""


@pytest.mark.parametrize("how", ["end", "raise", "kill"])
def test_a_reader_ends_with_its_trainer(tmp_path: Path, how: str) -> None:
    """At its end, at an exception, at SIGKILL. The script has no `__main__` guard: readers must not run it again."""
    write_shards(tmp_path / "d", [10, 7, 1])
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "d"), str(tmp_path / "i"), how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(arguments, text=True, **pipes)
    assert process.stdout is not None
    reader = int(process.stdout.readline())
    os.kill(reader, signal.SIGTERM)  # what a scheduler sends to all: not for the reader
    time.sleep(0.5)
    os.kill(reader, 0)
    if how == "kill":
        process.kill()
    process.communicate("\n", timeout=120)
    deadline = time.monotonic() + 120
    while _lives(reader):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_reader_ends_whose_trainer_is_killed_while_it_starts(tmp_path: Path) -> None:
    write_shards(tmp_path / "d", [10, 7, 1])
    script = """
        import os, signal, sys
        from pretrain.data.module import ShardData
        from pretrain.data.stream.loader import Loader
        from pretrain.view.spec import ViewSpec

        def killed(batches, readers):  # the reader imports torch just then
            print(readers[0].pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        Loader._next = staticmethod(killed)
        next(iter(ShardData(sys.argv[1], num_workers=2, index_dir=sys.argv[2]).batches(0, 0, 4, [ViewSpec(8)])))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "d"), str(tmp_path / "i")]
    with subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        reader = int(process.stdout.readline())
    deadline = time.monotonic() + 60
    while _lives(reader):
        if time.monotonic() > deadline:
            os.kill(reader, signal.SIGKILL)
            pytest.fail("the reader lives on")
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_pipes_are_read_about_once_an_epoch_however_many_there_are(tmp_path: Path) -> None:
    """Only 64 of them are kept: the order must not be in more at a time."""
    paths = write_shards(tmp_path / "d", [20] * 100)
    urls = [f"pipe:echo ran >> {tmp_path}/log; cat {path}" for path in paths]
    piped = ShardData(urls, allow_pipe=True, num_workers=0, index_dir=str(tmp_path / "i"), shuffle=Shuffle(window=16))
    assert (piped.shuffle.streams, piped.shuffle.run_window) == (16, 16)
    (tmp_path / "log").unlink()
    list(itertools.islice(piped.batches(0, 0, 50, [VIEW]), 2000 // 50))
    assert len((tmp_path / "log").read_text().splitlines()) <= 130  # 16 streams cut 15 shards in two
    local = ShardData(paths, num_workers=0, index_dir=str(tmp_path / "i"), shuffle=Shuffle(window=16))
    assert local.shuffle == Shuffle(window=16)


def test_a_reader_that_hangs_is_ended_all_the_same(tmp_path: Path) -> None:
    """Its disk, or a command, is stalled: closing must not wait for it."""
    good, other = write_shards(tmp_path / "d", [12, 12])
    stalls = f"pipe:if [ -e {tmp_path}/ready ]; then sleep 600; fi; cat {other}"
    piped = ShardData(
        [f"pipe:cat {good}", stalls],
        allow_pipe=True,
        num_workers=1,
        index_dir=str(tmp_path / "i"),
        shuffle=Shuffle(1, 1, 1, 1),
    )
    (tmp_path / "ready").touch()
    seed = next(seed for seed in range(99) if Order([12, 12], seed, piped.shuffle).locate(0)[0] == 0)
    batches = iter(piped.batches(seed, 0, 4, [VIEW]))
    next(batches)
    (reader,) = READERS
    time.sleep(1.0)
    start = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 120  # of the ten minutes
    reader.join(60)
    assert not reader.is_alive()


def test_a_reader_that_is_killed_ends_the_run_with_a_sentence_and_harms_nothing_else(tmp_path: Path) -> None:
    batches = iter(data(tmp_path, num_workers=1).batches(0, 0, 4, [VIEW]))
    next(batches)
    (reader,) = READERS
    os.kill(reader.pid, signal.SIGKILL)
    # torch tells of it wherever this process is just then; a run makes one sentence of both
    said = r"the reader process died \(exit code -9\). If the machine ran out of memory|DataLoader worker"
    with pytest.raises((UserError, RuntimeError), match=said):
        list(itertools.islice(batches, 99))
    assert not READERS
    work_on()


class Broken(Index):
    """With a bug of ours: nothing that data can be the cause of."""

    def parts(self, shard: int, member: int) -> list[Part]:
        raise ZeroDivisionError("a bug")


def test_an_unexpected_error_in_the_reader_harms_nothing_that_comes_after(tmp_path: Path) -> None:
    """Its traceback holds the iterator, which looked after the process that is now ended."""
    loader = data(tmp_path, num_workers=1).batches(0, 0, 4, [VIEW])
    loader.stream.index = Broken(loader.stream.index.shards)
    with pytest.raises(ZeroDivisionError, match="a bug") as held:
        next(iter(loader))
    work_on()
    assert not READERS
    assert held.tb is not None


def work_on() -> None:
    """What follows a failure: computing, and processes that end. torch raises in its midst, whenever a process of any
    kind ends, if it still looks after one that was killed."""
    for _ in range(5):
        subprocess.run(["sleep", "0.1"], check=True)
        assert (torch.ones(8, 8) @ torch.ones(8, 8)).sum() == 512


def test_a_failure_of_another_kind_is_not_taken_for_a_dead_reader(tmp_path: Path) -> None:
    class Fails:
        def __next__(self) -> Batch:
            raise RuntimeError(cause)

    reader = multiprocessing.get_context("spawn").Process(target=len, args=((),))
    reader.start()
    reader.join(60)
    cause = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        Loader._next(Fails(), [reader])  # type: ignore[arg-type]
    cause = "DataLoader worker (pid 7) exited unexpectedly with exit code 0."
    with pytest.raises(UserError, match=r"the reader process died \(exit code 0\)"):
        Loader._next(Fails(), [reader])  # type: ignore[arg-type]


def test_an_index_that_vanishes_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    loader = data(tmp_path, num_workers=1).batches(0, 0, 4, [VIEW])
    for sidecar in (tmp_path / "i").glob("*.idx"):
        sidecar.unlink()
    with pytest.raises(UserError, match=r"^`.*idx` is gone since the run began: start again"):
        next(iter(loader))


def test_shards_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x/a", "y/a", "z"):
        write_shards(tmp_path / folder, [1, 1] if folder == "z" else [1])
    index = open_shards([str(tmp_path / folder) for folder in ("x/a", "y/a", "z")], str(tmp_path / "i"))
    assert index.names == ["x/a/s-000000.tar", "y/a/s-000000.tar", "z/s-000000.tar", "s-000001.tar"]
