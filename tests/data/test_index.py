"""The index: what it records, where it is kept, when it is built again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest

from pretrain.data import index
from pretrain.data.index import open_index
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_shards, write_tar


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were read from end to end."""
    seen: list[str] = []
    original = index._scan

    def scan(url: str, sidecar: Path) -> index.Shard:
        seen.append(Path(url).name)
        return original(url, sidecar)

    monkeypatch.setattr(index, "_scan", scan)
    return seen


def test_it_says_where_every_member_is(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [3, 2])
    opened = open_index(paths, str(tmp_path / "i"))
    assert opened.counts == [3, 2]
    assert opened.num_samples == 5
    for shard, member, number in [(0, 0, 0), (0, 2, 2), (1, 1, 4)]:
        data = Path(paths[shard]).read_bytes()
        parts = {part.extension: data[part.start : part.stop] for part in opened.parts(shard, member)}
        assert parts == {"png": image_bytes(number), "cls": str(number % 10).encode()}
        assert opened.key(shard, member) == f"{number:05d}"
    assert opened.shards[0].sha256 == hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest()
    assert pickle.loads(pickle.dumps(opened)).key(1, 0) == "00003"


def test_it_is_built_once_and_again_only_for_what_changed(tmp_path: Path, scans: list[str]) -> None:
    paths = write_shards(tmp_path / "d", [3, 2])
    first = open_index(paths, str(tmp_path / "i"))
    assert sorted(scans) == ["s-000000.tar", "s-000001.tar"]
    again = open_index(paths, str(tmp_path / "i"))
    assert len(scans) == 2
    assert again.digest == first.digest
    write_tar(Path(paths[1]), [("x.png", image_bytes(9))])
    changed = open_index(paths, str(tmp_path / "i"))
    assert scans[2:] == ["s-000001.tar"]
    assert changed.counts == [3, 1]
    assert changed.digest != first.digest


def test_a_killed_build_goes_on(tmp_path: Path, scans: list[str]) -> None:
    paths = write_shards(tmp_path / "d", [1, 1, 1])
    open_index(paths, str(tmp_path / "i"))
    folder = next((tmp_path / "i").iterdir())
    (folder / "index.json").unlink()
    next(folder.glob("000002-*.idx")).unlink()
    scans.clear()
    open_index(paths, str(tmp_path / "i"))
    assert scans == ["s-000002.tar"]


def test_moving_the_shards_does_not_change_the_digest(tmp_path: Path) -> None:
    one = open_index(write_shards(tmp_path / "a", [2, 1]), str(tmp_path / "i"))
    other = open_index(write_shards(tmp_path / "b", [2, 1]), str(tmp_path / "i"))
    assert one.digest == other.digest


def test_only_allow_listed_members_are_recorded(tmp_path: Path) -> None:
    members = [("a.png", image_bytes(1)), ("a.pkl", b"evil"), ("a.pyd", b"evil"), ("a.pth", b"evil"), ("a.json", b"{}")]
    members += [("b.pickle", b"evil"), ("dir/.hidden.png", b""), ("noextension", b""), ("c.left.PNG", image_bytes(2))]
    path = write_tar(tmp_path / "t.tar", members)
    opened = open_index([str(path)], str(tmp_path / "i"))
    assert opened.counts == [2]  # b has no image
    assert [part.extension for part in opened.parts(0, 0)] == ["png"]
    assert opened.key(0, 1) == "c"


def test_neighbours_with_one_key_are_one_sample(tmp_path: Path) -> None:
    """WebDataset's rule: a key that comes back later is another sample."""
    members = [("d/a.png", image_bytes(1)), ("d/a.cls", b"3"), ("e/a.png", image_bytes(2)), ("d/a.png", image_bytes(3))]
    opened = open_index([str(write_tar(tmp_path / "t.tar", members))], str(tmp_path / "i"))
    assert [opened.key(0, member) for member in range(3)] == ["d/a", "e/a", "d/a"]


def test_all_damaged_shards_are_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2, 2, 2])
    for path in paths[:2]:
        os.truncate(path, 700)
    with pytest.raises(UserError) as failure:
        open_index(paths, str(tmp_path / "i"))
    assert "s-000000.tar` is no whole tar: it was cut off" in str(failure.value)
    assert "s-000001.tar" in str(failure.value)
    assert "s-000002.tar" not in str(failure.value)


def test_an_index_beside_the_shards_is_used_while_it_fits(tmp_path: Path, scans: list[str]) -> None:
    paths = write_shards(tmp_path / "d", [2, 1])
    shards = [index.scan(path, Path(f"{path}.idx")) for path in paths]
    index.write_index(tmp_path / "d", shards)
    scans.clear()
    assert open_index(paths, str(tmp_path / "i")).counts == [2, 1]
    assert scans == []
    assert not (tmp_path / "i").exists()
    write_tar(Path(paths[0]), [("x.png", image_bytes(9))])
    assert open_index(paths, str(tmp_path / "i")).counts == [1, 1]
    assert scans == ["s-000000.tar"]


def test_an_index_json_of_somebody_else_is_ignored(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2])
    for content in ("not json", json.dumps({"version": 2}), json.dumps({"shards": 3})):
        (tmp_path / "d" / "index.json").write_text(content)
        assert open_index(paths, str(tmp_path / "i")).counts == [2]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the index .* data\.index_dir"):
        open_index(write_shards(tmp_path / "d", [1]), str(tmp_path / "file"))
