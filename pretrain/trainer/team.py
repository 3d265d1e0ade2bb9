"""How the ranks of a run talk on the host: what one decides and all do, and what all must agree on.

Everything here goes through a gloo group of its own, so that no message waits for a GPU, nor mixes with those of
another thread. A run of one process needs no group: it agrees with itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pretrain.launch.world import World
from pretrain.records import UserError

T = TypeVar("T")

_LAST_WORD = 3.0  # seconds
_SHOWN = 300  # characters of a library's message
_FILES = 65_536  # that a rank may have open, if the system lets it


class ToldError(UserError):
    """A mistake that rank 0 tells the user; the others only leave."""


class Team:
    """The ranks of a run. Every method that talks must be called by all of them, in the same order.

    Args:
        world: this process's place.
        minutes: that the ranks wait for each other.
    """

    def __init__(self, world: World, minutes: float = 30.0) -> None:
        self.rank, self.size = world.rank, world.size
        self.minutes = minutes
        # it has a patience of its own, whatever that of the process group is
        patience = timedelta(minutes=minutes)
        self._group: Any = None if self.size == 1 else dist.new_group(backend="gloo", timeout=patience)

    def another(self) -> Team:
        """The same ranks with a group of their own, for another thread."""
        return Team(World(self.rank, self.size), self.minutes)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each rank says, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks.

        Raises:
            UserError: rank 0 refuses; only there it is not a `ToldError`.
        """
        made: list[Any] = [None, None]
        refusal: UserError | None = None
        if self.leads:
            try:
                made[0] = make()
            except UserError as mistake:
                refusal = mistake
                made[1] = str(mistake)
        if self.size > 1:
            dist.broadcast_object_list(made, src=0, group=self._group)
        if refusal is not None:
            raise refusal
        if made[1] is not None:
            raise ToldError(made[1])
        result: T = made[0]
        return result

    def together(self, do: Callable[[], T]) -> T:
        """What every rank makes for itself; if one of them refuses, all do.

        Raises:
            UserError: a rank refuses: the first one's sentence, with its number.
        """
        result, sentence = None, ""
        try:
            result = do()
        except UserError as mistake:
            sentence = str(mistake) or "it refuses"
        refusals = {rank: one for rank, one in enumerate(self.gather(sentence)) if one}
        if refusals:
            rank, said = next(iter(refusals.items()))
            whose = "" if len(refusals) == self.size else f"rank {rank}: "
            raise (UserError if self.leads else ToldError)(whose + said)
        return result  # type: ignore[return-value]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compares plain data with rank 0's.

        Raises:
            UserError: a rank has other ones; the first difference is named.
        """
        mine = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
        everyone = self.gather(digests(mine))
        lines = [
            (rank, name) for rank, theirs in enumerate(everyone) for name in theirs if theirs[name] != everyone[0][name]
        ]
        if not lines:
            return
        (rank, name), ranks = lines[0], sorted({rank for rank, _ in lines})
        texts = self.gather(mine[name])
        raise (UserError if self.leads else ToldError)(
            f"the ranks of this run differ: {name} of rank {rank} is not that of rank 0 "
            f"({_difference(texts[0], texts[rank])}). Ranks that differ: {', '.join(map(str, ranks[:16]))}. Start all "
            "of them from the same files, with the same words"
        )

    def greatest(self, values: list[float]) -> Callable[[], list[float]]:
        """Starts to find the greatest of each number over all ranks; what is returned waits for it."""
        if self.size == 1:
            return lambda: values
        numbers = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

        def wait() -> list[float]:
            assert work is not None
            work.wait()
            result: list[float] = numbers.tolist()
            return result

        return wait

    def leave(self) -> None:
        """Ends the process group, once all are here."""
        if self.size > 1:
            dist.barrier(group=self._group)
            dist.destroy_process_group()


ALONE = Team(World())  # a process that is a run by itself


def join(world: World, device: torch.device, address: tuple[str, int], minutes: float) -> None:
    """Makes the process group of a run's ranks; waits until all are there.

    Raises:
        UserError: they do not come together in time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:  # a group of gloo holds a connection to every rank
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES if hard < 0 else min(hard, _FILES), hard))
    patience = timedelta(minutes=minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address[0]}:{address[1]}",
            rank=world.rank,
            world_size=world.size,
            timeout=patience,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as failure:
        raise UserError(
            f"rank {world.rank} of {world.size} cannot meet the others at {address[0]}:{address[1]} "
            f"({str(failure).splitlines()[0]}); MASTER_ADDR and MASTER_PORT must name a machine that all ranks reach, "
            "and a port that is free on it"
        ) from None


def lost_peers(failure: RuntimeError) -> str | None:
    """The sentence for a collective that failed since another rank is gone or silent, None for any other failure.

    It comes after a while, so that what the other rank had to say stands before it.
    """
    said = " ".join(str(failure).split())
    collective = isinstance(failure, dist.DistError) or re.search(r"gloo|NCCL|\bpeer\b|Broken pipe|Socket", said)
    if not collective or not dist.is_initialized():
        return None
    if re.search(
        r"by peer|Broken pipe|Connection (reset|closed|refused)|ncclRemoteError|remote process|got 0 bytes", said
    ):
        reason = "another rank is gone, and says why if it could"
    elif re.search(r"time(d |-)?out", said, re.IGNORECASE):
        reason = "another rank was not heard of for trainer.timeout_minutes: it hangs, or the network does"
    else:
        return None
    time.sleep(_LAST_WORD)
    if "NCCL" not in said:  # which tells more further on
        said = said.partition(" At: ")[0][:_SHOWN]  # a callback's failure comes with the stack of Python
    return f"{reason} ({said}). The same command goes on from the last checkpoint"


def code_version() -> str:
    """A digest of this package's own files."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def digests(texts: Mapping[str, str]) -> dict[str, str]:
    """Short enough to be sent at every start."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _difference(one: str, other: str) -> str:
    """Where two texts part."""
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, place - 40)
    return f"`…{one[start : place + 40]}…` there, `…{other[start : place + 40]}…` here"
