"""`action=stats` and `action=index`."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.data.shard.index import open_index
from pretrain.data.store.source import Reader
from pretrain.doctor.stats import stats
from pretrain.doctor.verify import verify
from tests.data.shards import write_shards, write_tar
from tests.doctor import damage
from tests.doctor.photos import encoded, scene
from tests.scripts import run_script


def test_what_shards_hold(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    array = io.BytesIO()
    np.save(array, np.zeros((5, 7, 4), np.uint16))
    members = [
        ("a.jpg", encoded(scene(0, (30, 60)), exif=turned)),
        ("a.cls", b"3"),
        ("b.png", encoded(scene(0, (40, 20)).convert("L"), "PNG")),
        ("b.cls", b"3"),
        ("c.gif", encoded(Image.new("P", (10, 10)), "GIF")),
        ("c.cls", b"dog"),
        ("d.npy", array.getvalue()),
        ("d.cls", b"1"),
        ("e.jpg", b"none"),
    ]
    shard = write_tar(tmp_path / "t.tar", members)
    result = run_script("shards", "action=stats", f"data={shard}", f"index_dir={tmp_path}/i", f"out={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (numbers["samples"], numbers["shards"], numbers["bytes"]) == (5, 1, shard.stat().st_size)
    quantities, counts = numbers["quantities"], numbers["counts"]
    assert counts["format"] == {"GIF": 1, "JPEG": 1, "NPY": 1, "PNG": 1}
    assert counts["mode"] == {"L": 1, "P": 1, "RGB": 1, "uint16×4": 1}
    assert counts["class"] == {"1": 1, "3": 2}
    assert counts["turned by EXIF"] == {"6": 1}
    assert counts["unreadable"] == {"jpg": 1}
    assert (quantities["width"]["least"], quantities["width"]["greatest"]) == (7, 60)
    assert (quantities["short side"]["least"], quantities["short side"]["greatest"]) == (5, 30)
    assert quantities["aspect"]["greatest"] == 2
    assert quantities["bytes"]["greatest"] == max(len(data) for name, data in members[:7])
    with Image.open(tmp_path / "out" / "stats.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert "short side" in result.stdout


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    members = [(f"{n}.png", encoded(Image.fromarray(noise), "PNG")) for n in range(3)]
    index = open_index([str(write_tar(tmp_path / "t.tar", members))], str(tmp_path / "i"))
    original, read = Reader.read, []

    def counted(self: Reader, shard: str, start: int, stop: int, size: int) -> bytes:
        read.append(stop - start)
        return original(self, shard, start, stop, size)

    monkeypatch.setattr(Reader, "read", counted)
    found: Any = stats(index, 1).numbers()
    assert found["quantities"]["width"]["median"] == 600
    assert sum(read) < 0.1 * sum(len(data) for _, data in members)


def test_an_empty_kind_is_no_trouble(tmp_path: Path) -> None:
    index = open_index([str(write_tar(tmp_path / "t.tar", [("a.jpg", b"none")]))], str(tmp_path / "i"))
    found = stats(index, 1)
    found.write(tmp_path / "out")
    assert found.numbers()["counts"]["unreadable"] == {"jpg": 1}
    assert len(found.lines()) > 3


def test_the_index_is_built_beside_the_shards(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [3, 2])
    first = run_script("shards", "action=index", f"data={tmp_path}/d", f"index_dir={tmp_path}/i")
    assert first.stdout == f"5 samples in 2 shards, digest {open_index(paths, str(tmp_path / 'i')).digest}\n"
    assert not (tmp_path / "d" / "index.json").exists()
    beside = run_script("shards", "action=index", f"data={tmp_path}/d", "beside=true")
    assert beside.stdout == first.stdout
    assert open_index(paths, str(tmp_path / "unused")).counts == [3, 2]
    assert not (tmp_path / "unused").exists()
    os.utime(paths[0], (5, 5))
    assert len(verify(paths, 1).findings) == 1
    assert run_script("shards", "action=index", f"data={tmp_path}/d", "beside=true").returncode == 0
    assert verify(paths, 1).findings == []


def test_an_index_that_cannot_be_beside_is_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [2, 2])
    (tmp_path / "d" / "index.json").write_text('{"shards": 1}')
    assert "not one of ours" in run_script("shards", "action=index", f"data={tmp_path}/d", "beside=true").stderr
    (tmp_path / "d" / "index.json").unlink()
    damage.hit_header(Path(paths[1]), "00002.png")
    refused = run_script("shards", "action=index", f"data={tmp_path}/d", "beside=true")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "s-000001.tar` is no whole tar" in refused.stderr
    assert not (tmp_path / "d" / "index.json").exists()
    remote = run_script("shards", "action=index", "data=https://localhost/t.tar", "beside=true")
    assert "only local shards" in remote.stderr
