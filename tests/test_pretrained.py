"""`pretrain.load`: an encoder in Python sees an image as probes see it, and imports no machinery of training."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import pretrain
from pretrain import frozen
from pretrain.data.opening import open_shards
from pretrain.pretrained import Pretrained
from pretrain.records import UserError
from tests.data.shards import write_tar
from tests.job import DINO, Job
from tests.scripts import run_script


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A drawing in which left and right, and top and bottom, are told apart."""
    image = Image.new("RGB", size, (number * 20 % 256, 90, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 3, size[0] // 2, size[1] // 3), fill=(250, number * 30 % 256, 10))
    draw.line((0, size[1] - 2, size[0] - 3, 4), fill=(0, 255, 60), width=3)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image.convert(mode)


def stored(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "a.png": stored(picture(1), "PNG"),
    "b.jpg": stored(picture(2, size=(64, 41)), "JPEG", quality=80),
    "c.jpg": stored(picture(3, size=(50, 70)), "JPEG", exif=turned()),
    "d.jpg": stored(picture(4, "CMYK"), "JPEG"),
    "e.png": stored(picture(5, "RGBA"), "PNG"),
    "f.png": stored(picture(6, "L"), "PNG"),
    "g.webp": stored(picture(7, size=(9, 90)), "WEBP", lossless=True),
    "h.gif": stored(picture(8, "P"), "GIF"),
    "i.tif": stored(picture(9), "TIFF", exif=turned()),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run whose weights are far from what they began with."""
    job = Job(tmp_path_factory.mktemp("pretrained"))
    job.run("max_steps=3", "base_lr=1.0", "warmup_epochs=0", "encoder.drop_path=0.3")
    for name, content in FILES.items():
        (job.tmp / name).write_bytes(content)
    return job


@pytest.fixture(scope="module")
def encoder(job: Job) -> Pretrained:
    return pretrain.load(job.out)


@pytest.fixture(scope="module")
def paths(job: Job) -> list[Path]:
    return [job.tmp / name for name in FILES]


@pytest.fixture(scope="module")
def of_shards(job: Job, encoder: Pretrained) -> torch.Tensor:
    """What `pretrain probe` computes of the same images."""
    members = [one for name, content in FILES.items() for one in ((name, content), (f"{Path(name).stem}.cls", b"1"))]
    index = open_shards(str(write_tar(job.tmp / "same.tar", members)), str(job.tmp / "same"))
    return frozen.load(job.out).features(index, num_workers=0)[0]


def test_features_of_files_are_those_of_probes(encoder: Pretrained, paths: list[Path], of_shards: torch.Tensor) -> None:
    found = encoder.features(paths)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, of_shards)  # in a batch of the same size
    assert len({tuple(row.tolist()) for row in found}) == len(paths)
    torch.testing.assert_close(encoder.features(paths, batch_size=2), of_shards, atol=1e-6, rtol=1e-5)  # other kernels


def test_images_come_in_any_form(encoder: Pretrained, paths: list[Path], of_shards: torch.Tensor) -> None:
    opened = [Image.open(path) for path in paths]
    # Pillow and we decode these JPEGs by libjpeg-turbo, each by its own release
    torch.testing.assert_close(encoder.features(opened), of_shards, atol=1e-3, rtol=1e-3)
    exact = [number for number, path in enumerate(paths) if path.suffix != ".jpg"]
    assert torch.equal(encoder.features(opened, batch_size=64)[exact], of_shards[exact])
    mixed = [image if number % 2 else str(path) for number, (image, path) in enumerate(zip(opened, paths, strict=True))]
    torch.testing.assert_close(encoder.features(one for one in mixed), of_shards, atol=1e-3, rtol=1e-3)
    for single in (
        paths[0],
        str(paths[0]),
        opened[0],
        [paths[0]],
        torch.from_numpy(np.array(opened[0])).permute(2, 0, 1),
    ):
        found = encoder.features(single)
        assert found.shape == (1, encoder.embed_dim)
        torch.testing.assert_close(found, of_shards[:1], atol=1e-6, rtol=1e-5)


def test_uint8_is_cut_and_normalised_and_floats_are_taken_as_they_are(encoder: Pretrained, paths: list[Path]) -> None:
    images = torch.stack([torch.from_numpy(np.array(picture(number))).permute(2, 0, 1) for number in range(5)])
    expected = encoder.features([picture(number) for number in range(5)])
    assert torch.equal(encoder.features(images), expected)
    ready = torch.cat(list(encoder._batches(images, 64)))
    assert ready.shape == (5, 3, 8, 8)
    assert torch.equal(encoder.features(ready), expected)
    torch.testing.assert_close(encoder.features(ready.double()), expected, atol=1e-6, rtol=1e-5)
    assert encoder.features(torch.randn(2, 3, 12, 16)).shape == (2, 24)  # multiples of a patch


def test_the_pool_can_be_chosen(encoder: Pretrained) -> None:
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        tokens = encoder.module(images)
    assert torch.equal(encoder.features(images, pool="cls"), tokens.cls)
    assert torch.equal(encoder.features(images), tokens.patches.mean(dim=1))


def test_stage_maps_have_strides(encoder: Pretrained, paths: list[Path]) -> None:
    maps = encoder.feature_maps(paths, batch_size=4)
    assert [one.shape for one in maps] == [(len(paths), 24, 2, 2)] * 4
    assert encoder.strides == (4, 4, 4, 4)
    with torch.no_grad():
        expected = encoder.module.feature_maps(torch.cat(list(encoder._batches(paths, 64))))
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert not one.requires_grad
    assert [one.shape for one in encoder.feature_maps(torch.zeros(1, 3, 8, 16), blocks=[-1])] == [(1, 24, 2, 4)]


def test_it_stays_in_the_mode_that_its_user_chose(encoder: Pretrained) -> None:
    images = torch.randn(4, 3, 8, 8)
    expected = encoder.features(images)
    encoder.module.train()
    try:
        assert torch.equal(encoder.features(images), expected)  # without drop path
        assert encoder.module.training
    finally:
        encoder.module.eval()
    assert any(one.requires_grad for one in encoder.module.parameters())


def test_it_says_what_it_is(encoder: Pretrained, job: Job) -> None:
    said = repr(encoder)
    for part in (
        "ViT, 15,816 parameters",
        f"the trained network of run {encoder.run_id}, step 3 ({job.out})",
        "8 × 8 pixels, RGB",
        "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)",
        "4 × 4 pixels a token",
        "embed_dim 24, pool mean",
        "cpu",
    ):
        assert part in said
    assert "random weights of run" in repr(pretrain.load(str(job.out), "random"))
    assert (encoder.step, encoder.img_size, encoder.path) == (3, (8, 8), job.out)


def test_an_export_is_the_same_encoder(job: Job, encoder: Pretrained, paths: list[Path]) -> None:
    pytest.importorskip("timm")
    out = job.tmp / "timm"
    assert run_script("export", f"checkpoint={job.out}", "format=timm", f"out={out}").returncode == 0
    loaded = pretrain.load(out)
    torch.testing.assert_close(loaded.features(paths), encoder.features(paths), atol=1e-5, rtol=1e-5)
    assert loaded.run_id == encoder.run_id
    with pytest.raises(UserError, match="an export holds one encoder"):
        pretrain.load(out, network="student")


def test_the_student_is_another_network_than_the_teacher(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run(*DINO, "max_steps=2", "base_lr=1.0", "warmup_epochs=0")
    images = torch.randn(2, 3, 16, 16)
    teacher, student, start = (
        pretrain.load(job.out, name).features(images) for name in ("trained", "student", "random")
    )
    assert not torch.allclose(teacher, student, atol=1e-4)
    assert not torch.allclose(start, student, atol=1e-4)
    assert torch.equal(pretrain.load(job.out).features(images), teacher)


def test_what_cannot_be_taken_is_named(encoder: Pretrained, job: Job, paths: list[Path]) -> None:
    (job.tmp / "broken.jpg").write_bytes(FILES["b.jpg"][:-90])
    (job.tmp / "text.txt").write_text("no image")
    floats = r"multiples of 4; or give uint8"
    for images, message in [
        ([*paths, job.tmp / "broken.jpg"], r"broken.jpg` is no image that can be decoded: "),
        (job.tmp / "text.txt", r"text.txt` is no image that can be decoded: it is of no format"),
        ("nowhere.png", "`nowhere.png` cannot be read: No such file"),
        (job.tmp, "cannot be read: .*; give the files in it"),
        ([], "there are none"),
        (Image.new("RGB", (0, 0)), "image 0, 0×0 of mode RGB: it has no pixels"),
        ("a\0b.png", "cannot be read: embedded null byte"),
        (np.zeros((3, 8, 8)), "type ndarray is not taken: give a path, an image of Pillow, or a tensor"),
        ([picture(1), np.zeros((8, 8, 3))], "image 1: type ndarray is not taken"),
        (3, "type int is not taken"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"image 0: a tensor of shape \(8, 8, 3\) .* channels before rows"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"shape \(8, 8\) is none of shape \[3, H, W\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"shape \(1, 8, 8\) is none"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "a tensor of torch.int64 is not taken: torch.uint8 holds"),
        ([torch.zeros(3, 8, 8)], "a tensor of torch.float32 is not taken"),
        (torch.zeros(3, 8, 8), rf"a tensor of floats of shape \(3, 8, 8\).*{floats}"),
        (torch.zeros(1, 3, 9, 8), rf"shape \(1, 3, 9, 8\).*{floats}"),
        (torch.zeros(1, 4, 8, 8), rf"shape \(1, 4, 8, 8\).*{floats}"),
        (torch.zeros(0, 3, 8, 8), rf"shape \(0, 3, 8, 8\).*{floats}"),
    ]:
        with pytest.raises(UserError, match=message):
            encoder.features(images)
        with pytest.raises(UserError, match=message):
            encoder.feature_maps(images)
    with Image.open(job.tmp / "broken.jpg") as opened, pytest.raises(UserError, match=r"image 0, `.*broken.jpg`: "):
        encoder.features(opened)
    with pytest.raises(UserError, match="pool=max: must be one of cls, mean"):
        encoder.features(paths, pool="max")
    for size in (0, "3", 2.5, None, 10**30):
        with pytest.raises(UserError, match=rf"batch_size={size}: must be a whole number, at least 1"):
            encoder.features(paths, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no blocks"):
        encoder.feature_maps(paths, blocks=[9])
    with pytest.raises(UserError, match="network=pixels: must be one of trained, student, random"):
        pretrain.load(job.out, "pixels")
    with pytest.raises(UserError, match="`nowhere` is no folder"):
        pretrain.load("nowhere")
    with pytest.raises(UserError, match="neither a run's folder nor an export"):
        pretrain.load(job.shards)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.yaml", "depth: 2", "depth: 3", "its weights do not fit its description: Missing key"),
        ("config.yaml", "name: ", "odd: &a [*a]\nname: ", "alias"),
        ("config.yaml", "name: ", f"odd: {'[' * 5000}\nname: ", "cannot be read"),
        ("run.json", '"run_id"', '"id"', "run.json is not what a run wrote"),
        ("run.json", "{", "", "run.json is not what a run wrote"),
    ],
)
def test_a_damaged_run_is_refused(job: Job, tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    shutil.copytree(job.out, tmp_path / "run")
    file = tmp_path / "run" / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        pretrain.load(tmp_path / "run")


def test_no_more_files_are_held_than_a_batch_or_two(
    encoder: Pretrained, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    seen: list[int] = []
    plain = type(encoder.module).forward

    def forward(self: Any, images: torch.Tensor, *rest: Any) -> Any:
        seen.append(len(images))
        assert len(asked) <= sum(seen) + 4
        return plain(self, images, *rest)

    monkeypatch.setattr(type(encoder.module), "forward", forward)
    many = (asked.append(number) or paths[number % len(paths)] for number in range(30))
    assert len(encoder.features(many, batch_size=4)) == 30
    assert max(seen) == 4


ALONE = """
import sys
from pathlib import Path
import pretrain
assert {"load", "train", "__version__"} <= set(dir(pretrain))
assert not {"torch", "numpy", "hydra"} & set(sys.modules), "import pretrain is light"
encoder = pretrain.load(sys.argv[1], device="cpu")
print(encoder.features(Path(sys.argv[2])).shape, len(encoder.feature_maps(Path(sys.argv[2]))))
print(sorted({"hydra", "omegaconf", "antlr4", "lightning", "wandb", "webdataset", "sklearn"} & set(sys.modules)))
"""


def test_nothing_of_training_is_imported(job: Job, paths: list[Path]) -> None:
    command = [sys.executable, "-c", ALONE, str(job.out), str(paths[0])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.stdout.splitlines() == ["torch.Size([1, 24]) 4", "[]"], result.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        pretrain.lode  # noqa: B018


def test_arrays_come_as_the_run_read_them(tmp_path: Path) -> None:
    """A run on uint16 of two channels: `.npy` files and tensors of that type; Pillow has no such images."""
    arrays = [np.random.default_rng(number).integers(0, 60000, (20, 24, 2), np.uint16) for number in range(12)]
    for number, one in enumerate(arrays):
        np.save(tmp_path / f"{number:02}.npy", one)
    job = Job(tmp_path)
    write_tar(
        tmp_path / "arrays.tar",
        [(f"{number}.npy", (tmp_path / f"{number:02}.npy").read_bytes()) for number in range(12)],
    )
    view = ["objective.view.pixels=uint16", "objective.view.mean=[0.5,0.5]", "objective.view.std=[0.3,0.3]"]
    job.run(
        *view,
        "objective.view.full_scale=65535",
        "encoder.in_chans=2",
        f"data.train={tmp_path}/arrays.tar",
        "max_steps=1",
    )
    encoder = pretrain.load(job.out)
    found = encoder.features(sorted(tmp_path.glob("*.npy")))
    tensors = [torch.from_numpy(one).permute(2, 0, 1) for one in arrays]
    assert torch.equal(encoder.features(tensors), found)
    assert "2 channels of uint16" in repr(encoder)
    with pytest.raises(UserError, match="image 0, 40×30 of mode RGB: "):
        encoder.features(picture(1))
    with pytest.raises(UserError, match=r"a tensor of torch.uint8 is not taken: torch.uint16 holds decoded images"):
        encoder.features(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
