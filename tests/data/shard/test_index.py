"""The index: what it records, where it is kept, when it is built again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.shard import index, sidecar
from pretrain.data.shard.index import open_index
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_shards, write_tar


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were read from end to end."""
    seen: list[str] = []
    original = sidecar._scan

    def scan(url: str, *rest: Any) -> Any:
        seen.append(Path(url).name)
        return original(url, *rest)

    monkeypatch.setattr(sidecar, "_scan", scan)
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
    next((tmp_path / "i").glob("*-s-000002.tar.idx")).unlink()
    scans.clear()
    open_index(paths, str(tmp_path / "i"))
    assert scans == ["s-000002.tar"]


def test_moving_the_shards_does_not_change_the_digest(tmp_path: Path) -> None:
    one = open_index(write_shards(tmp_path / "a", [2, 1]), str(tmp_path / "i"))
    other = open_index(write_shards(tmp_path / "b", [2, 1]), str(tmp_path / "i"))
    assert one.digest == other.digest


@pytest.mark.parametrize("prefix", ["data.", ""])
def test_an_index_that_cannot_be_written_is_not_called_a_bad_shard(tmp_path: Path, prefix: str) -> None:
    paths, before = write_shards(tmp_path / "d", [2]), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match=rf"cannot write the index .* by {re.escape(prefix)}index_dir"):
            open_index(paths, str(tmp_path / "i"), prefix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
    shards = [sidecar.scan(path, Path(f"{path}.idx")) for path in paths]
    index.write_index(tmp_path / "d", shards)
    scans.clear()
    assert open_index(paths, str(tmp_path / "i")).counts == [2, 1]
    assert scans == []
    assert not (tmp_path / "i").exists()
    size, modified = os.path.getsize(paths[0]), os.path.getmtime(paths[0])
    write_tar(Path(paths[0]), [("x.png", image_bytes(9))])
    assert os.path.getsize(paths[0]) == size  # tars are padded, so this is common
    os.utime(paths[0], (modified - 100, modified - 100))  # copied over with its own, older time
    assert open_index(paths, str(tmp_path / "i")).counts == [1, 1]
    assert scans == ["s-000000.tar"]


def test_an_index_beside_shards_with_any_name_is_used(tmp_path: Path, scans: list[str]) -> None:
    path = Path(write_shards(tmp_path, [2])[0]).rename(tmp_path / "my set (1).tar")
    index.write_index(tmp_path, [sidecar.scan(str(path), tmp_path / f"{path.name}.idx")])
    scans.clear()
    assert open_index([str(path)], str(tmp_path / "i")).counts == [2]
    assert scans == []


def test_how_many_samples_there_are_is_known_without_reading_once_there_is_an_index(
    tmp_path: Path, scans: list[str]
) -> None:
    paths = write_shards(tmp_path / "d", [2, 1])
    assert index.count_known(paths, str(tmp_path / "i")) is None
    open_index(paths, str(tmp_path / "i"))
    scans.clear()
    assert index.count_known(paths, str(tmp_path / "i")) == 3
    assert scans == []


def test_an_index_json_of_somebody_else_is_ignored(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2])
    for content in (
        "not json",
        json.dumps({"version": 2}),
        json.dumps({"shards": 3}),
        json.dumps({"shards": [{"name": "s-000000.tar"}]}),
    ):
        (tmp_path / "d" / "index.json").write_text(content)
        assert open_index(paths, str(tmp_path / "i")).counts == [2]


@pytest.mark.parametrize("prefix", ["data.", ""])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cannot write the index .* by {re.escape(prefix)}index_dir"):
        open_index(write_shards(tmp_path / "d", [1]), str(tmp_path / "file"), prefix)


@pytest.mark.parametrize("damage", ["cut header", "junk", "huge length", "negative length", "cut keys", "odd types"])
def test_a_damaged_sidecar_is_built_again(tmp_path: Path, scans: list[str], damage: str) -> None:
    paths = write_shards(tmp_path / "d", [3])
    opened = open_index(paths, str(tmp_path / "i"))
    file = opened.shards[0].sidecar
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut header": data[:12],
            "junk": data[:16] + b"?" * (len(data) - 16),
            "huge length": data[:8] + (1 << 62).to_bytes(8, "little") + data[16:],
            "negative length": data[:8] + b"\xff" * 8 + data[16:],
            "cut keys": data[:-3],
            "odd types": data.replace(b'"count": 3', b'"count":"3'),
        }[damage]
    )
    with pytest.raises(UserError, match=r"\.idx` is damaged: delete it, and it is built again"):
        opened.key(0, 2)
    (tmp_path / "i" / "lists").rename(tmp_path / "gone")
    scans.clear()
    assert open_index(paths, str(tmp_path / "i")).key(0, 2) == "00002"
    assert scans == ["s-000000.tar"]
    assert file.read_bytes() == data


def test_an_index_json_of_odd_types_is_ignored(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2])
    index.write_index(tmp_path / "d", [sidecar.scan(paths[0], Path(f"{paths[0]}.idx"))])
    path = tmp_path / "d" / "index.json"
    content = json.loads(path.read_text())
    for odd in ({"sidecar": 5}, {"sha256": 5}, {"name": ["x"]}, {"count": "2"}, {"modified": None}):
        path.write_text(json.dumps(content | {"shards": [content["shards"][0] | odd]}))
        assert open_index(paths, str(tmp_path / "i")).counts == [2], odd
        assert not index.owns_index(tmp_path / "d")
    path.write_text("[" * 100_000)
    assert open_index(paths, str(tmp_path / "i")).counts == [2]
