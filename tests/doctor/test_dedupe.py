"""`action=dedupe`: planted copies are found, and nothing else."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pretrain.data.shard.index import Index, open_index
from pretrain.doctor.dedupe import Duplicates, dedupe, skip_rows
from pretrain.doctor.near import BITS, apart, candidates
from pretrain.doctor.sample import Samples
from pretrain.records import UserError
from tests.data.shards import write_shards, write_tar
from tests.doctor.photos import encoded, scene
from tests.scripts import run_script


def opened(tmp_path: Path, **shards: list[tuple[str, bytes]]) -> Index:
    paths = [str(write_tar(tmp_path / f"{name}.tar", members)) for name, members in shards.items()]
    return open_index(paths, str(tmp_path / "i"))


def found(result: Duplicates, train: Index, val: Index | None = None) -> dict[str, tuple[str, str]]:
    """Key of what is left out → (how, key of what stays)."""
    indexes = {1: train} | ({} if val is None else {0: val})
    return {
        train.key(*copy.sample[1:]): (copy.how, indexes[copy.original[0]].key(*copy.original[1:]))
        for copy in result.copies
    }


def people(image: Image.Image) -> dict[str, bytes]:
    """What people do to a picture that still is the same."""
    width, height = image.size
    half = image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return {
        "q50": encoded(image, quality=50),
        "half": encoded(half, quality=90),
        "half_q50": encoded(half, quality=50),
        "larger": encoded(image.resize((width * 3 // 2, height * 3 // 2), Image.Resampling.BILINEAR), quality=85),
        "squashed": encoded(image.resize((128, 128), Image.Resampling.BICUBIC), quality=85),
        "webp": encoded(image, "WEBP", quality=60),
        "brighter": encoded(image.point([min(255, round(1.05 * value)) for value in range(256)] * 3), quality=90),
    }


def test_all_planted_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    originals = [(f"o{n}.jpg", encoded(scene(n), quality=92)) for n in range(12)]
    planted = [("bytes.jpg", originals[3][1])]
    pixels = Image.open(io.BytesIO(originals[4][1]))
    planted += [("png.png", encoded(pixels, "PNG")), ("bmp.bmp", encoded(pixels, "BMP"))]
    planted += [(f"{name}.jpg", data) for name, data in people(scene(5)).items()]
    train = opened(tmp_path, one=originals, two=planted)
    result = dedupe(train, None, 2, 0.4)
    expected = {"bytes": ("same bytes", "o3"), "png": ("same pixels", "o4"), "bmp": ("same pixels", "o4")}
    expected |= dict.fromkeys(people(scene(5)), ("looks the same", "o5"))
    assert found(result, train) == expected
    exact = dedupe(train, None, 1, 0.0)
    assert found(exact, train) == {name: how for name, how in expected.items() if how[0] != "looks the same"}


def test_what_differs_is_not_taken_for_a_copy(tmp_path: Path) -> None:
    """Mirrored and turned pictures, plain colours, and pictures on the same white ground."""
    image = scene(0)
    pictures = [image, ImageOps.mirror(image), image.rotate(180)]
    pictures += [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "red", "blue", (128, 128, 128))]
    for left, top in itertools.product((4, 40, 70), (8, 48)):
        sheet = Image.new("RGB", (96, 96), "white")
        sheet.paste(Image.new("RGB", (20, 30), "black"), (left, top))
        pictures.append(sheet)
    train = opened(tmp_path, t=[(f"{n}.png", encoded(picture, "PNG")) for n, picture in enumerate(pictures)])
    assert dedupe(train, None, 1, 0.4).copies == []


def test_samples_of_val_stay_and_their_copies_in_train_go(tmp_path: Path) -> None:
    leak = encoded(scene(1), quality=90)
    train = opened(tmp_path, t=[("a.jpg", encoded(scene(0))), ("leak.jpg", leak), ("again.jpg", leak)])
    val = opened(tmp_path, v=[("v.jpg", encoded(scene(1), quality=40)), ("w.jpg", encoded(scene(1), quality=35))])
    result = dedupe(train, val, 2, 0.4)
    assert {key: how for key, (how, _) in found(result, train, val).items()} == {
        "leak": "looks the same",
        "again": "same bytes",
    }
    rows = {row.key: row for row in skip_rows(result, train, val)}
    assert "of `v.tar`" in rows["leak"].reason
    assert rows["leak"].member == 1
    assert result.lines()[-1] == "2 of 3 training samples are left out"


def test_no_chain_of_likenesses_leads_away_from_what_stays(tmp_path: Path) -> None:
    """b is like a and like c, but a is not like c: b goes, c stays."""
    a, c = (np.asarray(scene(n), np.float32) for n in (0, 1))
    shares = {"a": 0.0, "b": 0.22, "c": 0.44}
    members = [
        (f"{key}.png", encoded(Image.fromarray(((1 - share) * a + share * c).astype(np.uint8)), "PNG"))
        for key, share in shares.items()
    ]
    train = opened(tmp_path, t=members)
    near = found(dedupe(train, None, 1, 0.4), train)
    assert near == {"b": ("looks the same", "a")}


def test_the_list_is_taken_and_nothing_is_left_to_find(tmp_path: Path) -> None:
    members = [(f"{n}.jpg", encoded(scene(n % 4), quality=60 + n)) for n in range(10)]
    shard, skip = write_tar(tmp_path / "t.tar", members), tmp_path / "skip.json"
    words = ["action=dedupe", f"data={shard}", f"index_dir={tmp_path}/i", f"out={skip}"]
    result = run_script("shards", *words)
    assert result.returncode == 0, result.stderr
    assert "6 of 10 training samples are left out" in result.stdout
    with Image.open(skip.with_suffix(".png")) as picture:
        assert picture.width > 100
    less = open_index([str(shard)], str(tmp_path / "i"), skip=str(skip))
    assert [less.key(0, member) for member in range(less.num_samples)] == ["0", "1", "2", "3"]
    assert dedupe(less, None, 1, 0.4).copies == []
    again = run_script("shards", *words[:3], f"skip={skip}", f"out={tmp_path}/none.json")
    assert "0 of 4 training samples" in again.stdout
    assert json.loads((tmp_path / "none.json").read_text())["shards"] == {}


def test_equal_shards_are_refused_since_a_list_could_not_tell_them_apart(tmp_path: Path) -> None:
    members = [("a.jpg", encoded(scene(0)))]
    with pytest.raises(UserError, match=r"two.tar` holds the same bytes as .*one.tar`: leave one"):
        dedupe(opened(tmp_path, one=members, two=members), None, 1, 0.4)


def test_shards_without_an_image(tmp_path: Path) -> None:
    """Empty ones may be equal; nothing but such is refused."""
    lonely = [("README.txt", b"words")]
    train = opened(tmp_path, one=lonely, two=lonely, three=[("a.jpg", encoded(scene(0)))])
    assert dedupe(train, None, 1, 0.4).copies == []
    for action in ("dedupe", "reshard"):
        words = [f"data={tmp_path}/one.tar", f"index_dir={tmp_path}/i", f"out={tmp_path}/new.json"]
        result = run_script("shards", f"action={action}", *words)
        assert result.returncode == 1
        assert "no image in its 1 shards" in result.stderr
        assert not (tmp_path / "new.json").exists()


def test_what_cannot_be_decoded_is_compared_by_its_bytes(tmp_path: Path) -> None:
    train = opened(tmp_path, t=[("a.jpg", b"none"), ("b.jpg", b"none"), ("c.jpg", b"other"), ("d.jpg", b"")])
    result = dedupe(train, None, 1, 0.4)
    assert found(result, train) == {"b": ("same bytes", "a")}
    assert result.unreadable == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_candidates_are_all_pairs_within_seven_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 63, 600, dtype=np.uint64)
    for copy in range(300, 600):  # up to ten bits away from another
        flips = rng.choice(63, rng.integers(0, 11), replace=False)
        hashes[copy] = hashes[copy - 300] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    hashes[:20] = hashes[0]
    first, second = candidates(hashes)
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = [tuple(pair) for pair in np.argwhere(differing <= BITS).tolist() if pair[0] < pair[1]]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(expected) > 300


def test_few_images_have_no_pairs() -> None:
    for count in (0, 1):
        first, second = candidates(np.zeros(count, np.uint64))
        assert len(first) == len(second) == 0


def test_how_far_apart() -> None:
    grey = np.full((1, 16, 16, 3), 100, np.uint8)
    assert apart(grey, grey)[0] == 0
    assert apart(grey, grey + 1)[0] == pytest.approx(0.25)
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert 1.2 < apart(noise, other)[0] < 1.6


def test_real_photographs_are_all_different_and_their_copies_found(data_dir: Path, tmp_path: Path) -> None:
    shards = [str(path) for path in sorted((data_dir / "photos").glob("*.tar"))]
    photos = open_index(shards, str(tmp_path / "i"))
    samples = Samples(photos)
    chosen = samples.places()[::8]
    images = [Image.open(io.BytesIO(samples.read(shard, samples.image(shard, member)))) for shard, member in chosen]
    copies = []
    for number, image in enumerate(images):
        named = list(people(image.convert("RGB")).items())
        copies += [(f"{number}{name}.jpg", data) for name, data in (named[number % 7], named[(number + 3) % 7])]
    planted = str(write_tar(tmp_path / "copies.tar", copies))
    train = open_index([*shards, planted], str(tmp_path / "i2"))
    result = dedupe(train, None, 2, 0.4)
    gone = {(copy.sample[1:], copy.original[1:]) for copy in result.copies}
    assert gone == {((10, number), chosen[number // 2]) for number in range(2 * len(chosen))}


def test_real_small_images(data_dir: Path, tmp_path: Path) -> None:
    """CIFAR-10 has near duplicates of its own; these were judged by eye."""
    folder = data_dir / "cifar10-mini"
    train = open_index([str(folder / f"train-{number:06d}.tar") for number in (5, 12, 15)], str(tmp_path / "i"))
    assert found(dedupe(train, None, 2, 0.4), train) == {
        "00006309": ("looks the same", "00002696"),
        "00006475": ("looks the same", "00006377"),
        "00007829": ("looks the same", "00002507"),
    }


def test_shards_of_one_colour_images_do_not_all_look_the_same(tmp_path: Path) -> None:
    """The tests' own: what differs by a grey level or two does, what differs more does not."""
    train = open_index(write_shards(tmp_path / "d", [256]), str(tmp_path / "i"))
    kept = 256 - len(dedupe(train, None, 1, 0.4).copies)
    assert kept > 64
