"""Scanning many shards: several at a time, by several processes, on any number of machines that share the cache folder.

Each shard is scanned whole by whoever claims it first. A sidecar appears when it is complete, so a build that is
killed goes on where it stopped, and one whose machines die is taken over by those that are left. Reading and hashing
release Python's lock, the walk from header to header does not: threads do for a few shards, many get processes.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from pretrain.config.problem import UserError
from pretrain.data.shard.claim import Claims
from pretrain.data.shard.sidecar import Shard, from_sidecar, scan
from pretrain.data.store.source import PLAIN, Access
from pretrain.launch.process import spawning

_THREADS = 8
_FEW = 64  # shards that are not worth starting processes for
_MOST = 32  # processes
_PAUSE = 0.2  # seconds between looks at what others are doing
_SHOWN = 10  # damaged shards that are named

Job = tuple[str, Path]  # a shard, its sidecar
Attempt = Callable[[Job], Shard | str | None]  # the shard, what is wrong with it, None while somebody else scans it


def scan_all(
    sidecars: Mapping[str, Path],
    prefix: str = "data.",
    access: Access = PLAIN,
    processes: int | None = None,
) -> list[Shard]:
    """Scans shards, with a progress bar; those that another process is scanning meanwhile are waited for.

    Args:
        sidecars: of each shard.
        prefix, access: as for `source.expand`.
        processes: how many; None fits their number and the cores, 0 means threads of this process.

    Raises:
        UserError: shards are damaged or cannot be read: all of them are named.
    """
    if processes is None:
        processes = 0 if len(sidecars) < _FEW or multiprocessing.current_process().daemon else _processes_here()
    scanned, mistakes = [], []
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(sidecars), desc="indexing shards", unit="shard", delay=1))
        attempt = stack.enter_context(_processes(processes, prefix, access) if processes else _here(prefix, access))
        pool = stack.enter_context(ThreadPoolExecutor(processes or _THREADS))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        jobs = _from_own_place(list(sidecars.items()))
        while jobs:
            busy = []
            for job, result in zip(jobs, pool.map(attempt, jobs), strict=True):
                if result is None:
                    busy.append(job)
                    continue
                bar.update()
                if isinstance(result, str):
                    mistakes.append(result)
                else:
                    scanned.append(result)
            jobs = busy
            if busy:
                time.sleep(_PAUSE)
    if mistakes:
        more = f"\nand {len(mistakes) - _SHOWN} more" if len(mistakes) > _SHOWN else ""
        raise UserError("\n".join(sorted(mistakes)[:_SHOWN]) + more)
    return scanned


def _from_own_place(jobs: Sequence[Job]) -> list[Job]:
    """The jobs from a place on that is another for each process, so that they seldom want the same one."""
    place = zlib.crc32(f"{os.uname().nodename} {os.getpid()}".encode()) % len(jobs)
    return [*jobs[place:], *jobs[:place]]


def _processes_here() -> int:
    """Two for each core that this process may use, which it shares with its launcher's others on this machine."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST, max(4, 2 * cores // max(1, int(ranks) if ranks.isdecimal() else 1)))


def _attempt(job: Job, claims: Claims, prefix: str, access: Access) -> Shard | str | None:
    """Scans a shard, unless that has been done, or is being done, by another."""
    url, sidecar = job
    try:
        with claims.claim(sidecar.with_name(f"{sidecar.name}.claim")) as ours:
            return from_sidecar(url, sidecar) or (scan(url, sidecar, prefix, access) if ours else None)
    except UserError as mistake:
        return str(mistake)


@contextmanager
def _here(prefix: str, access: Access) -> Iterator[Attempt]:
    """Attempts in the calling thread."""
    with Claims() as claims:
        yield lambda job: _attempt(job, claims, prefix, access)


@contextmanager
def _processes(count: int, prefix: str, access: Access) -> Iterator[Attempt]:
    """Attempts in processes of their own, one for each thread that calls at the same time."""
    context = multiprocessing.get_context("spawn")
    idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
    crew = []
    with spawning():
        for _ in range(count):
            ours, theirs = context.Pipe()
            crew.append((context.Process(target=_serve, args=(theirs, prefix, access), daemon=True), ours))
            crew[-1][0].start()
            theirs.close()
            idle.put(ours)

    def attempt(job: Job) -> Shard | str | None:
        connection = idle.get()
        try:
            connection.send(job)
            result: Shard | str | None = connection.recv()
        except (EOFError, OSError):
            raise UserError(
                "a process that scanned shards was killed, perhaps for want of memory; start again, and it goes on"
            ) from None
        finally:
            idle.put(connection)
        return result

    try:
        yield attempt
    finally:
        for process, connection in crew:
            connection.close()
            process.join(1.0)
            process.kill()


def _serve(connection: Connection, prefix: str, access: Access) -> None:
    """Does jobs until the other end is closed, as it is when its process dies."""
    with Claims() as claims:
        while True:
            try:
                job = connection.recv()
            except (EOFError, OSError):
                return
            try:
                result = _attempt(job, claims, prefix, access)
            except Exception as fault:  # whatever it is: it is to be said of which shard
                result = f"`{job[0]}` cannot be indexed: {type(fault).__name__}: {fault}"
            try:
                connection.send(result)
            except OSError:
                return
