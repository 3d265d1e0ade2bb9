"""A skipped step is made again from what the run left of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.opening import open_shards
from pretrain.data.shard.skip import Skipped, write_skip_list
from pretrain.data.stream import reader
from pretrain.objective.dino import DINO
from pretrain.records import UserError
from pretrain.replay import Replay
from pretrain.view import region
from tests.job import DINO as DINO_JOB
from tests.job import Job
from tests.scripts import run_command, run_script
from tests.trainer.test_incident import infinite_loss, spoil

OVERFLOW = "objective.view.std=[1e-38,1e-38,1e-38]"  # normalised pixels are at the end of what float32 can hold


def overflow(job: Job, *words: str) -> Path:
    """The first incident of a run whose every step overflows."""
    job.run(OVERFLOW, "max_steps=2", *words)
    return job.out / "incidents" / "step_00000001"


def edit(incident: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((incident / "incident.json").read_text())
    change(content)
    (incident / "incident.json").write_text(json.dumps(content))


def test_the_command_in_the_log_runs_as_it_stands_there(job: Job) -> None:
    with pytest.raises(UserError) as stop:
        job.run(OVERFLOW)
    command = str(stop.value).rpartition(": ")[2].split()
    assert command[:2] == ["pretrain", "replay"]
    result = run_command(*command[1:])
    assert result.returncode == 0, result.stderr
    assert "reproduced: the loss is nan" in result.stdout


def test_an_overflow_comes_again_and_is_explained(job: Job) -> None:
    result = run_script("replay", f"incident={overflow(job, 'max_micro_batch_size=3')}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "step 1 again: 4 × 2 samples, precision 32-true on cpu",
        "weights that are not finite: none",
        "loss nan (in the run nan)",
        "gradient norm nan (in the run nan)",
    ]
    assert lines[4].startswith("gradients that are not finite: encoder.cls_token, encoder.patch_embed.proj.weight, ")
    assert lines[4].endswith(" more")
    assert lines[5].startswith("samples whose loss alone is not finite: g=0 `")
    assert lines[5].endswith(" (8 of 8)")
    assert lines[6] == "first module whose output is not finite: encoder.blocks.0.norm1 (LayerNorm)"
    assert lines[7] == "reproduced: the loss is nan, the gradient norm nan"


def test_it_is_the_very_same_step(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harmed again, it ends as in the run; unharmed, as the same step of a run that never was, to the last bit."""
    words = ["max_steps=4", "max_micro_batch_size=3"]
    replay_of = lambda: Replay(job.out / "incidents" / "step_00000003", device="cpu")  # noqa: E731
    with monkeypatch.context() as patch:
        spoil(patch, {21})
        job.run(*words)
        replay = replay_of()
        harmed = replay.make()
    assert (str(harmed.loss), str(harmed.grad_norm)) == (replay.incident.loss, replay.incident.grad_norm)
    assert harmed.gradients == replay.incident.gradients == ["encoder.norm.weight"]
    assert (harmed.module, harmed.micro_batches) == ("", [])
    assert not harmed.finite
    unharmed = replay_of().make()
    job.out = job.tmp / "clean"
    job.run(*words)
    assert unharmed.finite
    assert (unharmed.loss, unharmed.grad_norm) == (job.rows()[2]["loss"], job.rows()[2]["grad_norm"])


def test_images_are_decoded_at_the_scale_of_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = overflow(job, "data.scaled_decode=true")
    asked: list[object] = []

    def spy(data: bytes, boxes_of: region.Boxes, views: object) -> object:
        asked.append(views)
        return region.decode_for(data, boxes_of)

    monkeypatch.setattr(reader, "decode_for", spy)
    Replay(incident, device="cpu").make()
    assert asked
    assert None not in asked


def test_a_step_of_dino_is_the_very_same(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its teacher and centre are those from before, its views and colours those of its samples."""
    words = [*DINO_JOB, "max_steps=4", "max_micro_batch_size=3"]
    with monkeypatch.context() as patch:
        spoil(patch, {21}, objective=DINO)
        job.run(*words)
    incident = job.out / "incidents" / "step_00000003"
    unharmed = Replay(incident, device="cpu").make()
    job.out = job.tmp / "clean"
    job.run(*words)
    assert unharmed.finite
    assert (unharmed.loss, unharmed.grad_norm) == (job.rows()[2]["loss"], job.rows()[2]["grad_norm"])
    job.out = job.tmp / "overflow"
    job.run(
        *DINO_JOB, "objective.global_view.std=[1e-38,1e-38,1e-38]", "callbacks.pictures.every_steps=1", "max_steps=2"
    )
    result = run_script("replay", f"incident={job.out / 'incidents' / 'step_00000001'}", "device=cpu")
    assert result.returncode == 0, result.stderr
    assert "\nreproduced: the loss is nan" in result.stdout


def test_what_weights_and_samples_did_not_do_does_not_come_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, {19}, infinite_loss)
        job.run("max_steps=4")
    result = run_script("replay", f"incident={job.out / 'incidents' / 'step_00000003'}", "device=cpu")
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[2].endswith("(in the run inf)")
    assert lines[4:7] == [
        "gradients that are not finite: none",
        "samples whose loss alone is not finite: none",
        "first module whose output is not finite: none",
    ]
    there = "precision 32-true on cpu"
    assert lines[7] == f"not reproduced: loss and gradients are finite here ({there}; the run had {there})"


def test_one_sample_is_found_among_many(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {21}, infinite_loss)
    job.run("max_steps=4", "max_micro_batch_size=3")
    replay = Replay(job.out / "incidents" / "step_00000003", device="cpu")
    finding = replay.make()
    assert finding.micro_batches == [2]
    (sample,), tried = replay.suspects(finding.micro_batches)
    assert sample.startswith("g=21 `000")
    assert tried == 2
    assert finding.module == "MAE"


def test_broken_weights_are_named(job: Job) -> None:
    incident = overflow(job)
    path = incident / "state.pt"
    state = torch.load(path, weights_only=True)
    state["encoder.blocks.1.mlp.fc2.weight"][0, 0] = torch.nan
    torch.save(state, path)
    content = (job.out / "config.yaml").read_text()
    (job.out / "config.yaml").write_text(content.replace("1.0e-38", "0.5"))
    result = run_script("replay", f"incident={incident}", "device=cpu")
    assert result.returncode == 0, result.stderr
    assert "weights that are not finite: encoder.blocks.1.mlp.fc2.weight\n" in result.stdout
    assert "first module whose output is not finite: encoder.blocks.1.mlp.fc2 (Linear)" in result.stdout
    state["encoder.blocks.1.mlp.fc2.weight"][0, 0] = 0.0
    torch.save(state, path)
    assert run_script("replay", f"incident={incident}", "device=cpu").returncode == 1


def test_another_precision_may_be_tried(job: Job) -> None:
    """Pixels of 1e19, whose squares are beyond float32, and of which bfloat16 knows as little."""
    result = run_script("replay", f"incident={overflow(job)}", "precision=bf16-mixed", "device=cpu")
    assert result.stdout.startswith("step 1 again: 1 × 8 samples, precision bf16-mixed on cpu")
    assert "reproduced: " in result.stdout


def test_the_second_of_a_row_finds_its_weights_with_the_first(job: Job) -> None:
    second = overflow(job).parent / "step_00000002"
    assert run_script("replay", f"incident={second}", "device=cpu").returncode == 0
    (second.parent / "step_00000001" / "state.pt").unlink()
    result = run_script("replay", f"incident={second}", "device=cpu")
    assert result.returncode == 1
    assert result.stderr.startswith("the weights of this incident were in ")
    assert result.stderr.endswith("step_00000001/state.pt, which is no longer there\n")


def test_shards_may_have_moved(job: Job) -> None:
    incident = overflow(job)
    moved = job.shards.rename(job.tmp / "elsewhere")
    result = run_script("replay", f"incident={incident}")
    assert result.returncode == 1
    assert str(job.shards) in result.stderr
    result = run_script("replay", f"incident={incident}", f"train={moved}", f"index_dir={job.tmp / 'other'}")
    assert result.returncode == 0, result.stderr
    (moved / "s-000000.tar").unlink()
    result = run_script("replay", f"incident={incident}", f"train={moved}")
    assert result.returncode == 1
    assert f"`{moved}` are other shards than those of the run: name where they are now by train=…" in result.stderr


def test_skip_lists_of_the_run_are_those_of_the_replay(job: Job) -> None:
    skip = job.tmp / "skip.json"
    shard = open_shards(str(job.shards), str(job.tmp / "index")).shards[0]
    write_skip_list(skip, [Skipped(shard.sha256, shard.name, 3, "key", "why")])
    incident = overflow(job, f"data.skip={skip}")
    assert run_script("replay", f"incident={incident}", "device=cpu").returncode == 0
    moved = skip.rename(job.tmp / "moved.json")
    assert run_script("replay", f"incident={incident}", "device=cpu").returncode == 1
    assert run_script("replay", f"incident={incident}", f"skip={moved}", "device=cpu").returncode == 0


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_nothing_in_an_incident_is_executed(job: Job) -> None:
    incident, marker = overflow(job), job.tmp / "marker"
    weights = (incident / "state.pt").read_bytes()
    for write in (
        lambda: torch.save({"encoder.norm.weight": Evil(marker)}, incident / "state.pt"),
        lambda: (incident / "state.pt").write_bytes(pickle.dumps(Evil(marker))),
    ):
        write()
        result = run_script("replay", f"incident={incident}", "device=cpu")
        assert result.returncode == 1
        assert "does not hold the weights of this run" in result.stderr
        assert "Traceback" not in result.stderr
    (incident / "state.pt").write_bytes(weights)
    path = job.out / "config.yaml"
    original = path.read_text()
    path.write_text(original.replace("pretrain.encoder.vit.ViT", "logging.FileHandler"))
    result = run_script("replay", f"incident={incident}", "device=cpu")
    assert result.returncode == 1
    assert "outside what may be built" in result.stderr
    pipe = f"pipe:touch {marker}; cat {job.shards / 's-000000.tar'}"
    path.write_text(original.replace(f"train: {job.shards}", f"train: '{pipe}'"))
    result = run_script("replay", f"incident={incident}", "device=cpu")
    assert result.returncode == 1
    assert "runs a shell command: allow it by allow_pipe=true" in result.stderr
    assert not marker.exists()


def _uneven(content: dict[str, Any]) -> None:
    content["g"] = [[0, 1, 5]]


def _of_another(content: dict[str, Any]) -> None:
    content["origin"]["run_id"] = "other"


def _precise(content: dict[str, Any]) -> None:
    content["origin"]["precision"] = "64-true"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_uneven, "the numbers `g` are not evenly spaced"),
        (_of_another, "it is of run other, but "),
        (_precise, "its precision `64-true` is not one of 32-true, bf16-mixed"),
    ],
)
def test_what_does_not_fit_is_said(job: Job, change: Callable[[dict[str, Any]], None], message: str) -> None:
    incident = overflow(job)
    edit(incident, change)
    result = run_script("replay", f"incident={incident}", "device=cpu")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_paths_are_said(job: Job) -> None:
    incident = overflow(job)
    for path in (job.tmp / "nowhere", job.out, incident / "incident.json"):
        result = run_script("replay", f"incident={path}")
        assert result.returncode == 1
        assert result.stderr.startswith(f"incident={path}: there is no incident.json to read")
        assert result.stderr.endswith("name a folder RUN/incidents/step_…\n")
    alone = incident.rename(job.tmp / "step_00000001")
    result = run_script("replay", f"incident={alone}")
    assert result.returncode == 1
    assert "two folders above it, is no run's folder: leave it there" in result.stderr
    (job.out / "run.json").write_text("{}")
    result = run_script("replay", f"incident={incident.parent / 'step_00000002'}")
    assert "is not what a run wrote" in result.stderr
    result = run_script("replay", f"incident={incident}", "precision=16")
    assert result.returncode == 1
    assert "precision=16: must be one of 32-true, bf16-mixed" in result.stderr
