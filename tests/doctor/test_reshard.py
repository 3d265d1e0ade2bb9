"""`action=reshard`: every sample once, smaller, with all it had."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.pack import write
from pretrain.data.shard.index import Index, open_index
from pretrain.data.shard.skip import Skipped, write_skip_list
from pretrain.doctor.reshard import Resharding, reshard
from pretrain.doctor.sample import Samples
from pretrain.doctor.shrink import resized, shrink
from pretrain.doctor.verify import verify
from pretrain.records import UserError
from pretrain.view.decode import decode
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.doctor import damage
from tests.doctor.photos import encoded, scene
from tests.scripts import run_script


def contents(folder: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of all members of the shards in a folder, in their order."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    return found


def opened(tmp_path: Path, *paths: Path | str, skip: str | None = None) -> Index:
    return open_index([str(path) for path in paths], str(tmp_path / "i"), skip=skip)


def test_samples_are_regrouped_in_order_with_all_their_members(tmp_path: Path) -> None:
    members = [
        ("d/a.txt", b"first"),
        ("d/a.png", image_bytes(1)),
        ("d/a.cls", b"7"),
        ("README", b"of nobody"),
        ("b.json", b"{}"),
        ("b.png", image_bytes(2)),
        ("b.seg.png", image_bytes(3)),
        ("b.txt", b"last"),
        ("lonely.txt", b"no sample"),
        ("c.npy", b"\x93NUMPY"),
        ("c.txt", b"end"),
    ]
    one = write_tar(tmp_path / "one.tar", members)
    more = write_shards(tmp_path / "d", [2])
    outcome = reshard(opened(tmp_path, one, *more), tmp_path / "out", Resharding(2), 2, timed=False)
    expected = [(name, data) for name, data in members if name not in ("README", "lonely.txt")]
    with tarfile.open(more[0]) as tar:
        expected += [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    assert sorted(contents(tmp_path / "out")) == sorted(expected)
    written = opened(tmp_path, *sorted((tmp_path / "out").glob("*.tar")))
    assert [written.key(*place) for place in Samples(written).places()] == ["d/a", "b", "c", "00000", "00001"]
    assert written.counts == [2, 2, 1]
    assert outcome.bytes_after == outcome.bytes_before


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_keep_their_samples_together(tmp_path: Path, tar_format: int) -> None:
    """Their headers are several blocks, which belong to the next sample."""
    keys = [f"{'x' * 120}/{number}{'y' * 120}" for number in range(3)]
    members = [(f"{key}.{extension}", image_bytes(1)) for key in keys for extension in ("a.txt", "png", "z.txt")]
    index = opened(tmp_path, write_tar(tmp_path / "t.tar", members, tar_format))
    found = [[extension for extension, _, _ in Samples(index).members(0, member)] for member in range(3)]
    assert found == [["a.txt", "png", "z.txt"]] * 3
    reshard(index, tmp_path / "out", Resharding(2), 1, timed=False)
    assert [name for name, _ in contents(tmp_path / "out")] == [name for name, _ in members]


def test_images_are_shrunk_as_a_run_would_see_them(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "large.jpg": encoded(scene(0, (300, 400)), quality=95),
        "turned.jpeg": encoded(scene(1, (300, 400)), exif=turned, quality=95),
        "png.png": encoded(scene(2, (200, 100)), "PNG"),
        "grey.webp": encoded(scene(3, (200, 150)).convert("L"), "PNG"),
        "alpha.2020.png": encoded(scene(4, (128, 90)).convert("RGBA"), "PNG"),
        "small.png": encoded(scene(5, (64, 100)), "PNG"),
        "deep.png": encoded(Image.fromarray(np.arange(10000, dtype=np.uint16).reshape(100, 100)), "PNG"),
        "array.npy": b"\x93NUMPY whatever",
        "broken.jpg": encoded(scene(6, (300, 400)))[:3000],
    }
    index = opened(tmp_path, write_tar(tmp_path / "t.tar", [*images.items(), ("z.cls", b"1")]))
    outcome = reshard(index, tmp_path / "out", Resharding(short_side=64), 2, timed=True)
    found = dict(contents(tmp_path / "out"))
    sizes = {name: decode(data).shape[:2] for name, data in found.items() if name not in ("array.npy", "broken.jpg")}
    assert sizes == {
        "large.jpg": (64, 85),
        "turned.jpeg": (85, 64),
        "png.jpg": (128, 64),
        "grey.jpg": (85, 64),
        "alpha.2020.jpg": (91, 64),
        "small.png": (64, 100),
        "deep.png": (100, 100),
    }
    for name in ("small.png", "deep.png", "array.npy", "broken.jpg"):
        assert found[name] == images[name]
    assert outcome.images == {"resized": 5, "small": 1, "other": 3}
    for name, original in (
        ("large.jpg", "large.jpg"),
        ("turned.jpeg", "turned.jpeg"),
        ("alpha.2020.jpg", "alpha.2020.png"),
    ):
        with Image.open(io.BytesIO(found[name])) as image:
            assert not image.getexif()
            ours = np.asarray(image).astype(float)
        whole = Image.fromarray(decode(images[original]))
        theirs = np.asarray(whole.resize(ours.shape[1::-1], Image.Resampling.BICUBIC)).astype(float)
        assert 10 * np.log10(255**2 / np.square(ours - theirs).mean()) > 30  # what JPEG loses of this noise
    with Image.open(io.BytesIO(found["grey.jpg"])) as image:
        assert image.mode == "L"
    assert outcome.speed is not None
    assert outcome.speed.images == 7
    report = json.loads((tmp_path / "out" / "reshard.json").read_text())
    assert report["bytes_after"] == sum(len(data) for name, data in found.items() if name != "z.cls")


def test_resizing_is_that_of_pillow_to_rounding() -> None:
    pixels = np.array(scene(0, (301, 211)))
    ours = resized(pixels, 100).astype(float)
    assert ours.shape == (143, 100, 3)
    theirs = np.asarray(Image.fromarray(pixels).resize((100, 143), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(ours - theirs).max() <= 2


def test_better_quality_is_larger() -> None:
    data = encoded(scene(0), quality=95)
    assert len(shrink("jpg", data, 64, 95).data) > 1.3 * len(shrink("jpg", data, 64, 60).data)


def test_the_order_is_mixed_by_a_seed_and_equal_keys_stay_apart(tmp_path: Path) -> None:
    for number in range(2):  # two shards with the same keys
        write_tar(tmp_path / f"{number}.tar", [(f"{n}.png", image_bytes(100 * number + n)) for n in range(20)])
    index = opened(tmp_path, tmp_path / "0.tar", tmp_path / "1.tar")
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
        reshard(index, tmp_path / name, Resharding(7, shuffle=seed), 2, timed=False)
        orders.append([data for _, data in contents(tmp_path / name)])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[3] == [image_bytes(100 * number + n) for number in range(2) for n in range(20)]
    for order in orders:
        assert sorted(order) == sorted(orders[3])
    same = [("k.png", image_bytes(n)) for n in range(2)]
    twice = opened(tmp_path, *(write_tar(tmp_path / f"same{n}.tar", [same[n]]) for n in range(2)))
    reshard(twice, tmp_path / "e", Resharding(), 1, timed=False)
    assert [name for name, _ in contents(tmp_path / "e")] == ["k.png", "k-2.png"]


def test_a_killed_call_goes_on_but_not_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(tmp_path, *write_shards(tmp_path / "d", [10]))
    original, calls = write._write_tar, []

    def killed(path: Path, *rest: object) -> None:
        calls.append(path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "_write_tar", killed)
    how = Resharding(2, short_side=4)
    with pytest.raises(KeyboardInterrupt):
        reshard(index, tmp_path / "out", how, 1, timed=False)
    assert not (tmp_path / "out" / "index.json").exists()
    with pytest.raises(UserError, match="already holds"):
        reshard(index, tmp_path / "out", Resharding(2, short_side=5), 1, timed=False)
    done = len(list((tmp_path / "out").glob("*.tar")))
    calls[:] = ["", "", ""]
    reshard(index, tmp_path / "out", how, 1, timed=False)
    assert len(calls) - 3 == 5 - done < 5
    assert [name for name, _ in contents(tmp_path / "out")] == [
        f"{n:05d}.{extension}" for n in range(10) for extension in ("cls", "jpg")
    ]


def test_what_a_skip_list_names_is_left_out_and_class_names_stay(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [6])
    (tmp_path / "d" / "classes.json").write_text('["cat", "dog"]')
    whole = opened(tmp_path, *paths)
    write_skip_list(tmp_path / "s.json", [Skipped(whole.shards[0].sha256, "", n, "", "") for n in (0, 3)])
    words = [f"data={paths[0]}", f"skip={tmp_path}/s.json", f"index_dir={tmp_path}/i", f"out={tmp_path}/out"]
    result = run_script("shards", "action=reshard", *words, "name=less")
    assert result.returncode == 0, result.stderr
    kept = [name for name, _ in contents(tmp_path / "out") if name.endswith("png")]
    assert kept == [f"{n:05d}.png" for n in (1, 2, 4, 5)]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["cat", "dog"]
    assert (tmp_path / "out" / "less-000000.tar").is_file()


def test_hostile_names_write_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "in" / "er").mkdir(parents=True)
    shard = damage.hostile(tmp_path / "in" / "er" / "t.tar")
    with tarfile.open(shard, "a") as tar:
        for name in ("good.__key__", "good._x"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    before = set(tmp_path.rglob("*"))
    reshard(open_index([str(shard)], str(tmp_path / "in" / "i")), tmp_path / "in" / "out", Resharding(), 1, timed=False)
    made = {path.relative_to(tmp_path).parts[:2] for path in set(tmp_path.rglob("*")) - before}
    assert made == {("in", "i"), ("in", "out")}
    names = [name for name, _ in contents(tmp_path / "in" / "out")]
    assert names == ["evil.png", "abs/evil.png", "a/up.png", "good.png"]
    assert verify([str(tmp_path / "in" / "out" / "train-000000.tar")], 1).findings == []


def test_the_shards_own_folder_is_refused(tmp_path: Path) -> None:
    index = opened(tmp_path, *write_shards(tmp_path / "d", [2]))
    with pytest.raises(UserError, match="lies there itself"):
        reshard(index, tmp_path / "d", Resharding(), 1, timed=False)


def test_mistaken_words_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    words = ["short_side=0", "quality=101", "workers=0", "name=a/b", "samples_per_shard=0", "val=x"]
    result = run_script("shards", "action=reshard", "data=nothing", *words)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    for start in (
        "val=x: action=reshard does not take it",
        "out=… is missing",
        *(f"{word}: must be" for word in words[:-1]),
    ):
        assert any(line.startswith(start) for line in lines), start


def test_real_photographs(data_dir: Path, tmp_path: Path) -> None:
    shard = data_dir / "photos" / "photos-000000.tar"
    outcome = reshard(opened(tmp_path, shard), tmp_path / "out", Resharding(short_side=256), 2, timed=True)
    assert outcome.bytes_after < 0.5 * outcome.bytes_before
    assert outcome.speed is not None
    assert verify([str(tmp_path / "out" / "train-000000.tar")], 2).findings == []
    before, after = Samples(opened(tmp_path, shard)), Samples(open_index([str(tmp_path / "out" / "train-000000.tar")]))
    for place in after.places():
        shape = decode(after.read(place[0], after.image(*place))).shape[:2]
        assert min(shape) == min(256, *decode(before.read(place[0], before.image(*place))).shape[:2])
