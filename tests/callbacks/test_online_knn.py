"""k-NN accuracy while training: its value, its samples, and that training does not notice."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import build
from pretrain.callbacks import online_knn
from pretrain.config.check import check
from pretrain.config.overrides import composed
from pretrain.data.opening import open_shards
from pretrain.data.stream.loader import Loader
from pretrain.frozen import load
from pretrain.probe import knn
from pretrain.probe.features import extract, pooled
from tests.data.shards import write_tar
from tests.job import DINO, HIERA, Job

EVERY_STEP = ("callbacks.online_knn.every_steps=1",)


def picture(label: int, seed: int) -> bytes:
    """A PNG of random colours about those of its class."""
    centre = np.random.default_rng(label).integers(60, 196, size=(4, 4, 3))
    pixels = centre + np.random.default_rng([label, seed]).integers(-60, 60, size=(4, 4, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).resize((8, 8), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def write_val(job: Job, count: int = 30, classes: int = 3, labels: bool = True) -> str:
    """Shards of which sample i is called `i` and of class i · classes // count, so that they are sorted by class."""
    (job.tmp / "val").mkdir(exist_ok=True)
    members = []
    for number in range(count):
        label = number * classes // count
        members.append((f"{number:05d}.png", picture(label, number)))
        members += [(f"{number:05d}.cls", str(label).encode())] * labels
    half = len(members) // 4 * 2
    for name, part in {"a": members[:half], "b": members[half:]}.items():
        write_tar(job.tmp / "val" / f"{name}.tar", part)
    return f"data.val={job.tmp / 'val'}"


def callback_of(run: build.Run) -> online_knn.OnlineKNN:
    told = [getattr(one, "target", None) for one in run.trainer.callbacks]  # type: ignore[attr-defined]
    return next(one for one in told if isinstance(one, online_knn.OnlineKNN))


def same_rows(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether the rows are the same, in whatever order."""
    nearest = torch.cdist(ours, theirs).argmin(dim=1)
    return sorted(nearest.tolist()) == list(range(len(theirs))) and torch.allclose(ours, theirs[nearest], atol=1e-5)


def samples_of(job: Job, *words: str) -> list[str]:
    """The keys of the samples that are looked at, in their order."""
    job.out = job.out.with_name(f"{job.out.name}_")
    run = build.run_of(composed(job.overrides(*words)))
    callback = callback_of(run)
    assert callback.context.val_subset is not None
    keys = [key for batch in callback.context.val_subset(callback.samples) for key in batch.keys]
    run.folder.close()
    return keys


def accuracy_by_loops(run: build.Run, classes: int, k: int, temperature: float) -> float:
    """Each picture in the folder is asked of all others by the encoder that the run has now."""
    encoder, view = run.module.objective.encoder_for_export.eval(), run.module.objective.views[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (view.mean, view.std))
    features, labels = [], []
    for number in range(30):
        label = number * classes // 30
        pixels = np.asarray(Image.open(io.BytesIO(picture(label, number))))
        image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            features.append(torch.nn.functional.normalize(pooled(encoder, image[None], "mean")[0], dim=0))
        labels.append(label)
    right = 0
    for i in range(30):
        near = sorted(((float(features[i] @ features[j]), labels[j]) for j in range(30) if j != i), reverse=True)[:k]
        votes = [sum(np.exp(value / temperature) for value, label in near if label == c) for c in range(classes)]
        right += int(np.argmax(votes)) == labels[i]
    return right / 30


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (3, 1.0)])
def test_it_is_what_leaving_each_one_out_gives(job: Job, k: int, temperature: float) -> None:
    """All 30 samples, of 8×8 pixels, so that the central crop is the picture."""
    settings = [f"callbacks.online_knn.k={k}", f"callbacks.online_knn.temperature={temperature}"]
    run = job.run(write_val(job), *EVERY_STEP, *settings)
    values = [row["knn"] for row in job.rows()]
    assert len(values) == 12
    assert values[-1] == pytest.approx(accuracy_by_loops(run, 3, k, temperature))
    assert 0.4 < values[-1] < 1


def test_it_is_of_the_encoder_as_it_is_exported(job: Job) -> None:
    """A Hiera is exported with all its poolings and without its fusion, and its weights are those of this moment."""
    val = write_val(job)
    run = job.run(*HIERA, val, *EVERY_STEP)
    context = callback_of(run).context
    assert context.val_subset is not None
    ours = extract(context.val_subset(30), context.features)
    theirs = load(job.out).features(open_shards(val.partition("=")[2]), num_workers=0)
    assert same_rows(ours[0], theirs[0])
    assert job.rows()[-1]["knn"] == pytest.approx(knn.accuracy(knn.leave_one_out(*theirs), theirs[1]))


def test_it_is_of_the_teacher(job: Job) -> None:
    val = write_val(job)
    run = job.run(*DINO, val, *EVERY_STEP)
    context, sources = callback_of(run).context, open_shards(val.partition("=")[2])
    assert context.val_subset is not None
    ours, _ = extract(context.val_subset(30), context.features)
    assert same_rows(ours, load(job.out).features(sources, num_workers=0)[0])
    assert not same_rows(ours, load(job.out, "student").features(sources, num_workers=0)[0])


def test_one_class_tells_nothing(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        job.run(write_val(job, classes=1), *EVERY_STEP)
    assert "no k-NN accuracy while training: all 30 samples of data.val with a label are of one class" in caplog.text
    assert not any("knn" in row for row in job.rows())


def test_the_subset_is_random_and_the_seeds_and_nothing_elses(job: Job) -> None:
    val = write_val(job, count=300, classes=10)
    few = [val, "callbacks.online_knn.samples=40"]
    first = samples_of(job, *few)
    assert len(set(first)) == 40
    assert samples_of(job, *few, "max_micro_batch_size=3") == first
    assert samples_of(job, *few, "data.num_workers=2") == first
    assert samples_of(job, *few, "data.shuffle.streams=1", "data.shuffle.run_length=4") == first
    assert samples_of(job, *few, "seed=1") != first
    assert len({int(key) // 30 for key in first}) >= 7  # of ten classes, though they lie in the shards one by one
    assert len(set(samples_of(job, val))) == 300


def test_training_does_not_notice(job: Job, tmp_path: Path) -> None:
    job.run("callbacks.online_knn=null")
    plain = job.losses()
    val = write_val(job)
    for workers in (0, 2):
        job.out = tmp_path / f"watched{workers}"
        job.run(val, *EVERY_STEP, "callbacks.evaluate=null", f"data.num_workers={workers}")
        assert job.losses() == plain
        assert all("knn" in row for row in job.rows())


def test_every_n_steps_and_at_the_last(job: Job) -> None:
    job.run(write_val(job), "callbacks.online_knn.every_steps=5")
    assert [row["step"] for row in job.rows() if "knn" in row] == [5, 10, 12]


def test_its_time_is_not_training_speed(
    job: Job, monkeypatch: pytest.MonkeyPatch, skip_seconds: Callable[[float], None]
) -> None:
    leave_one_out = knn.leave_one_out
    monkeypatch.setattr(knn, "leave_one_out", lambda *words: (skip_seconds(1000), leave_one_out(*words))[1])
    job.run(write_val(job), "callbacks.online_knn.every_steps=4", "callbacks.log.every_steps=4", "max_steps=8")
    rates = [row["images_per_second"] for row in job.rows() if row["step"] % 4 == 0]
    assert len(rates) == 2
    assert all(rate > 8 * 4 / 900 for rate in rates)


@pytest.mark.parametrize("val", [True, False])
def test_without_labels_it_is_off_and_says_so_once(job: Job, caplog: pytest.LogCaptureFixture, val: bool) -> None:
    words = [write_val(job, labels=False)] if val else []
    with caplog.at_level(logging.INFO):
        run = job.run(*words, *EVERY_STEP)
    lines = [record.getMessage() for record in caplog.records if "no k-NN accuracy" in record.getMessage()]
    assert len(lines) == 1
    assert ("has no labels" if val else "there is no data.val") in lines[0]
    assert run.state.step == 12
    assert not any("knn" in row for row in job.rows())


def test_what_cannot_be_decoded_or_has_no_label_is_left_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    val = write_val(job)
    members = []
    for number in range(30):
        content = b"no picture" if number in (4, 17) else picture(number // 10, number)
        members.append((f"{number:05d}.png", content))
        members += [(f"{number:05d}.cls", str(number // 10).encode())] * (number != 11)
    for path in (job.tmp / "val").iterdir():
        path.unlink()
    write_tar(job.tmp / "val" / "a.tar", members)
    seen: list[tuple[int, list[int]]] = []
    leave_one_out = knn.leave_one_out

    def looks(features: torch.Tensor, labels: torch.Tensor, *words: Any) -> torch.Tensor:
        seen.append((len(features), labels.bincount().tolist()))
        return leave_one_out(features, labels, *words)

    monkeypatch.setattr(knn, "leave_one_out", looks)
    job.run(val, *EVERY_STEP, "max_steps=2", "epochs=1", "warmup_epochs=0")
    assert seen == [(27, [9, 8, 10])] * 2


@pytest.mark.parametrize(("kept", "readings"), [(2**28, 1), (20 * 3 * 64, 12)])
def test_pixels_are_kept_unless_they_are_too_many(
    job: Job, monkeypatch: pytest.MonkeyPatch, kept: int, readings: int
) -> None:
    read: list[int] = []
    iterate = Loader.__iter__

    def counted(self: Loader) -> Any:
        if not self.stream.random:
            read.append(1)
        return iterate(self)

    monkeypatch.setattr(Loader, "__iter__", counted)
    monkeypatch.setattr(online_knn, "_KEPT", kept)
    leave_one_out, seen = knn.leave_one_out, []
    monkeypatch.setattr(knn, "leave_one_out", lambda *words: (seen.append(words[0]), leave_one_out(*words))[1])
    job.run(write_val(job), *EVERY_STEP)
    assert len(read) == readings
    assert len({features.sum().item() for features in seen}) == 12  # the encoder's own of each step


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.online_knn.every_steps=0", "must be at least 1"),
        ("callbacks.online_knn.samples=1", "must be at least 2"),
        ("callbacks.online_knn.k=0", "must be at least 1"),
        ("callbacks.online_knn.temperature=0", "must be positive"),
    ],
)
def test_a_wrong_setting_is_said(job: Job, override: str, message: str) -> None:
    lines = check(composed(job.overrides(override)))
    assert len(lines) == 1
    assert override.partition("=")[0] in lines[0]
    assert message in lines[0]
