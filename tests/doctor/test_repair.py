"""`action=repair`: all that is whole is saved, byte by byte."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from pretrain.data.shard.index import open_index
from pretrain.doctor.repair import Repair, distinct, repair
from pretrain.doctor.verify import verify
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.doctor import damage


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def keys(path: Path) -> list[str]:
    return sorted({name.partition(".")[0] for name in members(path)})


def mend(path: Path, out: Path) -> Repair:
    """Repairs a shard, and sees that the copy is well and has the original's bytes, and nothing was changed."""
    before = path.read_bytes()
    result = repair([str(path)], out, 2)
    assert path.read_bytes() == before
    if result.written:
        assert verify([str(out / path.name)], 1).findings == []
        assert open_index([str(out / path.name)]).num_samples == result.kept
    return result


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return Path(write_shards(tmp_path / "d", [8])[0])


def test_a_header(shard: Path, tmp_path: Path) -> None:
    original = members(shard)
    damage.hit_header(shard, "00003.png")
    result = mend(shard, tmp_path / "out")
    assert members(tmp_path / "out" / shard.name) == {
        name: data for name, data in original.items() if not name.startswith("00003")
    }
    assert [one.kind for one in result.lost] == ["tar", "sample"]


def test_the_header_of_a_label_takes_its_image_along(shard: Path, tmp_path: Path) -> None:
    """The image is whole, but to keep it would be to make an unlabelled sample of a labelled one."""
    damage.hit_header(shard, "00003.cls")
    result = mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / shard.name) == [f"{n:05d}" for n in (0, 1, 2, 4, 5, 6, 7)]
    assert "without cls" in result.lost[1].cause


@pytest.mark.parametrize("size", [100, 512, 1100, 3 * 512 + 77, 2500])
def test_bytes_that_are_gone(shard: Path, tmp_path: Path, size: int) -> None:
    """Behind them headers lie at other bytes, multiples of 512 or not."""
    at = damage.header_of(shard, "00003.png") + 512 + 30
    damage.cut_out(shard, at, size)
    mend(shard, tmp_path / "out")
    found = keys(tmp_path / "out" / shard.name)
    gone = {"00003", "00004"} if size > 1500 else {"00003"}
    assert set(found) == {f"{number:05d}" for number in range(8)} - gone


def test_bytes_that_are_gone_inside_a_large_member(tmp_path: Path) -> None:
    """Its size then takes in the members behind it: they are found all the same."""
    large = image_bytes(7, (300, 300), "BMP")  # 270 kB
    shard = write_tar(
        tmp_path / "t.tar", [("a.bmp", image_bytes(1)), ("b.bmp", large), ("c.bmp", image_bytes(2)), ("d.png", large)]
    )
    damage.cut_out(shard, damage.header_of(shard, "b.bmp") + 5000, 1024)
    result = mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / "t.tar") == ["a", "c", "d"]
    assert any("`b.bmp` has lost bytes" in one.cause for one in result.lost)


def test_a_block_of_other_bytes_over_two_samples(shard: Path, tmp_path: Path) -> None:
    data = bytearray(shard.read_bytes())
    start = damage.header_of(shard, "00002.png") + 600
    stop = damage.header_of(shard, "00004.png") + 10
    data[start:stop] = bytes(range(256)) * ((stop - start) // 256) + bytes((stop - start) % 256)
    shard.write_bytes(data)
    mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / shard.name) == [f"{n:05d}" for n in (0, 1, 5, 6, 7)]


def test_images_that_cannot_be_decoded_and_a_cut_end(shard: Path, tmp_path: Path) -> None:
    damage.hit_image(shard, "00001.png")
    os.truncate(shard, damage.header_of(shard, "00006.png") + 512 + 20)
    mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / shard.name) == [f"{n:05d}" for n in (0, 2, 3, 4, 5)]


def test_a_sample_that_is_several_and_a_link(tmp_path: Path) -> None:
    good = image_bytes(1)
    shard = write_tar(tmp_path / "t.tar", [("a.0.png", good), ("a.1.png", good), ("b.png", good), ("b.txt", b"x")])
    mend(shard, tmp_path / "out")
    assert members(tmp_path / "out" / "t.tar") == {"b.png": good, "b.txt": b"x"}
    link = damage.with_link(tmp_path / "link.tar")
    mend(link, tmp_path / "out")
    assert keys(tmp_path / "out" / "link.tar") == ["a", "c"]
    assert {row["name"] for row in json.loads((tmp_path / "out" / "index.json").read_text())["shards"]} == {
        "t.tar",
        "link.tar",
    }


def test_only_damaged_shards_are_copied(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2, 2, 2])
    damage.hit_image(Path(paths[1]), "00002.png")
    damage.hit_image(Path(paths[2]), "00005.png")
    damage.hit_header(Path(paths[2]), "00004.png")
    result = repair(paths, tmp_path / "out", 2)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["s-000001.tar"]
    assert (result.whole, result.kept, result.empty) == (1, 1, [paths[2]])


def test_nothing_is_overwritten(shard: Path, tmp_path: Path) -> None:
    damage.hit_image(shard, "00001.png")
    with pytest.raises(UserError, match="already holds"):
        repair([str(shard)], shard.parent, 1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text('{"shards": 3}')
    with pytest.raises(UserError, match="not one of ours"):
        repair([str(shard)], tmp_path / "foreign", 1)


def test_names_that_lead_out_of_a_folder_write_nothing_there_and_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shard = damage.hostile(tmp_path / "deep" / "er" / "t.tar")
    before = set(tmp_path.rglob("*"))
    mend(shard, tmp_path / "deep" / "out")
    written = {path.relative_to(tmp_path).parts[:2] for path in set(tmp_path.rglob("*")) - before}
    assert written == {("deep", "out")}
    assert not Path("/abs").exists()
    assert list(members(tmp_path / "deep" / "out" / "t.tar")) == ["evil.png", "abs/evil.png", "a/up.png", "good.png"]


def test_neighbours_stay_two_samples_when_their_keys_are_made_safe() -> None:
    assert list(distinct(["../a", "a", "./a", "b", "..", "/"])) == ["a", "a-2", "a", "b", "sample", "sample-2"]


def test_the_lost_body_of_a_label_is_not_taken_from_the_next_header(tmp_path: Path) -> None:
    """A label then would begin with the next member's name: "00004.png" reads as 0. Few samples here have a label."""
    numbers = range(8)
    parts = [[(f"{n:05d}.png", image_bytes(n))] + [(f"{n:05d}.cls", b"7")] * (n == 3) for n in numbers]
    shard = write_tar(tmp_path / "t.tar", [part for sample in parts for part in sample])
    damage.cut_out(shard, damage.header_of(shard, "00003.cls") + 512, 512)
    mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / "t.tar") == [f"{n:05d}" for n in numbers if n != 3]


def test_other_bytes_than_zeros_behind_a_member_cost_its_sample(shard: Path, tmp_path: Path) -> None:
    """Its end has moved: what stands there are bytes of its own."""
    at = damage.header_of(shard, "00002.cls") + 512
    data = shard.read_bytes()
    shard.write_bytes(data[:at] + b"1" + data[at : at + 511] + data[at + 512 :])
    result = mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / shard.name) == [f"{n:05d}" for n in (0, 1, 3, 4, 5, 6, 7)]
    assert "behind it are other bytes than zeros" in result.lost[0].cause


@pytest.mark.parametrize(
    ("first", "behind", "gone"),
    [("00003.cls", "00004.png", {3}), ("00003.png", "00004.png", {3}), ("00000.png", "00001.png", {0})],
)
def test_zeros_in_the_midst(shard: Path, tmp_path: Path, first: str, behind: str, gone: set[int]) -> None:
    data = bytearray(shard.read_bytes())
    start, stop = damage.header_of(shard, first), damage.header_of(shard, behind)
    data[start:stop] = bytes(stop - start)
    shard.write_bytes(data)
    assert (
        verify([str(shard)], 1)
        .findings[0]
        .line()
        .endswith(f"byte {start}: zeros at byte {start}, where other readers stop, and more behind them")
    )
    mend(shard, tmp_path / "out")
    assert keys(tmp_path / "out" / shard.name) == [f"{n:05d}" for n in range(8) if n not in gone]


def test_of_an_archive_behind_another_nothing_is_lost(shard: Path, tmp_path: Path) -> None:
    other = Path(write_shards(tmp_path / "e", [3])[0])
    twice = tmp_path / "t.tar"
    twice.write_bytes(shard.read_bytes() + other.read_bytes())
    result = mend(twice, tmp_path / "out")
    assert (result.kept, len(result.lost)) == (11, 1)


def test_samples_whose_members_do_not_stand_together(tmp_path: Path) -> None:
    """Whole samples of one key are none such."""
    good = image_bytes(1)
    members_of = [("a.png", good), ("b.png", good), ("a.json", b"{}"), ("b.json", b"{}"), ("c.json", b"{}")]
    members_of += [("d.png", good), ("e.png", good), ("d.png", good)]
    shard = write_tar(tmp_path / "t.tar", members_of)
    found = [(one.kind, one.key) for one in verify([str(shard)], 1).findings]
    assert found == [("sample", key) for key in "ababc"]
    mend(shard, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "t.tar") as tar:
        assert tar.getnames() == ["d.png", "e.png", "d.png"]


def test_files_that_are_part_of_no_sample_stay(tmp_path: Path) -> None:
    files = [("README", b"words"), ("a.png", image_bytes(1)), ("b.png", b"none"), ("d/LICENCE", b""), ("../evil", b"")]
    result = mend(write_tar(tmp_path / "t.tar", files), tmp_path / "out")
    assert members(tmp_path / "out" / "t.tar") == {"a.png": image_bytes(1), "README": b"words", "d/LICENCE": b""}
    assert [(one.kind, one.key) for one in result.lost] == [("image", "b"), ("name", None)]
