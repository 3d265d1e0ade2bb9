"""Members of a tar become samples by WebDataset's rule, and of each the image and the label are recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.shard.index import open_index
from pretrain.data.shard.sample import IMAGES
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_tar


def test_only_allow_listed_members_are_recorded(tmp_path: Path) -> None:
    members = [("a.png", image_bytes(1)), ("a.pkl", b"evil"), ("a.pyd", b"evil"), ("a.pth", b"evil"), ("a.json", b"{}")]
    members += [("b.pickle", b"evil"), ("dir/.hidden.png", b""), ("noextension", b""), ("c.left.PNG", image_bytes(2))]
    path = write_tar(tmp_path / "t.tar", members)
    opened = open_index([str(path)], str(tmp_path / "i"))
    assert opened.counts == [2]  # b has no image
    assert [part.extension for part in opened.parts(0, 0)] == ["png", "json"]
    assert opened.key(0, 1) == "c"


def test_neighbours_with_one_key_are_one_sample(tmp_path: Path) -> None:
    """WebDataset's rule: a key that comes back later is another sample."""
    members = [("d/a.png", image_bytes(1)), ("d/a.cls", b"3"), ("e/a.png", image_bytes(2)), ("d/a.png", image_bytes(3))]
    opened = open_index([str(write_tar(tmp_path / "t.tar", members))], str(tmp_path / "i"))
    assert [opened.key(0, member) for member in range(3)] == ["d/a", "e/a", "d/a"]


def test_the_image_of_a_sample_is_the_one_without_further_dots(tmp_path: Path) -> None:
    members = [("a.seg.jpg", b"mask"), ("a.jpg", b"image"), ("b.png", b"image"), ("b.mask.png", b"mask")]
    members += [("IMG.2020.jpg", b"image"), ("IMG.2020.txt", b"words"), ("d.jpg", b"image"), ("d.png", b"mask")]
    path = write_tar(tmp_path / "t.tar", members)
    opened, data = open_index([str(path)], str(tmp_path / "i")), path.read_bytes()
    assert opened.counts == [4]
    for member in range(4):
        first = min(opened.parts(0, member), key=lambda part: IMAGES.index(part.extension))
        assert data[first.start : first.stop] == b"image"


@pytest.mark.parametrize(
    "names", [["n1.0.jpg", "n1.1.jpg"], ["a.jpg", "a.JPG"], ["a.jpg", "a.cls", "a.cls"], ["a.l.jpg", "a.r.png"]]
)
def test_samples_that_cannot_be_told_apart_are_refused_by_name(tmp_path: Path, names: list[str]) -> None:
    path = write_tar(tmp_path / "t.tar", [(name, b"1") for name in names])
    with pytest.raises(UserError, match=rf"t\.tar`: .*`{names[-1]}` are one sample"):
        open_index([str(path)], str(tmp_path / "i"))
