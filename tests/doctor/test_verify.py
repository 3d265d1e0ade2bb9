"""`action=verify`: everything planted is found, nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.data.module import ShardData
from pretrain.data.shard.index import open_index, write_index
from pretrain.data.shard.sidecar import scan
from pretrain.doctor.verify import Report, verify
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.doctor import damage
from tests.scripts import run_script


def check(*paths: Path | str) -> Report:
    return verify([str(path) for path in paths], 2)


def indexed(folder: Path, counts: list[int]) -> list[Path]:
    """Shards with their index beside them."""
    paths = [Path(path) for path in write_shards(folder, counts)]
    write_index(folder, [scan(str(path), Path(f"{path}.idx")) for path in paths])
    return paths


def causes(report: Report) -> list[tuple[str, str, str]]:
    """(shard, kind, cause) of each finding."""
    return [(Path(one.shard).name, one.kind, one.cause) for one in report.findings]


def test_good_shards_are_well_with_and_without_an_index(tmp_path: Path) -> None:
    for folder in (indexed(tmp_path / "a", [3, 2]), write_shards(tmp_path / "b", [3, 2])):
        report = check(*folder)
        assert report.findings == []
        assert (report.samples, report.shards) == (5, 2)
        assert report.summary().endswith("all is well")


def test_real_photographs_are_well(data_dir: Path) -> None:
    report = check(*sorted((data_dir / "photos").glob("*.tar"))[:3])
    assert (report.samples, report.findings) == (60, [])


def test_a_damage_hides_neither_what_is_behind_it_nor_other_shards(tmp_path: Path) -> None:
    first, second = (Path(path) for path in write_shards(tmp_path, [4, 3]))
    image = damage.header_of(first, "00003.png") + 512
    damage.hit_image(first, "00003.png")
    at = damage.hit_header(first, "00001.png")
    damage.hit_image(second, "00005.png")
    report = check(first, second)
    assert [(Path(one.shard).name, one.kind, one.key, one.byte) for one in report.findings] == [
        ("s-000000.tar", "tar", None, at),
        ("s-000000.tar", "sample", "00001", at + 1536),  # its label is left
        ("s-000000.tar", "image", "00003", image),
        ("s-000001.tar", "image", "00005", 2560),
    ]
    assert f"s-000000.tar: byte {at}: the header at byte {at} is damaged" in report.findings[0].line()
    assert "s-000001.tar: `00005`: cannot be decoded" in report.findings[3].line()


def test_shards_that_were_cut_off(tmp_path: Path) -> None:
    inside, between, empty = (Path(path) for path in write_shards(tmp_path, [3, 3, 3]))
    os.truncate(inside, damage.header_of(inside, "00002.png") + 512 + 20)
    os.truncate(between, damage.header_of(between, "00005.png"))
    os.truncate(empty, 0)
    assert causes(check(inside, between, empty)) == [
        ("s-000000.tar", "tar", "it was cut off inside `00002.png`, which begins at byte 4096"),
        (
            "s-000001.tar",
            "tar",
            "it ends at byte 4096 without the end-of-archive marker, so it was probably cut off",
        ),
        ("s-000002.tar", "tar", "it is empty"),
    ]


def test_samples_labels_and_names(tmp_path: Path) -> None:
    good = image_bytes(1)
    members = [
        ("a.0.jpg", good),
        ("a.1.jpg", good),
        ("b.png", good),
        ("b.cls", b"cat"),
        ("c.png", good),
        ("c.json", b"{"),
        ("d.cls", b"3"),
        ("../e.png", good),
        ("README", b"words"),
        ("f.png", b""),
    ]
    report = check(write_tar(tmp_path / "t.tar", members))
    found = [(one.kind, one.key) for one in report.findings]
    expected = [("name", None), ("sample", "a"), ("label", "b"), ("label", "c"), ("sample", "d"), ("image", "f")]
    assert found == expected
    assert "one sample" in report.findings[1].cause
    assert report.skipped == []  # the index refuses the shard for `a`, so that nothing in it has a number


def test_a_link_is_found_and_what_is_behind_it_read(tmp_path: Path) -> None:
    report = check(damage.with_link(tmp_path / "t.tar"))
    assert [one.kind for one in report.findings] == ["tar"]
    assert "`b.png` is a link" in report.findings[0].cause
    assert report.samples == 2


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    names = ("fine", "bytes", "time", "count", "gone", "other", "broken", "places", "missing")
    paths = dict(zip(names, indexed(tmp_path, [2] * len(names)), strict=True))
    data = bytearray(paths["bytes"].read_bytes())
    data[damage.header_of(paths["bytes"], "00002.cls") + 512] ^= 1  # another label: no structure, no image
    status = os.stat(paths["bytes"])
    paths["bytes"].write_bytes(data)
    os.utime(paths["bytes"], ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(paths["time"], (1, 1))
    rows = json.loads((tmp_path / "index.json").read_text())
    next(row for row in rows["shards"] if row["name"] == paths["count"].name)["count"] = 3
    (tmp_path / "index.json").write_text(json.dumps(rows))
    Path(f"{paths['gone']}.idx").unlink()
    Path(f"{paths['other']}.idx").write_bytes(Path(f"{paths['fine']}.idx").read_bytes())
    Path(f"{paths['broken']}.idx").write_bytes(b"PRTIDX2\n" + bytes(8))
    sidecar = Path(f"{paths['places']}.idx").read_bytes()
    Path(f"{paths['places']}.idx").write_bytes(sidecar[:-1] + b"x")  # the last key
    paths["missing"].unlink()
    report = check(*sorted(tmp_path.glob("*.tar")))
    found = {name: [one.cause for one in report.findings if one.shard == str(path)] for name, path in paths.items()}
    assert found["fine"] == []
    assert {name: len(lines) for name, lines in found.items() if name != "fine"} == dict.fromkeys(names[1:], 1)
    for name, words in {
        "bytes": "is of other bytes: sha256",
        "time": "is stale",
        "count": "says 3 samples, it has 2",
        "gone": "which is not there",
        "other": "is of other bytes",
        "broken": "cannot be read",
        "places": "is wrong about sample 1, `00015`",
        "missing": "is not there",
    }.items():
        assert words in found[name][0], name
    assert len({finding.shard for finding in report.findings}) == 8


def test_bad_images_become_a_skip_list_that_makes_the_shards_well(tmp_path: Path) -> None:
    paths = [Path(path) for path in write_shards(tmp_path / "d", [5, 4])]
    for path, name in ((paths[0], "00001.png"), (paths[0], "00004.png"), (paths[1], "00005.png")):
        damage.hit_image(path, name)
    words = [f"data={tmp_path}/d/*.tar", f"out={tmp_path}/found.json", f"skip={tmp_path}/skip.json"]
    result = run_script("shards", "action=verify", *words)
    assert result.returncode == 1
    assert [row["key"] for row in json.loads((tmp_path / "found.json").read_text())] == ["00001", "00004", "00005"]
    opened = open_index(list(map(str, paths)), str(tmp_path / "i"), skip=str(tmp_path / "skip.json"))
    kept = [opened.key(shard, member) for shard in range(2) for member in range(opened.counts[shard])]
    assert kept == ["00000", "00002", "00003", "00006", "00007", "00008"]


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    report = check(write_tar(tmp_path / "t.tar", [("a\x1b[2J\n.png", b"none")]))
    assert "\x1b" not in report.findings[0].line()
    assert "\n" not in report.findings[0].line()


def test_the_command(tmp_path: Path) -> None:
    """As a person types it, from another folder than the project's."""
    good, bad = indexed(tmp_path / "d", [2, 2])
    scripts = Path(__file__).parents[2] / "scripts" / "shards.py"

    def run(data: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(scripts), "action=verify", data]
        environment = os.environ | {"PYTHONPATH": str(scripts.parents[1])}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run_script("shards", "action=verify", f"data={good}").returncode == 0
    at = damage.hit_header(bad, "00003.png")
    ill = run("data=d/*.tar")
    assert ill.returncode == 1
    lines = ill.stdout.splitlines()
    assert len(lines) == 4  # the header, the label without image, the index of other bytes, the summary
    assert f"s-000001.tar: byte {at}: the header at byte {at} is damaged" in lines[0]


@pytest.mark.parametrize("words", [["data=nothing/*.tar"], ["data=[x.tar]"], []])
def test_what_is_not_there_is_refused(words: list[str]) -> None:
    result = run_script("shards", "action=verify", *words)
    assert result.returncode == 1
    assert "no shard matches" in result.stderr or "data=… is missing" in result.stderr


def test_of_several_images_all_that_a_run_may_take_are_checked(tmp_path: Path) -> None:
    good = image_bytes(1)
    members = [("a.png", good), ("a.jpg", b"none"), ("b.png", good), ("b.tif", b"none"), ("c.left.PNG", b"none")]
    report = check(write_tar(tmp_path / "t.tar", members))
    assert [(one.kind, one.key) for one in report.findings] == [("image", "a"), ("image", "b"), ("image", "c")]


def test_a_shard_that_is_not_local_is_checked_too_and_one_that_fails_is_a_finding(tmp_path: Path) -> None:
    path = Path(write_shards(tmp_path, [3])[0])
    damage.hit_image(path, "00001.png")
    report = check(f"pipe:cat {path}", tmp_path / "gone.tar")
    assert [(one.kind, one.key) for one in report.findings] == [("image", "00001"), ("read", None)]
    assert "No such file" in report.findings[1].cause


def test_hostile_names_write_nothing_when_they_are_checked_indexed_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    shard = damage.hostile(folder / "t.tar")
    before = set(tmp_path.rglob("*"))
    assert [one.kind for one in check(shard).findings] == 3 * ["name"]
    assert set(tmp_path.rglob("*")) == before
    data = ShardData(str(shard), num_workers=0, index_dir=str(folder / "i"))
    (batch,) = data.examples(0, 4, [ViewSpec(8)])
    assert sorted(batch.keys) == ["../../evil", "/abs/evil", "a/../../up", "good"]
    assert {path.relative_to(folder).parts[0] for path in set(tmp_path.rglob("*")) - before} == {"i"}


def test_json_that_is_nested_without_end_is_a_finding(tmp_path: Path) -> None:
    deep = b"[" * 200_000
    shard = write_tar(tmp_path / "t.tar", [("a.png", image_bytes(1)), ("a.json", deep)])
    (tmp_path / "index.json").write_bytes(deep)
    assert [(one.kind, one.key) for one in check(shard).findings] == [("label", "a"), ("index", None)]


@pytest.mark.parametrize(
    ("word", "value"),
    [("sha256", 3), ("sidecar", 3), ("sidecar", None), ("bytes", "3"), ("count", [1]), ("modified", {}), ("name", [1])],
)
def test_an_index_of_odd_values_is_a_finding(tmp_path: Path, word: str, value: object) -> None:
    shard, other = indexed(tmp_path, [2, 2])
    rows = json.loads((tmp_path / "index.json").read_text())
    rows["shards"][0][word] = value
    (tmp_path / "index.json").write_text(json.dumps(rows))
    (finding,) = check(shard, other).findings
    assert (finding.kind, Path(finding.shard).name) == ("index", "index.json")
    assert finding.cause == "is none of ours, or damaged, so it is not used"


def test_a_sample_of_other_bytes_than_its_index_is_not_to_be_indexed_anew(tmp_path: Path) -> None:
    (shard,) = indexed(tmp_path, [2])
    damage.hit_image(shard, "00001.png")
    (advice,) = (one.cause for one in check(shard).findings if one.kind == "index")
    assert "restore the shard" in advice
    assert "beside=true" not in advice
