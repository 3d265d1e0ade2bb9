"""Centre and teacher of two processes with half the batch each are those of one process with all of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.objective.test_dino import NO, START, batch_of, part, small


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    objective = small()
    batch = batch_of(objective, 8)
    for start in (4 * rank, 4 * rank + 2):  # two micro-batches on each
        objective(part(batch, start, start + 2), START)
    objective.after_step(START, NO)
    torch.save(objective.state_dict(), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_all_ranks_move_as_one(tmp_path: Path) -> None:
    """Sums in another order: 1e-6."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    whole = small()
    whole(batch_of(whole, 8), START)
    whole.after_step(START, NO)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in whole.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=1e-5)
