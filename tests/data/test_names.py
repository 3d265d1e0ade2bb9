"""Members of a tar are read where they lie: their names lead nowhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pretrain.data.module import ShardData
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_tar


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_absolute_and_climbing_names_write_nothing_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    names = [
        f"{tmp_path}/absolute/a",
        "../climbing/b",
        "../../climbing/c",
        f"/..{tmp_path}/d",
        "./e",
        "x/../../f",
        "//g",
    ]
    (tmp_path / "g.png").write_bytes(b"mine")
    names.append("../../g")
    members = [(f"{name}.{kind}", content) for number, name in enumerate(names) for kind, content in (
        ("png", image_bytes(number)), ("cls", b"1")
    )]  # fmt: skip
    (tmp_path / "d").mkdir()
    write_tar(tmp_path / "d" / "s.tar", members)
    before = files_in(tmp_path)
    data = ShardData(str(tmp_path / "d"), index_dir=str(tmp_path / "i"), num_workers=0)
    batches = list(itertools.islice(data.batches(0, 0, 4, [ViewSpec(8)]), 4))
    after = files_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("i/") and name.endswith((".idx", ".json")) for name in after.keys() - before.keys())
    assert len(after) == len(before) + 2  # the shard's sidecar, and the table of the list
    assert {key for batch in batches for key in batch.keys} == set(names)
    assert not any(batch.replaced for batch in batches)
