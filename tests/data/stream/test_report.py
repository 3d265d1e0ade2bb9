"""The record of bad samples: by kind and shard, over restarts, and what it stops."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.opening import open_shards
from pretrain.data.stream.report import BadSamples, write_report
from pretrain.frozen import load
from pretrain.records import Replaced, UserError
from tests.data.shards import image_bytes, write_tar
from tests.job import Job

EMPTY, CUT, HTML = b"", image_bytes(1)[:-30], b"<html>404</html>"


def bad(shard: str, kind: str, number: int = 0) -> Replaced:
    return Replaced(number, shard, f"k{number}", f"because of {number}", kind)


def report_of(job: Job) -> Any:
    return json.loads((job.out / "data_report.json").read_text())


def test_causes_are_counted_by_kind_and_shard() -> None:
    record = BadSamples()
    record.add(1000, [bad("a.tar", "empty", n) for n in range(3)] + [bad("b.tar", "empty"), bad("b.tar", "truncated")])
    record.add(500, [bad("b.tar", "truncated", n) for n in range(60)])
    assert (record.seen, len(record)) == (1500, 65)
    assert record.kinds == Counter(truncated=61, empty=4)
    assert record.shards == Counter({"b.tar": 62, "a.tar": 3})
    assert str(record) == (
        "65 of 1500 samples cannot be decoded (truncated 61, empty 4); the worst shard is `b.tar` with 62"
    )
    rows = record.rows()
    assert rows["samples"] == 1500
    assert rows["bad"] == 65
    assert list(rows["shards"].items()) == [("b.tar", {"truncated": 61, "empty": 1}), ("a.tar", {"empty": 3})]
    assert len(rows["examples"]) == 50
    assert rows["examples"][0] == {"g": 0, "shard": "a.tar", "key": "k0", "kind": "empty", "cause": "because of 0"}
    again = BadSamples()
    again.restore(json.loads(json.dumps(record.state())))
    assert again.rows() == rows
    assert again.state() == record.state()


def test_the_same_samples_looked_at_again_count_once() -> None:
    record = BadSamples(once=True)
    for _ in range(5):
        record.add(100, [bad("v.tar", "empty", 1), bad("v.tar", "damaged", 2)])
    assert record.rows()["kinds"] == {"empty": 1, "damaged": 1}
    assert "samples" not in record.rows()
    assert str(record).startswith("2 samples cannot be decoded")


def test_the_log_names_ten_and_then_counts(caplog: pytest.LogCaptureFixture) -> None:
    record = BadSamples()
    record.add(100, [bad("a.tar", "empty", n) for n in range(30)])
    lines = [line.message for line in caplog.records]
    assert len(lines) == 10
    assert lines[0] == "sample `k0` of `a.tar` cannot be decoded (empty: because of 0): another one stands in"
    assert lines[-1].endswith("; further ones are only counted")


def test_ranks_write_their_own_and_a_full_disk_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = BadSamples()
    record.add(4, [bad("a.tar", "empty")])
    write_report(tmp_path, training=record)
    write_report(tmp_path, rank=3, training=BadSamples())
    assert json.loads((tmp_path / "data_report.json").read_text())["training"]["bad"] == 1
    assert json.loads((tmp_path / "data_report.rank3.json").read_text())["training"]["bad"] == 0
    assert len(list(tmp_path.iterdir())) == 2
    with caplog.at_level(logging.ERROR):
        write_report(tmp_path / "gone", training=record)
    assert "no data_report.json in" in caplog.text


def add_bad(job: Job, contents: list[bytes], name: str = "worst.tar", good: int = 6) -> None:
    members = [(f"b{number}.png", content) for number, content in enumerate(contents)]
    members += [(f"g{number}.png", image_bytes(number)) for number in range(good)]
    write_tar(job.shards / name, members)


def test_a_run_reports_its_bad_samples_whole_over_restarts(job: Job) -> None:
    """A run that stops, and goes back since its last checkpoint is gone, reports what one that never stopped does."""
    add_bad(job, [EMPTY, CUT, HTML])
    run = ("data.max_bad_fraction=0.5", "max_steps=12", "checkpoint.every_steps=4", "callbacks.pictures=null")
    job.run(*run)
    whole = report_of(job)["training"]
    assert whole["samples"] == 96
    assert {"empty", "truncated", "not_an_image"} == whole["kinds"].keys()
    assert whole["bad"] == sum(whole["kinds"].values()) == sum(whole["shards"]["worst.tar"].values())
    assert {one["key"] for one in whole["examples"]} == {"b0", "b1", "b2"}
    job.out = job.tmp / "other"
    job.run(*run, "stop_after_steps=8")
    assert report_of(job)["training"]["samples"] == 64
    shutil.rmtree(job.out / "checkpoints" / "step_00000008")
    job.run(*run)
    assert report_of(job)["training"] == whole


def test_too_many_stop_the_run_again_and_again_and_the_report_is_written(job: Job) -> None:
    add_bad(job, [EMPTY] * 30, good=0)
    run = ("data.max_bad_fraction=0.01", "max_steps=100", "checkpoint.every_steps=1", "callbacks.pictures=null")
    sentence = (
        r"(\d+) of (\d+) samples cannot be decoded \(empty .*`worst.tar` with \d+: more than data.max_bad_fraction"
    )
    reports = []
    for _ in range(2):
        with pytest.raises(UserError, match=sentence):
            job.run(*run)
        reports.append(report_of(job)["training"])
    assert reports[0] == reports[1]  # it did not get further, since what was counted is remembered
    assert reports[0]["bad"] > 10  # the limit of the first thousand
    assert reports[0]["shards"] == {"worst.tar": {"empty": reports[0]["bad"]}}
    assert reports[0]["samples"] > 8


def test_evaluation_and_probes_say_what_they_leave_out(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    val = [
        (f"{n}.{kind}", content)
        for n in range(9)
        for kind, content in (("png", image_bytes(n)), ("cls", b"%d" % (n % 2)))
    ]
    val[0], val[4] = ("0.png", EMPTY), ("2.png", HTML)
    path = write_tar(job.tmp / "val.tar", val)
    with caplog.at_level(logging.WARNING):
        job.run(
            f"data.val={path}", "callbacks.evaluate.every_steps=2", "callbacks.online_knn.every_steps=3", "max_steps=6"
        )
    report = report_of(job)
    assert report["training"]["bad"] == 0
    assert report["evaluation"]["kinds"] == {"empty": 1, "not_an_image": 1}
    assert report["evaluation"]["shards"] == {"val.tar": {"empty": 1, "not_an_image": 1}}
    assert caplog.text.count("cannot be decoded (empty: ") == 1  # though it is looked at at every evaluation
    assert all(math.isfinite(row["val_loss"]) for row in job.rows() if "val_loss" in row)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        features, _ = load(job.out).features(open_shards(str(path), str(job.tmp / "i")), num_workers=0)
    assert len(features) == 7
    assert "2 of 9 samples cannot be decoded (" in caplog.text
    assert "they are left out" in caplog.text
