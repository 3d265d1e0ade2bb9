"""Several ranks do what one process does: the same losses, the same weights, the same samples."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.proof import consumed, first_difference
from pretrain.trainer import checkpoint
from tests import ranks
from tests.job import DINO, HIERA, Job
from tests.program import quiet
from tests.scripts import run_script

KINDS = {"mae": [], "hiera": HIERA, "dino": DINO}
EXACT = [
    "trainer.precision=64-true",
    "clip_grad_norm=0.5",
    "clip_grad_by=parameter",
    "callbacks.ledger.enabled=true",
    "max_steps=6",
]


@dataclass
class Ended:
    """What a run came to."""

    losses: list[float]
    norms: list[float]
    samples: dict[int, list[tuple[int, str]]]
    state: dict[str, Any]

    @staticmethod
    def of(job: Job) -> Ended:
        newest = checkpoint.newest(job.out / "checkpoints")
        assert newest is not None
        rows = job.rows()
        names = ("loss", "grad_norm")
        losses, norms = ([row[name] for row in rows] for name in names)
        return Ended(losses, norms, consumed(job.out), checkpoint.load(newest))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Each kind of objective, trained by one process with micro-batches of four."""
    found = {}
    for kind, words in KINDS.items():
        job = Job(tmp_path_factory.mktemp(kind))
        job.run(*words, *EXACT, "max_micro_batch_size=4")
        found[kind] = Ended.of(job)
    return found


SPREADS = [("ddp", 2, 2), ("fsdp", 2, 2), ("fsdp", 4, 2)]


@pytest.mark.parametrize(
    ("kind", "strategy", "count", "local"),
    [
        pytest.param(kind, *spread, marks=pytest.mark.full) if spread[1] == 4 and kind != "dino" else (kind, *spread)
        for kind in KINDS
        for spread in SPREADS
    ],
)
def test_several_ranks_are_one_process(
    job: Job, alone: dict[str, Ended], kind: str, strategy: str, count: int, local: int
) -> None:
    """In float64 to 1e-10 of the weights: sums in another order differ by 1e-16, and AdamW divides by roots of them.

    Micro-batches of one: there are several in a step. Clipping is by parameter, whose norm several ranks have parts of.
    """
    ranks.run(job, count, *KINDS[kind], *EXACT, f"trainer={strategy}", "max_micro_batch_size=1", local=local)
    ours, theirs = Ended.of(job), alone[kind]
    assert len(ours.losses) == 6
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-12)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-10)
    assert ours.samples == theirs.samples
    assert_close(ours.state["objective"], theirs.state["objective"])
    assert_close(ours.state["optimizer"]["state"], theirs.state["optimizer"]["state"])


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_close(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["mae", "dino"])
def test_mid_epoch_on_other_numbers_of_ranks(job: Job, kind: str) -> None:
    """2 ranks × 2 threads, then 1 × 1, then 3 × 2, stopped in the middle of epochs of 41 samples in shards of 10, 7, 1
    and 23: every global batch is the one of a single process, and so each sample comes once an epoch. In float64 the
    losses are those of a run in one go.
    """
    words = [*KINDS[kind], *EXACT[:-1], "max_steps=12", "global_batch_size=6", "data.shuffle.window=5"]
    two, three = (["trainer=fsdp", f"data.num_workers={threads}"] for threads in (2, 2))
    ranks.run(job, 2, *words, *two, "stop_after_steps=4")
    assert len(list((job.out / "checkpoints/latest").glob("shard_*"))) == 2
    ranks.run(job, 1, *words, "trainer=cpu", "data.num_workers=1", "stop_after_steps=7")
    assert not list((job.out / "checkpoints/latest").glob("shard_*"))
    ranks.run(job, 3, *words, *three)
    parts = Ended.of(job)

    whole = Job(job.tmp)
    whole.out = Path(job.tmp / "whole")
    whole.run(*words, "trainer=cpu")
    theirs = Ended.of(whole)
    assert parts.samples == theirs.samples
    seen = [g for step in sorted(parts.samples) for g, _ in parts.samples[step]]
    assert seen == list(range(72))
    epoch = [key for step in sorted(parts.samples) for g, key in parts.samples[step] if g < 41]
    assert len(set(epoch)) == 41
    assert parts.losses == pytest.approx(theirs.losses, rel=1e-12)
    assert_close(parts.state["objective"], theirs.state["objective"])


def test_three_ranks_of_ddp_go_on_with_the_same_bits(job: Job) -> None:
    """Sums of three numbers depend on their order, and that on the places of gradients in DDP's buckets: those of the
    first step of a process must be those of all.
    """
    words = ["trainer=ddp", "global_batch_size=6", "callbacks.ledger.enabled=true"]
    ranks.run(job, 3, *words, "stop_after_steps=6")
    whole, job.out = job.out, job.tmp / "parts"
    ranks.run(job, 3, *words, "stop_after_steps=3")
    ranks.run(job, 3, *words, "stop_after_steps=6")
    assert first_difference(whole, job.out) == ""


def test_in_bfloat16_fsdp_is_ddp(job: Job) -> None:
    """Products are rounded alike: sums in another order differ by 1e-5. Blocks that are gathered in bfloat16 have the
    weights of their norms rounded too, which are 1 and 0 at first, and differ by 2⁻⁹ at most later.
    """
    losses = []
    for words in (["trainer=ddp"], ["trainer=fsdp", "trainer.param_dtype=float32"], ["trainer=fsdp"]):
        job.out = job.tmp / "-".join(words)
        ranks.run(job, 2, *words, "trainer.precision=bf16-mixed", "base_lr=0.03", "max_steps=8")
        losses.append([row["loss"] for row in job.rows()])
    ddp, as_they_are, rounded = losses
    assert as_they_are == pytest.approx(ddp, rel=1e-5)
    assert rounded[0] == pytest.approx(ddp[0], rel=1e-5)
    assert rounded == pytest.approx(ddp, rel=5e-3)
    assert rounded != pytest.approx(ddp, rel=1e-5)


def test_a_batch_that_cannot_be_split_is_refused_with_sizes_that_can(job: Job) -> None:
    said = ranks.Ranks(job, 3, "trainer=ddp").finish()
    assert "global_batch_size=8: cannot be split over 3 devices; 6 or 9 could" in said[0]


def test_a_mistake_of_all_ranks_is_said_by_the_first(job: Job) -> None:
    """The others wait a little with it, in which who started them ends them."""
    other = ranks.Ranks(job, 2, "trainer=ddp", "global_batch_size=100")
    assert "there are only 41 images" in "".join(other.programs[0].communicate())
    other.programs[1].send(signal.SIGTERM)
    out, err = other.programs[1].communicate()
    assert not out
    assert quiet(err) == "" or err.startswith("rank 1: global_batch_size=100")  # when it has waited
    assert other.codes[0] == 1
    assert other.codes[1] in (1, -signal.SIGTERM)  # it waits already, or has not come so far


def test_a_mistake_on_one_rank_is_said_by_it(job: Job) -> None:
    other = ranks.Ranks(job, 2, "trainer=ddp", own=[[], ["base_lr=-1"]])
    said = "".join(other.programs[1].communicate())
    other.kill()
    assert quiet(said).startswith("rank 1: base_lr=-1")


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (["base_lr=1e-3", "base_lr=2e-3"], '"base_lr": 0.001'),
        (["trainer.param_dtype=float32", "trainer.param_dtype=auto"], '"param_dtype": "'),
    ],
    ids=["lr", "hardware"],
)
def test_ranks_that_differ_are_named(job: Job, own: list[str], shown: str) -> None:
    """Before anything is written."""
    other = ranks.Ranks(job, 2, "trainer=ddp", own=[[word] for word in own])
    said = other.finish()
    assert other.codes == [1, 1]
    assert "the configuration of rank 1 is not that of rank 0" in said[0]
    assert shown in said[0]
    assert quiet(said[1]).count("\n") <= 1
    assert not job.out.exists()


def test_a_signal_to_one_rank_stops_all_at_the_same_step(job: Job) -> None:
    """Schedulers send it to all, but not at the same moment; and again and again, until the processes are gone."""
    other = ranks.Ranks(
        job, 2, "trainer=fsdp", "max_steps=100000", "callbacks.ledger.enabled=true", f"data.val={job.shards}"
    )
    deadline = time.monotonic() + 600
    while len(job.rows()) < 4:
        assert other.codes == [None, None], other.finish()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while other.programs[1].returncode is None:
        other.programs[1].send(signal.SIGTERM)
        time.sleep(0.01)
    said = other.finish()
    assert other.codes == [128 + 15] * 2, said
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == job.rows()[-1]["step"]
    rows = [path.read_text().splitlines() for path in sorted((job.out / "ledger").iterdir())]
    assert len(rows[0]) == len(rows[1]) == checkpoint.step_of(newest)
    assert "received SIGTERM" in said[0]
    assert "val_loss" not in job.rows()[-1]  # there may be little time: what is measured at the end is left for the end


def test_a_consolidated_checkpoint_is_one_file_that_goes_on(job: Job) -> None:
    ranks.run(job, 2, "trainer=fsdp", "stop_after_steps=4")
    sharded = checkpoint.newest(job.out / "checkpoints")
    assert sharded is not None
    assert (sharded / "shard_00001_of_00002.pt").is_file()
    result = run_script("consolidate", f"checkpoint={job.out}", f"out={job.tmp / 'whole'}")
    assert result.returncode == 0, result.stderr
    whole = job.tmp / "whole/checkpoints/step_00000004"
    assert sorted(path.name for path in whole.iterdir()) == ["COMPLETE", "state.pt"]
    ours, theirs = (checkpoint.load(path) for path in (whole, sharded))
    assert_close(ours, theirs, tolerance=0.0)
    again = run_script("consolidate", f"checkpoint={job.out}", f"out={job.tmp / 'whole'}")
    assert again.returncode == 1
    assert "holds something already" in again.stderr
    job.out = job.tmp / "whole"
    job.run("max_steps=12")
    assert job.rows()[0]["step"] == 5


def test_ranks_build_a_missing_index_together_before_they_meet(job: Job) -> None:
    """A rank that waits in a collective for another's index would give up after so short a time-out."""
    said = ranks.run(job, 2, "trainer=ddp", "max_steps=1", "trainer.timeout_minutes=2")
    assert (job.tmp / "index").is_dir()
    assert not quiet(said[1]).strip()
