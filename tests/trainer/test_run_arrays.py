"""A run on 16-bit arrays of four channels, from shards to pictures, probes and exports."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import build
from pretrain.config.check import check
from pretrain.config.overrides import composed
from pretrain.data.opening import open_shards
from pretrain.frozen import load
from pretrain.records import UserError
from tests.data.shards import write_tar
from tests.data.test_arrays import npy
from tests.job import Job
from tests.scripts import run_script

VIEW = ["objective.view.mean=[0.1,0.3,0.5,0.7]", "objective.view.std=[0.2,0.2,0.2,0.2]"]
RAW = ["objective.view.pixels=uint16", "objective.view.full_scale=10000", "encoder.in_chans=4"]


def shards_of_arrays(job: Job, count: int = 24) -> str:
    """Two classes, told apart by the fourth channel alone."""
    noise, members = np.random.default_rng(0), []
    for number in range(count):
        array = noise.integers(0, 8000, (10, 12, 4), dtype=np.uint16)
        array[..., 3] = 1000 + 7000 * (number % 2)
        members += [(f"{number:03d}.npy", npy(array)), (f"{number:03d}.cls", b"%d" % (number % 2))]
    folder = job.tmp / "arrays"
    folder.mkdir()
    write_tar(folder / "s.tar", members)
    return str(folder)


def test_four_channels_of_16_bits_train_and_are_probed(job: Job) -> None:
    folder = shards_of_arrays(job)
    often = [
        "callbacks.pictures.every_steps=3",
        "callbacks.online_knn.every_steps=2",
        "callbacks.evaluate.every_steps=2",
    ]
    job.run(
        *VIEW,
        *RAW,
        *often,
        f"data.train={folder}",
        f"data.val={folder}",
        "max_steps=4",
        "callbacks.health.every_steps=2",
    )
    rows = job.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] < 1.5 * rows[0]["loss"]
    assert {"val_loss", "knn", "prediction_std"} <= rows[1].keys()
    assert Image.open(job.out / "pictures" / "reconstruction_00000003.png").mode == "RGB"
    frozen = load(job.out)
    assert (frozen.view.pixels, frozen.view.full_scale, frozen.view.channels) == ("uint16", 10_000, 4)
    pixels, labels = frozen.features(open_shards(folder, str(job.tmp / "i")), "pixels", num_workers=0)
    fourth = pixels.view(-1, 4, 8, 8)[:, 3]
    expected = ((1000 + 7000 * labels.float()) / 10_000 - 0.7) / 0.2
    torch.testing.assert_close(fourth, expected[:, None, None].expand(-1, 8, 8), atol=1e-5, rtol=1e-5)
    exported = job.tmp / "export"
    pytest.importorskip("timm")
    assert run_script("export", f"checkpoint={job.out}", "format=timm", f"out={exported}").returncode == 0
    words = [f"train={folder}", f"val={folder}", "num_workers=0"]
    for checkpoint in (job.out, exported):  # both know of which numbers their views are
        for name, extra in (("knn", ["k=1"]), ("linear_probe", [])):
            out = job.tmp / "result.json"
            result = run_script(name, f"checkpoint={checkpoint}", *words, *extra, f"out={out}")
            assert result.returncode == 0, result.stderr
            assert json.loads(out.read_text())["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["encoder.in_chans=4"],
            "3 channels, but `encoder.in_chans` is 4: give objective.view.mean and std a value for each of 4",
        ),
        ([*VIEW, *RAW[:2]], "4 channels, but `encoder.in_chans` is 3"),
    ],
)
def test_channels_that_do_not_agree_are_refused_before_anything_is_done(
    job: Job, words: list[str], message: str
) -> None:
    cfg = composed(job.overrides(*words))
    assert check(cfg) == []
    with pytest.raises(UserError, match=message):
        build.run_of(cfg)
    assert not job.out.exists()
    assert not (job.tmp / "index").exists()


def test_channels_without_a_type_are_refused_by_the_check(job: Job) -> None:
    (line,) = check(composed(job.overrides("objective.view.mean=[0.1,0.3,0.5,0.7]", "encoder.in_chans=4")))
    assert line.startswith("objective.view.mean=[0.1, 0.3, 0.5, 0.7]: must be three numbers")
    assert "need `pixels`" in line


def test_arrays_that_do_not_fit_the_view_stop_the_run_with_their_cause(job: Job) -> None:
    folder = shards_of_arrays(job)
    with pytest.raises(
        UserError, match=r"samples in a row cannot be decoded, .*it is an array: `pixels` of the view says"
    ):
        job.run(f"data.train={folder}")
    assert (job.out / "data_report.json").exists()
