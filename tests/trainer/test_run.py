"""A run from its beginning to its end, and on: what it leaves behind, and that going on changes nothing."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pretrain import build
from pretrain.config.overrides import composed
from pretrain.records import UserError
from pretrain.trainer import checkpoint, clock
from pretrain.trainer.lifecycle import Stop
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.job import Job


def weights(job: Job) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    state: dict[str, torch.Tensor] = checkpoint.load(newest)["objective"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_no_record_of_a_run_holds_the_secrets_of_its_data(job: Job) -> None:
    job.run("data.storage_options={secret: h1dden-w0rd, client_kwargs: {region_name: here}}", "max_steps=1")
    for path in job.out.rglob("*"):
        assert not path.is_file() or b"h1dden-w0rd" not in path.read_bytes(), path
    saved = OmegaConf.load(job.out / "config.yaml").data.storage_options
    assert saved == {"secret": "hidden", "client_kwargs": {"region_name": "here"}}


def test_a_run_leaves_what_the_readme_draws(job: Job) -> None:
    write_shards(job.tmp / "val", [9])
    overrides = [f"data.val={job.tmp / 'val'}", "callbacks.evaluate.every_steps=5", "callbacks.pictures.every_steps=6"]
    run = job.run(*overrides)
    assert run.state.stopping == "all 12 steps are done"
    names = {path.name for path in job.out.iterdir()}
    assert {"config.yaml", "metrics.csv", "metrics.jsonl", "checkpoints", "pictures", "run.json"} <= names
    pictures = sorted(path.name for path in (job.out / "pictures").iterdir())
    assert pictures == ["loss.png", "reconstruction_00000006.png", "reconstruction_00000012.png"]
    rows = job.rows()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["samples_seen"] for row in rows] == list(range(8, 97, 8))
    assert {"loss", "lr", "grad_norm", "images_per_second", "data_wait", "peak_memory_gb", "seconds"} <= rows[0].keys()
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 12]
    with open(job.out / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert [row["step"] for row in table if row["val_loss"]] == ["5", "10", "12"]
    saved = OmegaConf.load(job.out / "config.yaml")
    assert saved.encoder.embed_dim == 24
    assert saved.objective.view.size == 8  # resolved


def test_rows_come_every_n_steps_and_at_the_last(job: Job) -> None:
    job.run("callbacks.log.every_steps=5")
    assert [row["step"] for row in job.rows()] == [5, 10, 12]


def test_the_schedule_is_rescaled_by_max_steps_and_cut_by_stop_after_steps(job: Job) -> None:
    job.run("max_steps=20", "stop_after_steps=10", "warmup_epochs=10", "epochs=100", "base_lr=0.32")
    peak = 0.32 * 8 / 256
    rates = [row["lr"] for row in job.rows()]
    assert len(rates) == 10
    for step, rate in enumerate(rates):
        cosine = 0.5 * (1 + math.cos(math.pi * (step / 20 - 0.1) / 0.9))
        assert rate == pytest.approx(peak * (step / 2 if step < 2 else cosine))


def test_epochs_decide_when_nothing_else_does(job: Job) -> None:
    assert job.run("max_steps=null", "epochs=2", "warmup_epochs=1").state.step == 2 * (41 // 8)


def test_going_on_gives_the_same_bits(job: Job, tmp_path: Path) -> None:
    """Interrupted twice, with other readers, in mid-epoch and past its end (41 samples, 96 drawn)."""
    job.run("max_steps=12")
    losses, final = job.losses(), weights(job)
    job.out = tmp_path / "interrupted"
    job.run("stop_after_steps=3")
    job.run("stop_after_steps=7", "data.num_workers=2")
    job.run()
    assert job.losses() == losses
    assert same(weights(job), final)


def test_accumulation_makes_the_same_step(job: Job, tmp_path: Path) -> None:
    """Micro-batches of 8, 4 and 1: the loss is a mean over samples whose random numbers are their own."""
    results = []
    for bound in (8, 7, 1):
        job.out = tmp_path / f"run{bound}"
        job.run(f"max_micro_batch_size={bound}")
        results.append([row["loss"] for row in job.rows()])
    assert results[1] == pytest.approx(results[0], rel=1e-5)  # float32 sums in other orders, over 12 steps of AdamW
    assert results[2] == pytest.approx(results[0], rel=1e-5)


def test_seeds_differ(job: Job, tmp_path: Path) -> None:
    job.run()
    first = job.losses()
    job.out = tmp_path / "other"
    job.run("seed=1")
    assert all(first[step] != loss for step, loss in job.losses().items())


def test_a_finished_run_says_so_and_does_nothing(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.run("callbacks.pictures.every_steps=6")
    before = digest(job.out / "checkpoints") | digest(job.out / "pictures")
    assert any(name.endswith(".png") for name in before)
    with caplog.at_level(logging.INFO):
        job.run("callbacks.pictures.every_steps=6")
    assert "is finished: all 12 steps are done" in caplog.text
    assert digest(job.out / "checkpoints") | digest(job.out / "pictures") == before
    assert len(job.rows()) == 12


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=1", "seed: 0 there, 1 here"),
        ("encoder.depth=1", "encoder.depth: 2 there, 1 here"),
        ("objective.mask_ratio=0.5", "objective.mask_ratio: 0.75 there, 0.5 here"),
        ("global_batch_size=4", "global_batch_size: 8 there, 4 here"),
        ("data.shuffle.window=5", "data.shuffle.window: 4 there, 5 here"),
    ],
)
def test_another_run_is_refused_and_nothing_is_touched(job: Job, override: str, line: str) -> None:
    job.run("stop_after_steps=2")
    before = digest(job.out)
    with pytest.raises(UserError, match="holds another run") as refusal:
        job.run(override)
    assert line in str(refusal.value)
    assert "output_dir=…" in str(refusal.value)
    assert digest(job.out) == before


def test_another_data_set_is_refused_with_the_difference(job: Job) -> None:
    job.run("stop_after_steps=2")
    write_tar(job.shards / "s-000002.tar", [("x.png", image_bytes(77))])
    write_tar(job.shards / "t.tar", [("y.png", image_bytes(78))])
    with pytest.raises(UserError) as refusal:
        job.run()
    assert "data.shards: 1 gone, first `s-000002.tar 1 " in str(refusal.value)
    assert "data.shards: 2 new, first `s-000002.tar 1 " in str(refusal.value)


def test_moved_shards_are_the_same_data(job: Job) -> None:
    job.run("stop_after_steps=2")
    job.shards = job.shards.rename(job.tmp / "elsewhere")
    assert job.run().state.step == 12


def test_another_rate_goes_on_with_a_warning(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.run("stop_after_steps=2")
    with caplog.at_level(logging.WARNING):
        job.run("base_lr=0.5")
    assert "this run goes on with a change: base_lr: 0.0015 there, 0.5 here" in caplog.text


def test_other_settings_of_the_optimizer_are_what_it_goes_on_with(job: Job) -> None:
    job.run("stop_after_steps=2")
    job.run("optim.betas=[0.5,0.6]", "optim.eps=1e-6", "stop_after_steps=3")
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    groups = checkpoint.load(newest)["optimizer"]["param_groups"]
    assert [(list(group["betas"]), group["eps"]) for group in groups] == [([0.5, 0.6], 1e-6)] * len(groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


def test_resume_must_and_never(job: Job) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        job.run("resume=must")
    assert not job.out.exists()
    job.run("stop_after_steps=2", "resume=never")
    with pytest.raises(UserError, match="already holds this run"):
        job.run("resume=never")
    assert job.run("resume=must").state.step == 12


def test_a_folder_with_somebody_elses_files_is_refused(job: Job) -> None:
    job.out.mkdir()
    (job.out / "config.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"it holds config\.yaml but no run of ours"):
        job.run()
    assert (job.out / "config.yaml").read_text() == "mine"


def test_two_runs_in_one_folder_are_refused(job: Job) -> None:
    first = build.run_of(composed(job.overrides()))
    with pytest.raises(UserError, match=r"process \d+ on .* is training there"):
        build.run_of(composed(job.overrides()))
    first.folder.close()
    job.run()


def test_too_few_images_for_a_batch_are_refused(job: Job) -> None:
    with pytest.raises(UserError, match="global_batch_size=64: there are only 41 images"):
        job.run("global_batch_size=64", "max_micro_batch_size=64")


def test_a_pair_that_does_not_fit_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match="view of 10×10 pixels cannot be cut into mask units of 4"):
        job.run("objective.view.size=10")
    assert not job.out.exists()


@pytest.mark.parametrize("every", [1, 30], ids=["logged", "between two rows of the log"])
def test_a_run_that_diverges_stops_and_its_checkpoint_is_unharmed(job: Job, every: int) -> None:
    job.run("stop_after_steps=2", "max_steps=40")
    with pytest.raises(UserError, match=r"step \d: 3 steps in a row were skipped"):
        job.run("base_lr=1e30", "warmup_epochs=0", "max_steps=40", f"callbacks.log.every_steps={every}")
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000002"
    assert all(value.isfinite().all() for value in checkpoint.load(newest)["objective"].values())


def test_weights_that_are_not_finite_are_never_saved(job: Job) -> None:
    """Gradients are finite, and the rate carries the weights beyond all numbers: no checkpoint of that time may push
    out the good ones."""
    job.run("stop_after_steps=4", "max_steps=40")
    with pytest.raises(UserError, match=r"step 5: .* is not finite. The run stops and nothing is saved"):
        job.run("max_steps=40", "base_lr=1e41", "warmup_epochs=0", "checkpoint.every_steps=5")
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000004"


def test_a_finished_run_keeps_the_configuration_that_made_it(job: Job) -> None:
    job.run()
    before = digest(job.out)
    job.run("base_lr=0.5")
    assert digest(job.out) == before


def test_damaged_checkpoints_are_never_passed_over_in_silence(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.run("checkpoint.every_steps=5", "max_steps=20", "stop_after_steps=10")
    checkpoints = sorted((job.out / "checkpoints").glob("step_*"))
    (checkpoints[1] / "state.pt").write_bytes(b"")
    assert job.run("max_steps=20", "stop_after_steps=6").state.step == 6
    assert "step_00000010 is damaged and passed over" in caplog.text
    for path in (job.out / "checkpoints").glob("step_*"):
        (path / "state.pt").write_bytes(b"")
    before = digest(job.out)
    with pytest.raises(UserError, match="is damaged, and no other is there"):
        job.run("max_steps=20")
    assert digest(job.out) == before


def test_a_run_whose_checkpoints_were_deleted_keeps_its_old_record(job: Job) -> None:
    job.run()
    rows = (job.out / "metrics.jsonl").read_bytes()
    shutil.rmtree(job.out / "checkpoints")
    job.run("stop_after_steps=2")
    assert (job.out / "metrics.1.jsonl").read_bytes() == rows
    assert [row["step"] for row in job.rows()] == [1, 2]


@pytest.mark.parametrize(
    ("out", "message"),
    [("file", "Not a directory"), ("file/run", "Not a directory"), ("/proc/nope", "cannot be written")],
)
def test_an_output_folder_that_cannot_be_is_said(job: Job, out: str, message: str) -> None:
    (job.tmp / "file").write_text("")
    with pytest.raises(UserError, match=message):
        job.run(f"output_dir={job.tmp / out}")
    job.out.mkdir()
    (job.out / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not what a run wrote"):
        job.run()


def test_an_optimizer_that_cannot_be_is_said_before_anything_is_written(job: Job) -> None:
    with pytest.raises(UserError, match="optim: Invalid beta"):
        job.run("optim.betas=[0.9,1.5]")
    assert not job.out.exists()


def test_a_callback_can_be_turned_off(job: Job) -> None:
    job.run("callbacks.pictures=null", "max_steps=2")
    assert not (job.out / "pictures").exists()


def test_lightning_leaves_signals_and_slurm_to_us(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    seen = []

    class Look(Stop):
        def after_step(self) -> None:
            seen.append(signal.getsignal(signal.SIGUSR1) == self._note)
            super().after_step()

    monkeypatch.setattr(build, "Stop", Look)
    job.run("max_steps=1")
    assert seen == [True]


def test_checkpoints_by_steps_and_the_newest_are_kept(job: Job) -> None:
    job.run("checkpoint.every_steps=5", "checkpoint.keep_last=2")
    assert sorted(path.name for path in (job.out / "checkpoints").iterdir()) == [
        "latest",
        "step_00000010",
        "step_00000012",
    ]
    assert (job.out / "checkpoints" / "latest").resolve().name == "step_00000012"


def test_checkpoints_by_time(job: Job) -> None:
    job.run("checkpoint.every_minutes=1e-9", "checkpoint.keep_last=3")
    assert [path.name for path in sorted((job.out / "checkpoints").glob("step_*"))] == [
        f"step_000000{step}" for step in (10, 11, 12)
    ]


def test_max_minutes_decides_end_and_schedule_over_restarts(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, advance = [0.0], clock.Clock.advance

    def later(self: clock.Clock) -> None:
        now[0] += 0.03
        advance(self)

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(clock.Clock, "advance", later)
    minutes = ["max_steps=null", "max_minutes=0.02", "warmup_epochs=10"]
    with caplog.at_level(logging.INFO):
        first = job.run(*minutes, "stop_after_steps=5")
    assert "not bit-reproducible" in caplog.text
    assert first.state.seconds == pytest.approx(0.15)
    second = job.run(*minutes)
    assert second.state.stopping == "max_minutes=0.02 are over"
    assert second.state.seconds == pytest.approx(1.2, abs=0.031)
    rates = [row["lr"] for row in job.rows()]
    seconds = [0.0, *(row["seconds"] for row in job.rows())]
    peak = 1.5e-3 * 8 / 256
    for step, (rate, elapsed) in enumerate(zip(rates, seconds, strict=False)):
        if step == 5:
            continue  # the pictures and the checkpoint of the first stop are training time too
        position = elapsed / 1.2  # of the run; the schedule stands where the step began
        expected = position / 0.1 if position < 0.1 else 0.5 * (1 + math.cos(math.pi * (position - 0.1) / 0.9))
        assert rate == pytest.approx(peak * expected, abs=0.03 * peak)  # 500 steps: 2 % of the peak a step


def test_gradients_are_clipped_together(job: Job, tmp_path: Path) -> None:
    job.run("clip_grad_norm=0.1", "stop_after_steps=1")
    clipped = job.rows()[0]
    job.out = tmp_path / "free"
    job.run("stop_after_steps=1")
    assert clipped["grad_norm"] == job.rows()[0]["grad_norm"] > 0.1  # the norm before clipping is what is shown


@pytest.mark.parametrize("by", ["global", "parameter"])
def test_gradients_are_clipped_together_or_each_by_itself(job: Job, by: str) -> None:
    norms: list[list[float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"]]
        norms.append([one.norm().item() for one in gradients if one is not None])

    hook = register_optimizer_step_pre_hook(look)
    job.run("clip_grad_norm=0.01", f"clip_grad_by={by}", "stop_after_steps=2")
    hook.remove()
    for each in norms:
        together = math.hypot(*each)
        assert max(each) == pytest.approx(0.01, rel=1e-3) if by == "parameter" else max(each) < 0.0099
        assert together > 0.03 if by == "parameter" else together == pytest.approx(0.01, rel=1e-3)
    assert job.rows()[0]["grad_norm"] > 0.1
