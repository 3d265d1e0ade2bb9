"""A rank that is gone is noticed by ranks that do not talk with it."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import torch.distributed as dist

from pretrain.launch.world import World
from pretrain.trainer.failure_detector import FailureDetector
from pretrain.trainer.team import Team


def _rank(rank: int, count: int, gone: int | None, folder: str) -> None:
    error = os.open(f"{folder}/{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(error, 2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    detector = FailureDetector(Team(World(rank, count)), grace=0.1)
    if rank == gone:
        time.sleep(0.5)
        os._exit(7)
    if gone is not None:
        time.sleep(1000)  # as in a kernel that waits for all
    time.sleep(0.2 * rank)
    detector.end()
    dist.destroy_process_group()


def ended(folder: Path, count: int, gone: int | None) -> list[int | None]:
    """The exit codes of ranks, of which one is suddenly gone."""
    forks = multiprocessing.get_context("forkserver")
    ranks = [forks.Process(target=_rank, args=(rank, count, gone, str(folder))) for rank in range(count)]
    for one in ranks:
        one.start()
    deadline = time.monotonic() + 300
    for one in ranks:
        one.join(max(0.0, deadline - time.monotonic()))
    codes = [one.exitcode for one in ranks]
    for one in ranks:
        one.kill()
    return codes


def test_all_notice(tmp_path: Path) -> None:
    """Far sooner than the collectives' time-out, by name, round all of them."""
    assert ended(tmp_path, 4, gone=1) == [1, 7, 1, 1]
    for rank in (0, 2, 3):
        assert f"rank {rank}: rank 1 is gone, and the run ends" in (tmp_path / f"{rank}.txt").read_text()


def test_who_takes_leave_is_not_missed(tmp_path: Path) -> None:
    assert ended(tmp_path, 3, gone=None) == [0, 0, 0]
