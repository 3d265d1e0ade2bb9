"""The project's batch script on a real Slurm: whatever interrupts a job, it ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slurm.cluster import NODES, Cluster
from tests.slurm.submitted import ROOT, STEPS, Submitted

ONE = ("-N1", "trainer=cpu")
DDP = ("-N2", "trainer=ddp")
FSDP = ("-N2", "trainer=fsdp")
FULL = pytest.mark.full


def submit(job: Submitted, hardware: tuple[str, str], *words: str, flags: tuple[str, ...] = ()) -> None:
    nodes, trainer = hardware
    spread = [] if trainer == "trainer=cpu" else ["accelerator=cpu"]
    kept = ("trainer.precision=32-true", "max_micro_batch_size=4", trainer, *spread, *words)
    job.submit(*kept, flags=(nodes, *flags))


_TIMES = ("state.pt.seconds", "state.pt.spent")


def content(folder: Path) -> dict[str, str]:
    """All that a checkpoint holds, tensors by their hash, but for the times that it took."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, torch.Tensor):
            yield name, hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from walk(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for place, item in enumerate(value):
                yield from walk(item, f"{name}.{place}")
        elif not name.startswith(_TIMES):
            yield name, repr(value)

    files = sorted(folder.glob("*.pt"))
    return dict(line for path in files for line in walk(torch.load(path, weights_only=True), path.name))


@pytest.fixture(scope="session")
def through(
    running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, str]], Submitted]:
    """A job of the same kind that nothing interrupts."""
    done: dict[tuple[str, str], Submitted] = {}

    def once(hardware: tuple[str, str]) -> Submitted:
        if hardware not in done:
            job = Submitted(tmp_path_factory.mktemp("through"), running_cluster)
            submit(job, hardware, "data.num_workers=0", "+callbacks.slow.seconds=0")
            job.wait_for_state("COMPLETED")
            done[hardware] = job
        return done[hardware]

    return once


def at_the_time_limit(job: Submitted) -> None:
    """Its limit is moved so near that Slurm warns it within half a minute, as `--signal` asks for."""
    minutes = 2 + int(job.facts["RunTime"].split(":")[-2])
    job.cluster.call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    job.wait_for_requeue()
    job.cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")


def preempted(job: Submitted) -> None:
    """A job of a partition that goes first wants all nodes."""
    words = ("--partition=high", f"-N{len(NODES)}", "--ntasks-per-node=4", "--output=/dev/null", "--wrap=true")
    job.cluster.call("sbatch", *words)
    job.wait_for_requeue()


def without_a_node(job: Submitted) -> None:
    """The last of its nodes is gone from one moment to the next; there is another that can take its place."""
    job.cluster.lose(job.cluster.call("scontrol", "show", "hostnames", job.facts["NodeList"]).split()[-1])
    job.wait_for_requeue()


def cases() -> Iterator[Any]:
    """Two run always, one of each kind of the trainers for several devices; all of them as part of the full tests."""
    always = {(at_the_time_limit, DDP, 2), (preempted, FSDP, 0)}
    for event in (at_the_time_limit, preempted, without_a_node):
        for hardware in (ONE, DDP, FSDP):
            for workers in (0, 2):
                marks = () if (event, hardware, workers) in always else (FULL,)
                name = f"{event.__name__}-{hardware[1].partition('=')[2]}-{workers}"
                yield pytest.param(event, hardware, workers, marks=marks, id=name)


@pytest.mark.parametrize(("event", "hardware", "workers"), list(cases()))
def test_interrupted_it_starts_again_and_ends_with_the_same_bits(
    event: Callable[[Submitted], None],
    hardware: tuple[str, str],
    workers: int,
    cluster: Cluster,
    through: Callable[[tuple[str, str]], Submitted],
    tmp_path: Path,
) -> None:
    whole, job = through(hardware), Submitted(tmp_path / "job", cluster)
    often = [f"checkpoint.every_steps={3 if event == without_a_node else 1000}"]
    submit(job, hardware, f"data.num_workers={workers}", *often, flags=("--time=60", "--signal=USR1@80"))
    job.wait_for_step(8)
    event(job)
    job.wait_for_state("COMPLETED")

    facts, log = job.facts, job.log
    assert facts["Restarts"] == "1", log
    assert [path.name for path in (job.tmp / "runs").iterdir()] == ["small"]
    assert [line[-1] for line in re.findall(r"job \d+, restart \d", log)] == ["0", "1"]  # all in one file
    went_on = re.findall(r"goes on from \S+ \(step (\d+)\)", log)
    if event == without_a_node:
        assert int(went_on[0]) % 3 == 0
    else:
        signal = "SIGUSR1" if event == at_the_time_limit else "SIGTERM"
        stopped = re.findall(rf"step (\d+), received {signal}", log)
        requeued = re.findall(r"is requeued and goes on from step (\d+)", log)
        assert set(stopped) == set(requeued) == set(went_on), log
        saved = sorted(path.name for path in (job.out / "checkpoints").glob("step_*"))
        assert saved == [f"step_{int(went_on[0]):08d}", f"step_{STEPS:08d}"]
    assert "Traceback" not in log or event == without_a_node
    assert len(set(went_on)) == 1
    assert 8 - 3 <= int(went_on[0]) < STEPS

    assert list(job.losses()) == list(range(1, STEPS + 1))
    assert job.losses() == whole.losses()
    last = f"checkpoints/step_{STEPS:08d}"
    assert content(job.out / last) == content(whole.out / last)


@FULL
def test_requeued_twice_it_has_one_folder_and_what_depends_on_it_waits_for_its_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    """`scancel --signal=USR1`, as a person would; the probe and the export are submitted before anything is there."""
    job = Submitted(tmp_path / "job", cluster)
    submit(job, ONE, "data.num_workers=0", "+callbacks.slow.lives=2")
    (job.tmp / "scripts").symlink_to(ROOT / "scripts")
    after, run = (f"--dependency=afterok:{job.number}",), f"checkpoint={job.out}"
    data = [f"{name}={job.shards}" for name in ("train", "val")]
    others = [
        job.sbatch("probe.sbatch", "knn", run, *data, "num_workers=0", flags=after),
        job.sbatch("export.sbatch", run, "format=timm", flags=after),
    ]
    for times, step in enumerate((5, 20), start=1):
        job.wait_for_step(step)
        cluster.call("scancel", "--signal=USR1", job.number)
        job.wait_for_requeue(times)
    assert [cluster.job(other)["JobState"] for other in others] == ["PENDING", "PENDING"]
    job.wait_for_state("COMPLETED")

    assert job.facts["Restarts"] == "2"
    assert [path.name for path in (job.tmp / "runs").iterdir()] == ["small"]
    went_on = [int(step) for step in re.findall(r"goes on from \S+ \(step (\d+)\)", job.log)]
    assert 5 <= went_on[0] < went_on[1] < STEPS
    assert list(job.losses()) == list(range(1, STEPS + 1))
    for other in others:
        cluster.wait(
            lambda other=other: cluster.job(other)["JobState"] == "COMPLETED", 240, "the job that depends on it"
        )
    assert "accuracy" in json.loads((job.out / "probe" / "knn.json").read_text())
    assert (job.out / "export" / "timm" / "config.json").exists()


@FULL
def test_a_cancelled_job_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    job = Submitted(tmp_path / "job", cluster)
    submit(job, ONE, "data.num_workers=0")
    job.wait_for_step(5)
    cluster.call("scancel", job.number)
    job.wait_for_state("CANCELLED")
    cluster.wait(lambda: set(cluster.states()) == {"idle"}, 60, "idle nodes")
    assert (job.facts["JobState"], job.facts["Restarts"]) == ("CANCELLED", "0")
