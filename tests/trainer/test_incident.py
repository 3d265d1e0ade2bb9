"""Steps whose loss or gradients are not finite: they change nothing, are recorded, and too many stop the run."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pretrain import build
from pretrain.config.check import check
from pretrain.config.overrides import composed
from pretrain.objective.dino import DINO
from pretrain.objective.mae import MAE
from pretrain.objective.objective import Objective
from pretrain.records import Batch, Progress, StepOutput, UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.incident import Incident, Incidents, Origin, Outcome
from pretrain.trainer.module import PretrainModule
from tests.job import SMALL, Job
from tests.optim.test_skip import Reads
from tests.trainer.test_run import same, weights

Harm = Callable[[Tensor, Tensor], Tensor]


def nan_gradient(loss: Tensor, weight: Tensor) -> Tensor:
    """Adds a zero whose gradient is nan: √ of a square, at 0."""
    return loss + (weight - weight.detach()).square().sum().sqrt()


def infinite_loss(loss: Tensor, weight: Tensor) -> Tensor:
    """The gradient stays as it is."""
    return loss + torch.inf


def huge_gradient(loss: Tensor, weight: Tensor) -> Tensor:
    """Each number of it is finite, its square is not."""
    return loss + 1e30 * (weight - weight.detach()).sum()


def spoil(
    monkeypatch: pytest.MonkeyPatch, numbers: set[int], how: Harm = nan_gradient, objective: type[Objective] = MAE
) -> None:
    """Spoils the loss of micro-batches that hold any of these samples."""
    forward = objective.forward

    def harmed(self: Objective, batch: Batch, progress: Progress) -> StepOutput:
        output = forward(self, batch, progress)
        if self.training and numbers & set(batch.g.tolist()):
            output.loss = how(output.loss, self.trained_encoder.get_parameter("norm.weight"))
        return output

    monkeypatch.setattr(objective, "forward", harmed)


@pytest.fixture
def harm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return partial(spoil, monkeypatch)


class Watched:
    """A job of which every step's weights and optimizer state, before and after, are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[int, dict[str, Tensor]] = {}
        self.after: dict[int, dict[str, Tensor]] = {}
        step, watched = PretrainModule.optimizer_step, self

        def look(self: PretrainModule, *arguments: Any, **named: Any) -> None:
            number = self.clock.state.step + 1
            watched.before[number] = watched.state(self)
            step(self, *arguments, **named)
            watched.after[number] = watched.state(self)

        monkeypatch.setattr(PretrainModule, "optimizer_step", look)

    @staticmethod
    def state(module: PretrainModule) -> dict[str, Tensor]:
        """Everything that a step may move, copied."""
        moved = {name: value.clone() for name, value in module.objective.state_dict().items()}
        for name, parameter in module.objective.named_parameters():
            for key, value in module.trainer.optimizers[0].state.get(parameter, {}).items():
                moved[f"{name} {key}"] = value.clone()
        return moved

    def changed(self) -> list[int]:
        """The steps that changed anything."""
        return [step for step in self.before if not same(self.before[step], self.after[step])]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


_SGD = ["~optim.betas", "~optim.eps", "~optim.amsgrad", "~optim.capturable"]
SGD = ["optim._target_=torch.optim.SGD", "+optim.momentum=0.9", *_SGD]
ADAM = {"step", "exp_avg", "exp_avg_sq"}
OPTIMIZERS = {
    "fused": ([], ADAM),
    "plain": (["optim.fused=false", "optim.foreach=false"], ADAM),
    "foreach": (["optim.fused=null", "optim.foreach=true"], ADAM),
    "fused SGD": (SGD, {"momentum_buffer"}),
    "plain SGD": ([*SGD, "optim.fused=false"], {"momentum_buffer"}),
}


def counts(state: dict[str, Tensor]) -> set[float]:
    """What the optimizer counts as its steps, of all parameters."""
    return {float(value) for name, value in state.items() if name.endswith(" step")}


@pytest.mark.parametrize(
    ("optimizer", "how"),
    [*((name, nan_gradient) for name in OPTIMIZERS), ("fused", infinite_loss), ("fused", huge_gradient)],
)
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_ones_go_on(
    job: Job, harm: Any, watched: Watched, optimizer: str, how: Harm
) -> None:
    harm({19}, how)  # of step 3
    words, kept = OPTIMIZERS[optimizer]
    run = job.run(*words, "max_steps=6")
    assert watched.changed() == [1, 2, 4, 5, 6]
    assert {name.rpartition(" ")[2] for name in watched.before[3] if " " in name} == kept
    if "step" in kept:
        assert [counts(watched.after[step]) for step in range(1, 7)] == [{1}, {2}, {2}, {3}, {4}, {5}]
    assert (run.state.step, run.state.samples_seen) == (6, 48)
    rows = job.rows()
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert [row["samples_seen"] for row in rows] == [8, 16, 24, 32, 40, 48]
    assert all(math.isfinite(value) for row in rows if row["step"] != 3 for value in row.values())
    assert rows[2]["loss"] is None if how is infinite_loss else rows[2]["grad_norm"] is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_very_first_step_may_be_left_out(job: Job, harm: Any, watched: Watched, optimizer: str) -> None:
    """Whatever the others make of it, they make it of what the run began with."""
    harm({0, 8})
    job.run(*OPTIMIZERS[optimizer][0], "max_steps=4", "warmup_epochs=0")
    assert watched.changed() == [3, 4]
    assert all(value.isfinite().all() for value in watched.after[4].values())
    assert max(value.abs().max() for value in watched.after[4].values()) < 10


def test_the_objective_is_told_on_the_device(job: Job, harm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[tuple[int, Tensor]] = []
    monkeypatch.setattr(MAE, "after_step", lambda self, progress, skipped: flags.append((progress.step, skipped)))
    harm({19, 39})
    job.run("max_steps=5")
    assert all(flag.dtype == torch.bool and flag.ndim == 0 for _, flag in flags)
    assert [(step, flag.item()) for step, flag in flags] == [(0, False), (1, False), (2, True), (3, False), (4, True)]


SMALL_DINO = [
    "+experiment=dino_vits16",
    "encoder.img_size=16",
    "encoder.patch_size=8",
    "encoder.embed_dim=24",
    "encoder.num_heads=2",
    "encoder.depth=1",
    "objective.head.prototypes=16",
    "objective.head.hidden_dim=16",
    "objective.head.bottleneck_dim=8",
    "objective.local_view.size=8",
    "objective.local_view.count=2",
    "objective.warmup_teacher_temp_epochs=0",
    "objective.momentum_teacher=0.5",
    "epochs=6",
    "warmup_epochs=0",
    "data.num_samples=null",
]


def test_teacher_and_centre_stay_too(job: Job, monkeypatch: pytest.MonkeyPatch, watched: Watched) -> None:
    monkeypatch.setattr("tests.job.SMALL", [word for word in SMALL if not word.startswith("objective.")])
    spoil(monkeypatch, {19}, objective=DINO)
    job.run(*SMALL_DINO, "max_micro_batch_size=4", "max_steps=5")
    moved = [name for name, value in watched.before[3].items() if not torch.equal(value, watched.before[5][name])]
    assert {"center", "teacher.encoder.norm.weight", "student.encoder.norm.weight"} <= set(moved)
    assert all(torch.equal(bits(value), bits(watched.after[3][name])) for name, value in watched.before[3].items())


def bits(value: Tensor) -> Tensor:
    """Bytes, so that 0 and −0 are not the same."""
    return value.contiguous().flatten().view(torch.uint8)


def test_an_incident_is_all_that_it_takes_to_make_the_step_again(job: Job, harm: Any, watched: Watched) -> None:
    harm({19})
    run = job.run("max_steps=6")
    folder = job.out / "incidents" / "step_00000003"
    assert sorted(path.name for path in folder.iterdir()) == ["incident.json", "state.pt"]
    assert Incident.read(folder) == Incident(
        origin=Origin(run.folder.run_id, seed=0, precision="32-true", device="cpu", micro_batch=8),
        step=3,
        progress=Progress(2, 6, 100),
        loss=str(torch.tensor(float.fromhex(job.losses()[3])).item()),
        grad_norm="nan",
        gradients=["encoder.norm.weight"],
        weights="step_00000003/state.pt",
        g=[list(range(16, 24))],
    )
    state = torch.load(folder / "state.pt", weights_only=True)
    assert same(state, {name: value for name, value in watched.before[3].items() if " " not in name})
    assert not same(state, weights(job))


@pytest.mark.parametrize("sample", [17, 22], ids=["the first", "the last"])
def test_one_bad_micro_batch_is_enough_and_all_are_recorded(job: Job, harm: Any, watched: Watched, sample: int) -> None:
    harm({sample})
    job.run("max_micro_batch_size=3", "max_steps=5")
    assert watched.changed() == [1, 2, 4, 5]
    incident = Incident.read(job.out / "incidents" / "step_00000003")
    assert incident.g == [[16, 17], [18, 19], [20, 21], [22, 23]]
    assert incident.origin.micro_batch == 2


def test_going_on_after_a_skipped_step_gives_the_same_bits(job: Job, harm: Any, tmp_path: Path) -> None:
    """Stopped before one, right after it, and between two of a row; the very first step is one too."""
    harm({5, 30, 55, 60})  # steps 1, 4, 7, 8
    job.run()
    losses, final = job.rows(), weights(job)
    job.out = tmp_path / "interrupted"
    for stop in (3, 4, 7):
        job.run(f"stop_after_steps={stop}")
    job.run()
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in job.rows()] == [
        (row["step"], row["loss"], row["grad_norm"]) for row in losses
    ]
    assert same(weights(job), final)


def of_steps(*steps: int) -> set[int]:
    """A sample of each of these steps."""
    return {8 * (step - 1) for step in steps}


@pytest.mark.parametrize("every", ["null", "1"], ids=["learned in the next step", "learned when saving"])
def test_too_many_in_a_row_stop_the_run(job: Job, harm: Any, every: str) -> None:
    harm(of_steps(3, 4, 5))
    with pytest.raises(UserError) as stop:
        job.run(f"checkpoint.every_steps={every}", "checkpoint.keep_last=9")
    message = str(stop.value)
    assert message.startswith("step 5: 3 steps in a row were skipped")
    assert "max_skipped_steps=3" in message
    assert "lower base_lr, a longer warm-up or trainer.precision=32-true" in message
    assert message.endswith(f"pretrain replay incident={job.out / 'incidents' / 'step_00000005'}")
    checkpoints = sorted((job.out / "checkpoints").glob("step_*"))
    assert [path.name for path in checkpoints] == ([] if every == "null" else [f"step_0000000{n}" for n in range(1, 5)])
    states = [checkpoint.load(path)["objective"] for path in checkpoints]
    assert all(value.isfinite().all() for state in states for value in state.values())
    assert all(same(state, states[1]) for state in states[2:])
    assert [row["step"] for row in job.rows()] == [1, 2, 3, 4, 5]


def test_too_many_at_the_very_end_are_too_many(job: Job, harm: Any) -> None:
    harm(of_steps(4, 5, 6))
    with pytest.raises(UserError, match="step 6: 3 steps in a row"):
        job.run("max_steps=6")
    assert not (job.out / "checkpoints").exists()


def test_the_last_step_may_be_skipped_and_is_saved(job: Job, harm: Any, watched: Watched) -> None:
    harm(of_steps(6))
    job.run("max_steps=6")
    assert same(weights(job), {name: value for name, value in watched.after[5].items() if " " not in name})
    assert Incident.read(job.out / "incidents" / "step_00000006").step == 6


def test_a_good_step_between_them_starts_the_count_again(job: Job, harm: Any) -> None:
    harm(of_steps(2, 3, 5, 6, 8))
    job.run()
    assert job.rows()[-1]["skipped_steps"] == 5
    folder = job.out / "incidents"
    found = {path.name: Incident.read(path).weights for path in folder.iterdir()}
    first = {"step_00000002": "step_00000002/state.pt", "step_00000003": "step_00000002/state.pt"}
    second = {"step_00000005": "step_00000005/state.pt", "step_00000006": "step_00000005/state.pt"}
    assert found == first | second | {"step_00000008": "step_00000008/state.pt"}
    assert len(list(folder.rglob("state.pt"))) == 3


@pytest.mark.parametrize("most", [1, 2])
def test_how_many_is_a_setting(job: Job, harm: Any, most: int) -> None:
    harm(of_steps(3, 5, 6))
    with pytest.raises(UserError, match=f"max_skipped_steps={most}"):
        job.run(f"max_skipped_steps={most}")
    assert len(job.rows()) == (3 if most == 1 else 6)
    assert check(composed(job.overrides("max_skipped_steps=0"))) == ["max_skipped_steps=0: must be positive"]


def test_a_full_disk_is_no_reason_to_stop(
    job: Job, harm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights that could not be written are written at the next step of the row."""
    write, calls = checkpoint.write, []

    def sometimes(path: Path, state: dict[str, Any]) -> None:
        calls.append(path)
        if len(calls) == 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, state)

    monkeypatch.setattr(checkpoint, "write", sometimes)
    harm(of_steps(3, 4))
    job.run("max_steps=6")
    assert "step 3 is skipped" in caplog.text
    assert "It cannot be recorded: [Errno 28] No space left on device. Training goes on" in caplog.text
    assert [path.name for path in (job.out / "incidents").iterdir()] == ["step_00000004"]
    assert Incident.read(job.out / "incidents" / "step_00000004").weights == "step_00000004/state.pt"


def test_the_folder_is_not_filled_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = Origin("r", 0, "32-true", "cpu", 2)

    def outcome(step: int, skipped: bool) -> Outcome:
        norms = torch.tensor([1.0, torch.nan if skipped else 1.0])
        flag, total = torch.tensor(skipped), norms.norm()
        return Outcome(step, Progress(step - 1, 9, 1), flag, total, total, ["a", "b"], norms, [torch.tensor([step])])

    incidents = Incidents(tmp_path / "incidents", origin, lambda: {"a": torch.ones(1)}, max_in_a_row=99, max_folders=3)
    for step in range(1, 9):
        incidents.note(outcome(step, step % 2 == 0))
        with caplog.at_level(logging.WARNING):
            incidents.settle()
    incidents.settle()  # nothing is left to settle
    names = ["step_00000002", "step_00000004", "step_00000006"]
    assert sorted(path.name for path in (tmp_path / "incidents").iterdir()) == names
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert f"What it takes to make it again is in {tmp_path / 'incidents' / names[2]}" in lines[2]
    assert "step 8 is skipped" in lines[3]
    assert "is full, no more is recorded" in lines[3]
    assert Incident.read(tmp_path / "incidents" / names[0]).gradients == ["b"]
    again = Incidents(tmp_path / "incidents", origin, lambda: {"a": torch.zeros(1)}, max_folders=3)
    again.note(outcome(4, True))  # a run that goes on from before it comes to the same step again
    again.settle()
    assert torch.load(tmp_path / "incidents" / names[1] / "state.pt", weights_only=True)["a"] == 0


def test_a_step_reads_nothing_on_the_host_but_the_flag_of_the_one_before(
    job: Job, harm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each such read would wait until the device has done all that is queued.

    The flag is read when this step's forward and backward are queued and its optimizer's step is not.
    """
    events: list[str] = []
    reads: dict[int, int] = {}
    step, settle, note = PretrainModule.optimizer_step, Incidents.settle, Incidents.note
    mode = Reads()

    def optimizer_step(
        self: PretrainModule, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any
    ) -> None:
        def closure() -> None:
            mode.counting = False
            optimizer_closure()
            mode.counting = True
            events.append("backward")

        before, number = mode.count, self.clock.state.step + 1
        with mode:
            step(self, epoch, batch_idx, optimizer, closure)
        reads[number] = mode.count - before

    def settled(self: Incidents) -> None:
        mode.counting = False
        settle(self)
        mode.counting = True
        events.append("settle")

    monkeypatch.setattr(PretrainModule, "optimizer_step", optimizer_step)
    monkeypatch.setattr(Incidents, "settle", settled)
    monkeypatch.setattr(Incidents, "note", lambda *arguments: (events.append("note"), note(*arguments)))
    monkeypatch.setattr(MAE, "after_step", lambda *_: events.append("after_step"))
    hook = register_optimizer_step_pre_hook(lambda *_: events.append("step"))
    harm(of_steps(3))
    job.run("max_steps=5", "clip_grad_norm=0.1", "callbacks.pictures=null")
    hook.remove()
    assert reads == {1: 1, 2: 0, 3: 0, 4: 0, 5: 0}  # the first step of an optimizer is asked for
    assert events == ["backward", "settle", "step", "after_step", "note"] * 5 + ["settle"]  # the last when saving


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no incident.json to read (No such file or directory); name a folder RUN/incidents/step_…"),
        ("{", "is not what a run wrote"),
        ("[]", "is not what a run wrote"),
        ({"weights": "../../elsewhere/state.pt"}, "is not what a run wrote"),
        ({"weights": 3}, "is not what a run wrote"),
        ({"g": []}, "is not what a run wrote"),
        ({"g": [[]]}, "is not what a run wrote"),
        ({"g": [["1"]]}, "is not what a run wrote"),
        ({"g": 7}, "is not what a run wrote"),
        ({"progress": {"step": "1", "total_steps": 9, "epochs": 1}}, "is not what a run wrote"),
        ({"progress": None}, "is not what a run wrote"),
        ({"origin": {}}, "is not what a run wrote"),
        ({"more": 1}, "is not what a run wrote"),
    ],
)
def test_what_is_no_incident_is_said(tmp_path: Path, content: Any, message: str) -> None:
    origin = {"run_id": "r", "seed": 0, "precision": "32-true", "device": "cpu", "micro_batch": 1}
    progress = {"step": 0, "total_steps": 9, "epochs": 1}
    good = {"origin": origin, "step": 1, "progress": progress, "loss": "nan", "grad_norm": "nan", "gradients": []}
    good |= {"weights": "step_00000001/state.pt", "g": [[0]]}
    path = tmp_path / "incident.json"
    path.write_text(json.dumps(good))
    assert Incident.read(tmp_path).step == 1
    path.write_text(content if isinstance(content, str) else json.dumps(good | (content or {})))
    if content is None:
        path.unlink()
    with pytest.raises(UserError) as refusal:
        Incident.read(tmp_path)
    assert str(refusal.value).startswith(f"incident={tmp_path}: ")
    assert message in str(refusal.value)


def test_somebody_elses_incidents_are_not_written_to(job: Job) -> None:
    (job.out / "incidents").mkdir(parents=True)
    with pytest.raises(UserError, match="it holds incidents but no run of ours"):
        build.run_of(composed(job.overrides()))
