"""Shards of strangers: what is in them is never run, nor what their addresses name."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from pretrain.config.check import mistakes
from pretrain.data.store.source import expand
from pretrain.frozen import load
from tests.data.shards import image_bytes, write_tar
from tests.job import Job
from tests.scripts import run_script
from tests.security.planted import array, arrays, explodes, pickled, saved


def members(marker: Path, count: int = 12) -> list[tuple[str, bytes]]:
    """Samples that all have an image, and beside it everything that some reader of WebDataset shards would unpickle."""
    rows = []
    for number in range(count):
        rows += [(f"{number}.png", image_bytes(number)), (f"{number}.cls", pickled(marker))]
        rows += [(f"{number}.{kind}", pickled(marker)) for kind in ("pyd", "pickle", "pkl", "json", "py", "dill")]
        rows += [(f"{number}.{kind}", saved(marker)) for kind in ("pth", "pt", "ckpt")]
        rows += [(f"{number}.npz", arrays(marker))]
    return rows


def test_the_plants_are_live(tmp_path: Path) -> None:
    assert explodes(tmp_path / "marker")


def test_planted_pickles_are_trained_on_verified_indexed_and_probed_unread(job: Job) -> None:
    marker, shards = job.tmp / "marker", job.tmp / "planted"
    shards.mkdir()
    write_tar(shards / "s.tar", members(marker))
    (shards / "classes.json").write_text(json.dumps(["a", "b"]))
    job.run(f"data.train={shards}", f"data.val={shards}", "callbacks.online_knn.every_steps=2", "max_steps=2")
    data = f"data={shards}/s.tar"
    for words in (
        ["action=verify", data],
        ["action=stats", data, f"index_dir={job.tmp / 'i'}"],
        ["action=index", data, "beside=true"],
        ["action=repair", data, f"out={job.tmp / 'repaired'}"],
        ["action=reshard", data, f"out={job.tmp / 'resharded'}", "short_side=4", "bench=false"],
        ["action=dedupe", data, f"out={job.tmp / 'copies.json'}"],
    ):
        result = run_script("shards", *words)
        assert "Traceback" not in result.stderr, (words, result.stderr)
        assert not marker.exists(), words
    for labels in ("cls", "json:label"):
        words = [f"checkpoint={job.out}", f"train={shards}/s.tar", f"val={shards}/s.tar", f"labels={labels}"]
        result = run_script("knn", *words, f"index_dir={job.tmp / 'i'}", "num_workers=0")
        assert "has no label" in result.stderr
    assert not marker.exists()


def test_arrays_of_objects_are_bad_samples(job: Job) -> None:
    marker, shards = job.tmp / "marker", job.tmp / "arrays"
    shards.mkdir()
    from tests.data.test_arrays import array_of, npy

    rows = [(f"{number}.npy", npy(array_of(number))) for number in range(9)] + [("x.npy", array(marker))]
    rows.append(("y.npy", pickled(marker)))
    write_tar(shards / "s.tar", rows)
    words = [f"data.train={shards}", "objective.view.pixels=uint16", "data.max_bad_fraction=1", "max_steps=3"]
    words += ["encoder.in_chans=4", "objective.view.full_scale=65535"]
    words += [f"objective.view.{name}=[{','.join(['0.5'] * 4)}]" for name in ("mean", "std")]
    run = job.run(*words)
    assert sum(run.data.bad.kinds.values()) > 0
    assert not marker.exists()
    result = run_script("shards", "action=verify", f"data={shards}/s.tar")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not marker.exists()


def test_a_planted_index_is_not_run(job: Job) -> None:
    """Pickles in the place of all that is read beside shards, and in the cache of indexes."""
    marker, cache = job.tmp / "marker", job.tmp / "index"
    job.run("max_steps=1")
    planted = [path for path in cache.rglob("*") if path.is_file()]
    planted += [job.shards / "index.json", job.shards / "s-000000.tar.idx"]
    assert len(planted) > 4
    for path in planted:
        path.write_bytes(pickled(marker))
    job.run("max_steps=2", "resume=never", f"output_dir={job.tmp / 'again'}")
    for name in ("classes.json", "skip.json"):
        (job.shards / name).write_bytes(pickled(marker))
    words = [f"data.skip={job.shards / 'skip.json'}", "data.labels=json:x"]
    assert any("skip" in line for line in mistakes(job.overrides(*words)))
    assert not marker.exists()


def test_commands_run_only_where_they_are_allowed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run("max_steps=1")
    marker = job.tmp / "marker"
    pipe = f"pipe:touch {marker}; cat {job.shards / 's-000000.tar'}"
    for words in (
        [f"data.train={pipe}"],
        [f"data.val={pipe}"],
        [f"data.train=[{job.shards},{pipe}]"],
        [f"data.train={{a: {job.shards}, b: {pipe}}}", "data.sources={a: 1, b: 1}"],
    ):
        from pretrain.config.arguments import quote

        lines = mistakes(quote(job.overrides(*words)))
        assert any("runs a shell command: allow it by data.allow_pipe=true" in line for line in lines), words
    monkeypatch.setenv("PRETRAIN_TRAIN_SHARDS", pipe)
    words = [word for word in job.overrides() if not word.startswith("data.train=")]
    assert any("runs a shell command" in line for line in mistakes(words))
    here = str(job.shards / "s-000000.tar")
    probe = [f"checkpoint={job.out}", f"index_dir={job.tmp / 'i'}", f"out={job.tmp / 'o.json'}"]
    for name, *rest in (
        ("knn", *probe, f"train={pipe}", f"val={here}"),
        ("knn", *probe, f"train={here}", f"val={pipe}"),
        ("linear_probe", *probe, f"train={here}", f"val={pipe}"),
        ("shards", "action=verify", f"data={pipe}"),
        ("shards", "action=dedupe", f"data={here}", f"val={pipe}", f"out={job.tmp / 'd.json'}"),
        ("bench_data", f"data={pipe}"),
        ("order_quality", f"data={pipe}", f"out={job.tmp / 'q.json'}"),
    ):
        result = run_script(name, *rest)
        assert result.returncode == 1, name
        assert not marker.exists(), name
    run_script("plan", "+experiment=mae_digits", f"data.train='{pipe}'")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("reference://x/refs.json", "is no store"),
        ("filecache://b/x.tar", "is no store"),
        ("simplecache://b/x.tar", "is no store"),
        ("blockcache://b/x.tar", "is no store"),
        ("zip://a.tar", "is no store"),
        ("libarchive://a.tar", "is no store"),
        ("dir://x", "is no store"),
        ("generic://x", "is no store"),
        ("dask://x", "is no store"),
        ("jupyter://x", "is no store"),
        ("git://x", "is no store"),
        ("simplecache::s3://b/x.tar", "chains drivers"),
        ("zip://a.tar::file:///x.zip", "is no store"),
        ("reference::memory://x", "chains drivers"),
        ("python://os.system", "is no protocol"),
    ],
)
def test_drivers_that_read_through_others_are_refused(pattern: str, reason: str) -> None:
    shards, (line,) = expand([pattern])
    assert not shards
    assert reason in line


def test_a_reference_set_is_never_opened(tmp_path: Path) -> None:
    """A driver of fsspec that fills in templates as the file says, and options that name further drivers."""
    node = {"fo": str(tmp_path / "refs.json"), "target_protocol": "file", "cache_storage": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache").write_bytes(pickle.dumps({}))
    from pretrain.data.store.source import access_of

    for scheme in ("reference", "filecache"):
        assert "is no store" in expand([f"{scheme}://x.tar"], access=access_of(node))[1][0]


def test_what_a_shard_says_is_not_executable(job: Job) -> None:
    """Members that are programs lie in no file that could be started."""
    job.run("max_steps=1")
    assert load(job.out).encoder is not None
    files = [path for path in job.out.rglob("*") if path.is_file()]
    assert not [path for path in files if os.stat(path).st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)]
