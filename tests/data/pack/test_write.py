"""A folder of images becomes shards with an index, whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from pretrain.data.pack.gather import gather
from pretrain.data.pack.write import write_sets
from pretrain.data.shard import crew
from pretrain.data.shard.index import open_index
from pretrain.files import replace_folder
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_tar
from tests.scripts import FOLDER, run_script


def folder_of(images: dict[str, int], path: Path) -> Path:
    for name, number in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(image_bytes(number))
    return path


def make_shards(*words: str) -> subprocess.CompletedProcess[str]:
    return run_script("make_shards", *words)


def read(paths: list[Path]) -> list[dict[str, bytes]]:
    """The samples as the webdataset library reads them."""
    return list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))


def test_class_folders_become_labelled_shards_that_webdataset_reads(tmp_path: Path) -> None:
    names = {
        f"{kind}/{number}.png": 10 * row + number for row, kind in enumerate(("cat", "dog")) for number in range(5)
    }
    images, out = folder_of(names, tmp_path / "images"), tmp_path / "out"
    (images / "cat" / "notes.txt").write_text("no image")
    result = make_shards(f"images={images}", f"out={out}", "samples_per_shard=4")
    assert result.returncode == 0, result.stderr
    assert "10 images of 2 classes in 3 shards; 1 files that are no images were left out" in result.stdout
    paths = sorted(out.glob("*.tar"))
    assert [path.name for path in paths] == [f"train-{number:06d}.tar" for number in range(3)]
    samples = read(paths)
    assert sorted((sample["png"], sample["cls"]) for sample in samples) == sorted(
        (image_bytes(number), b"0" if name.startswith("cat") else b"1") for name, number in names.items()
    )
    assert len({sample["__key__"] for sample in samples}) == 10
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]
    rows = json.loads((out / "index.json").read_text())["shards"]
    assert [(row["name"], row["count"], row["bytes"]) for row in rows] == [
        (path.name, count, path.stat().st_size) for path, count in zip(paths, (4, 4, 2), strict=True)
    ]


def test_the_index_beside_the_shards_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder_of({f"{number}.png": number for number in range(5)}, tmp_path / "images")
    assert make_shards(f"images={images}", f"out={tmp_path / 'out'}", "samples_per_shard=2").returncode == 0
    monkeypatch.setattr(crew, "scan", None)  # it would be an error to read the shards again
    found = open_index([str(path) for path in sorted((tmp_path / "out").glob("*.tar"))], str(tmp_path / "unused"))
    assert found.counts == [2, 2, 1]
    assert not (tmp_path / "unused").exists()
    assert all(len(found.parts(0, member)) == 1 for member in range(2))  # a flat folder has no labels


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    images = folder_of({f"{number:02d}.png": number for number in range(20)}, tmp_path / "images")
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert make_shards(f"images={images}", f"out={tmp_path / out}", f"seed={seed}").returncode == 0
    a, b, c = ((tmp_path / out / "train-000000.tar").read_bytes() for out in "abc")
    assert a == b
    assert a != c
    assert [sample["png"] for sample in read([tmp_path / "a" / "train-000000.tar"])] != [
        image_bytes(number) for number in range(20)
    ]


def test_classes_keep_their_numbers_in_every_set(tmp_path: Path) -> None:
    train = folder_of({"cat/0.png": 0, "dog/1.png": 1}, tmp_path / "train")
    val = folder_of({"dog/2.png": 2}, tmp_path / "val")
    more = folder_of({"eel/3.png": 3}, tmp_path / "more")
    out = tmp_path / "out"
    assert make_shards(f"images={train}", f"out={out}").returncode == 0
    assert make_shards(f"images={val}", f"out={out}", "name=val").returncode == 0
    assert [sample["cls"] for sample in read([out / "val-000000.tar"])] == [b"1"]
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]
    unknown = make_shards(f"images={more}", f"out={out}", "name=more")
    assert unknown.returncode == 1
    assert "does not know the classes eel" in unknown.stderr


def test_linked_folders_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
    real = folder_of({"owl/0.png": 0, "cat/1.png": 1}, tmp_path / "real")
    images = folder_of({".hid/2.png": 2, "bat/3.png": 3, "bat/.checkpoints/4.png": 4}, tmp_path / "images")
    (images / "owl").symlink_to(real / "owl")
    (images / "bat" / "loop").symlink_to(images)
    assert make_shards(f"images={images}", f"out={tmp_path / 'out'}").returncode == 0
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["bat", "owl"]
    samples = read([tmp_path / "out" / "train-000000.tar"])
    assert sorted((sample["png"], sample["cls"]) for sample in samples) == sorted(
        [(image_bytes(3), b"0"), (image_bytes(0), b"1")]
    )


def test_digits_go_on_where_they_were_interrupted(tmp_path: Path) -> None:
    assert run_script("make_digits", f"out={tmp_path}").returncode == 0
    for path in tmp_path.glob("train-*"):
        path.unlink()
    again = run_script("make_digits", f"out={tmp_path}")
    assert "val-*.tar are already there" in again.stdout
    assert open_index([str(path) for path in sorted(tmp_path.glob("*.tar"))]).num_samples == 1797


def test_mistakes_are_said_and_nothing_is_written(tmp_path: Path) -> None:
    mixed = folder_of({"a/0.png": 0, "1.png": 1}, tmp_path / "mixed")
    good = folder_of({"0.png": 0}, tmp_path / "good")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for words, message in [
        ([f"images={tmp_path / 'nope'}"], "there is no such folder"),
        ([f"images={tmp_path / 'empty'}"], "there is no image in it"),
        ([f"images={mixed}"], "images beside class folders"),
        ([f"images={good}", "samples_per_shard=0"], "must be at least 1"),
        ([f"images={good}", "name=a/b"], "must be letters, digits"),
        ([f"images={good}", "samples_per_shart=9"], "did you mean samples_per_shard?"),
        ([], "images=… is missing"),
    ]:
        result = make_shards(f"out={out}", *words)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not out.exists()
    assert make_shards().returncode == 2
    assert "pretrain shards images=" in make_shards("--help").stdout


def test_shards_that_are_there_are_never_overwritten(tmp_path: Path) -> None:
    images = folder_of({"0.png": 0}, tmp_path / "images")
    assert make_shards(f"images={images}", f"out={tmp_path / 'out'}").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = make_shards(f"images={images}", f"out={tmp_path / 'out'}")
    assert again.returncode == 1
    assert "it already holds 1 shards, first train-000000.tar; choose another folder" in again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_second_set_joins_the_index_of_the_first(tmp_path: Path) -> None:
    for name in ("train", "val"):
        images = folder_of({"0.png": 0, "1.png": 1}, tmp_path / name)
        assert make_shards(f"images={images}", f"out={tmp_path / 'out'}", f"name={name}").returncode == 0
    rows = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert [row["name"] for row in rows] == ["train-000000.tar", "val-000000.tar"]


# The script, which hangs when it comes to the fifth shard's first image.
HANGS = """
    import runpy, sys, time
    from pretrain.data.pack import write
    whole = write._write_tar
    def held(path, keys, load):
        hangs = path.name >= "train-000004"
        whole(path, keys, lambda item: (time.sleep(6000 * hangs), load(item))[1])
    write._write_tar = held
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_it_leaves_no_shard_that_looks_whole_and_goes_on(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(40):
        Image.effect_noise((60, 60), 80).save(images / f"{number}.png")
    words = [f"images={images}", f"out={out}", "samples_per_shard=5"]
    command = [sys.executable, "-c", textwrap.dedent(HANGS), str(FOLDER / "make_shards.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob(".train-*4.tar.tmp")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = sorted(out.glob("train-*.tar"))
    assert len(whole) < 8
    assert not (out / "index.json").exists()
    assert all(len(read([path])) == 5 for path in whole)
    if whole:  # another call is no continuation
        assert make_shards(f"images={images}", f"out={out}", "samples_per_shard=4").returncode == 1
    result = make_shards(*words)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["index.json", *(f"train-{number:06d}.tar{end}" for number in range(8) for end in ("", ".idx"))]
    )
    assert len(read(sorted(out.glob("train-*.tar")))) == 40


# The script, which is killed when all of the named file is written, under its other name.
DIES = """
    import os, runpy, signal, sys
    from pathlib import Path
    replace, name = os.replace, sys.argv[1]
    def kill(partial, path):
        if Path(path).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(partial, path)
    os.replace = kill
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "name", [".train.writing", "classes.json", "train-000001.tar", "train-000001.tar.idx", "index.json"]
)
def test_killed_before_it_renames_a_file_it_leaves_none_of_its_own_for_good(tmp_path: Path, name: str) -> None:
    images = folder_of({f"{kind}/{number}.png": number for kind in "ab" for number in range(3)}, tmp_path / "images")
    out, words = tmp_path / "out", [f"images={images}", f"out={tmp_path / 'out'}", "samples_per_shard=2"]
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(DIES), name, str(FOLDER / "make_shards.py"), *words])
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in out.iterdir() if path.suffix == ".tmp" and name in path.name]  # it died where it was to
    theirs = [out / "notes.tmp", out / f"{name}.0123456789ab.tmp"]
    for path in theirs:
        path.write_text("somebody's")

    def go_on(partial: Path) -> None:
        result = make_shards(*words)
        assert result.returncode == 0, result.stderr
        assert partial.is_dir()

    replace_folder(out / "other", go_on)  # it is being written by this process, which lives
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["classes.json", "index.json", "other", *(path.name for path in theirs)]
        + [f"train-{number:06d}.tar{end}" for number in range(3) for end in ("", ".idx")]
    )


def test_a_failure_leaves_no_half_shard(tmp_path: Path) -> None:
    def load(number: int) -> dict[str, bytes]:
        if number == 3:
            raise OSError("gone")
        return {"png": image_bytes(number)}

    keys = [(str(number), number) for number in range(6)]
    with pytest.raises(OSError, match="gone"):
        write_sets(tmp_path, {"train": keys}, load, 2)
    assert {path.name for path in tmp_path.glob("train-*.tar")} <= {"train-000000.tar", "train-000002.tar"}
    assert not (tmp_path / "index.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))
    write_sets(tmp_path, {"train": keys}, lambda number: {"png": image_bytes(number)}, 2)
    assert open_index([str(path) for path in sorted(tmp_path.glob("*.tar"))]).counts == [2, 2, 2]


def test_an_index_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"theirs": 1}')
    with pytest.raises(UserError, match="is not one of ours"):
        write_sets(tmp_path, {"train": [("0", 0)]}, lambda number: {"png": image_bytes(number)}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_another_call_does_not_touch_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="already holds 1 shards"):
        write_sets(tmp_path, {"train": [("0", 0)]}, lambda number: {"png": image_bytes(number)}, 1)
    assert (tmp_path / "train-000000.tar").read_bytes() == b"somebody's"


def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    images = folder_of({"n01/0.png": 0, "n02/1.png": 1}, tmp_path / "images")
    write_tar(images / "n03.tar", [("2.png", image_bytes(2))])
    with pytest.raises(UserError, match=r"`n03\.tar`.*`n0[12]/\d.png`"):
        gather(images)
    plain = folder_of({"0.png": 0}, tmp_path / "plain")
    for out in (plain, plain / "shards"):
        refused = make_shards(f"images={plain}", f"out={out}")
        assert refused.returncode == 1
        assert f"out={out}: lies in `{plain}`" in refused.stderr
    assert sorted(path.name for path in plain.iterdir()) == ["0.png"]
    both = make_shards(f"images={plain}", f"imagenet={plain}", f"out={tmp_path / 'out'}")
    assert "not both" in both.stderr


def test_the_class_of_a_member_is_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    names = ["n01/0.png", "n01/../n02/1.png", "n01/x/../2.png", "./n03/./3.png"]
    path = write_tar(tmp_path / "a.tar", [(name, image_bytes(0)) for name in names])
    assert [picture.label for picture in gather(path).pictures] == ["n01", "n02", "n01", "n03"]
    path = write_tar(tmp_path / "b.tar", [("n01/../0.png", image_bytes(0))])
    assert [picture.label for picture in gather(path).pictures] == [None]


def test_a_size_beyond_the_archive_is_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("n01/0.png", image_bytes(0))])
    data = bytearray(path.read_bytes())
    data[124:136] = (0x80 << 88 | 1 << 70).to_bytes(12, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar` is no whole tar"):
        gather(path)
