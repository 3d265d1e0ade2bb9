"""Scenes of handwritten digits: drawn the same every time, inside the image, visible, split by digit."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from numpy.typing import NDArray
from sklearn.utils import Bunch

from pretrain.data.pack.digits import scene
from tests.scripts import run_script

DIGITS = sklearn.datasets.load_digits()


def draw(number: int, seed: int = 0, side: int = 32) -> NDArray[np.uint8]:
    return scene(DIGITS.images[number], np.random.default_rng([seed, number]), side)


def plain_ground(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pretrain.data.pack.digits._NOISE", 0.0)
    patch.setattr("pretrain.data.pack.digits._TEXTURE", (0.0, 0.0))


def white_on_black(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "pretrain.data.pack.digits._colour", lambda rng, luminance: np.full(3, float(luminance > 0.5), np.float32)
    )


def test_a_scene_is_a_function_of_its_random_numbers() -> None:
    one, same, other = draw(3), draw(3), draw(3, seed=1)
    assert one.shape == (32, 32, 3)
    assert one.dtype == np.uint8
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize("side", [16, 32, 48])
def test_the_digit_is_wholly_inside_and_moves_to_every_border(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_ground(monkeypatch)
    white_on_black(monkeypatch)
    monkeypatch.setattr("pretrain.data.pack.digits._COPIES", 1)
    borders = set()
    for seed in range(300):
        picture = scene(np.full((8, 8), 16.0), np.random.default_rng(seed), side)[..., 0]
        rows, columns = np.nonzero(picture)
        (top, left), (bottom, right) = (rows[0], columns[0]), (rows[-1], columns[-1])
        assert (picture[top : bottom + 1, left : right + 1] == 255).all()  # a square of ink stays whole
        assert 0.25 * side - 0.5 <= bottom - top + 1 <= 0.33 * side + 0.5
        assert 0.2 * side - 0.5 <= right - left + 1 <= 0.38 * side + 0.5
        borders |= {
            ("top", top == 0),
            ("left", left == 0),
            ("bottom", bottom == side - 1),
            ("right", right == side - 1),
        }
    assert len(borders) == 8


def test_copies_keep_out_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of ink: as many pixels as their areas make together, and nearly always as many as are asked for."""
    plain_ground(monkeypatch)
    white_on_black(monkeypatch)
    monkeypatch.setattr("pretrain.data.pack.digits._HEIGHT", (0.25, 0.25))
    monkeypatch.setattr("pretrain.data.pack.digits._ASPECT", (1.0, 1.0))
    monkeypatch.setattr("pretrain.data.pack.digits._COPIES", 4)
    inks = [(scene(np.full((8, 8), 16.0), np.random.default_rng(n)) == 255).all(-1).sum() for n in range(50)]
    assert {int(ink) % 64 for ink in inks} == {0}
    assert np.mean(inks) > 3.5 * 64


def test_ink_is_lighter_than_its_ground_whatever_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [draw(number).astype(float) / 255 for number in range(80)]
    plain_ground(monkeypatch)
    colours = set()
    for number, picture in enumerate(noisy):
        clean = draw(number).astype(float) / 255  # of the same random numbers
        luminance = clean @ np.array([0.299, 0.587, 0.114])
        assert luminance.min() == pytest.approx(0.2, abs=0.01)
        assert 0.6 < luminance.max() < 0.76
        ground = clean[luminance < 0.21].mean(0)
        colours.add(int(ground.argmax()))
        assert 0.02 < (picture - clean).std() < 0.12
    assert colours == {0, 1, 2}  # reddish, greenish, bluish


def test_colours_and_places_hide_the_digit_from_raw_pixels() -> None:
    """1-nearest-neighbour of centred pixels: nearly all of the plain digits are right, few of the scenes."""
    labels = DIGITS.target[:700]

    def nearest_is_right(pixels: NDArray[np.floating]) -> float:
        flat = pixels.reshape(len(pixels), -1)
        flat = flat - flat.mean(0)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        similarity = flat @ flat.T
        np.fill_diagonal(similarity, -1)
        return float((labels[similarity.argmax(1)] == labels).mean())

    assert nearest_is_right(DIGITS.images[: len(labels)]) > 0.95
    assert nearest_is_right(np.stack([draw(number) for number in range(len(labels))]).astype(float)) < 0.25


def members(folder: Path, name: str) -> dict[str, bytes]:
    """Member → content, of all shards of that name."""
    found = {}
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def test_the_script_writes_each_digit_several_times_on_one_side_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Bunch(images=DIGITS.images[:40], target=DIGITS.target[:40])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    for name, words in {"plain": [], "a": ["scenes=true", "repeats=3"], "b": ["scenes=true", "repeats=3"]}.items():
        assert run_script("make_digits", f"out={tmp_path / name}", "val_samples=10", *words).returncode == 0
    for name, count in {"train": 30, "val": 10}.items():
        plain, scenes = members(tmp_path / "plain", name), members(tmp_path / "a", name)
        numbers = {Path(member).stem for member in plain}
        assert len(numbers) == count
        assert Counter(Path(member).stem.partition("-")[0] for member in scenes) == dict.fromkeys(
            numbers, 6
        )  # png, cls
        assert len({content for member, content in scenes.items() if member.endswith(".png")}) == 3 * count
        for member, content in scenes.items():
            if member.endswith(".cls"):
                assert int(content) == few.target[int(member.partition("-")[0])]
        assert scenes == members(tmp_path / "b", name)
    assert not set(members(tmp_path / "a", "train")) & set(members(tmp_path / "a", "val"))


def test_digits_made_otherwise_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Bunch(images=DIGITS.images[:20], target=DIGITS.target[:20])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    words = [f"out={tmp_path}", "val_samples=5"]
    assert run_script("make_digits", *words).returncode == 0
    before = members(tmp_path, "train")
    other = run_script("make_digits", *words, "scenes=true")
    assert other.returncode == 1
    assert "holds digits that were made with scenes=False. Give another folder" in other.stderr
    (tmp_path / "digits.json").unlink()
    assert "with arguments that are not known" in run_script("make_digits", *words).stderr
    assert members(tmp_path, "train") == before


def test_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    result = run_script("make_digits", f"out={tmp_path / 'out'}", "scenes=true", "repeats=0")
    assert result.returncode == 1
    assert "repeats=0 must be at least 1" in result.stderr
