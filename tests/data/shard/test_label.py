"""Labels: where they are looked for, what counts as one, and that nothing else of a shard is held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.overrides import composed
from pretrain.data.module import ShardData
from pretrain.data.shard.index import open_index
from pretrain.data.shard.label import Labels, UnknownClassError, mistake
from pretrain.data.stream.order import Order
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Inline, Numbers, Windows
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_tar
from tests.job import Job
from tests.scripts import run_script

VIEW = ViewSpec(8)


@pytest.mark.parametrize(
    ("where", "members", "expected"),
    [
        ("cls", {"cls": b" 7\n"}, 7),
        ("cls", {"cls": b"-1"}, -1),
        ("cls", {"cls": b"cat"}, -1),
        ("cls", {"json": b'{"label": 3}'}, -1),
        ("cls", {}, -1),
        ("json:label", {"json": b'{"label": 3}'}, 3),
        ("json:label", {"json": b'{"label": "12"}'}, 12),
        ("json:label", {"json": b'{"label": "cat"}'}, 1),
        ("json:label", {"json": b'{"label": "10"}'}, 2),  # a name first, then a number
        ("json:a.b", {"json": b'{"a": {"b": 5}}'}, 5),
        ("json:a.b", {"json": b'{"a": 5}'}, -1),
        ("json:label", {"json": b'{"label": true}'}, -1),
        ("json:label", {"json": b'{"label": -4}'}, -1),
        ("json:label", {"json": b'{"label": 3.5}'}, -1),
        ("json:label", {"json": b'{"label": 3.0}'}, 3),
        ("json:label", {"json": b'{"label": null}'}, -1),
        ("json:label", {"json": b'{"label": ""}'}, -1),
        ("json:label", {"json": b"{}"}, -1),
        ("json:label", {"json": b"[1]"}, -1),
        ("json:label", {"json": b'{"label": '}, -1),
        ("json:label", {"json": b"\xff\xfe"}, -1),
        ("json:label", {"json": b"[" * 100_000}, -1),
        ("json:label", {"json": b'{"label": ' + b"9" * 10_000 + b"}"}, -1),
        ("json:label", {"cls": b"3"}, -1),
        ("none", {"cls": b"3", "json": b'{"label": 3}'}, -1),
        (None, {"cls": b"3"}, -1),
    ],
)
def test_what_counts_as_a_label(where: str | None, members: dict[str, bytes], expected: int) -> None:
    assert Labels(where, {"dog": 0, "cat": 1, "10": 2}).read(members) == expected


@pytest.mark.parametrize("classes", [{}, {"dog": 0}])
def test_a_name_without_a_number_is_refused(classes: dict[str, int]) -> None:
    with pytest.raises(
        UnknownClassError, match=r"name `cat` \(`label` in its `.json` member, data.labels=json:label\)"
    ):
        Labels("json:label", classes).read({"json": b'{"label": "cat"}'})


@pytest.mark.parametrize("where", ["", "json", "json:", "json:a..b", "json:.a", "txt", "CLS"])
def test_another_place_is_refused(job: Job, where: str) -> None:
    from pretrain.config.check import check

    assert mistake(where) is not None
    (line,) = check(composed(job.overrides(f"data.labels='{where}'")))
    assert line == f"data.labels={where}: must be cls, json:KEY (json:a.b for a value further inside) or none"


@pytest.mark.parametrize("word", ["cls", "json:label", "json:meta.label", "none", "null"])
def test_every_place_can_be_written_on_a_command_line(job: Job, word: str) -> None:
    from pretrain.config.check import check

    cfg = composed(job.overrides(f"data.labels={word}"))
    assert check(cfg) == []
    assert cfg.data.labels == (None if word == "null" else word)


def write(folder: Path, json_of: Any, count: int = 8, cls: bool = True) -> str:
    """A shard whose sample i is of class 9 − i by its `.cls`, and by its `.json` what `json_of` says."""
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for number in range(count):
        members += [(f"{number}.png", image_bytes(number)), (f"{number}.json", json_of(number))]
        members += [(f"{number}.cls", str(9 - number).encode())] * cls
        members += [(f"{number}.gif", b"no picture that anybody asked for")]
    return str(write_tar(folder / "s.tar", members))


@pytest.mark.parametrize("threads", [0, 2])
def test_the_data_of_a_run_is_labelled_as_asked(tmp_path: Path, threads: int) -> None:
    write(tmp_path / "d", lambda number: json.dumps({"meta": {"name": "bca"[number % 3]}}).encode())
    (tmp_path / "d" / "classes.json").write_text('["a", "b", "c"]')
    expected = {"cls": [9 - number for number in range(8)], "none": [-1] * 8}
    expected["json:meta.name"] = ["abc".index("bca"[number % 3]) for number in range(8)]
    for where, labels in list(expected.items())[2 if threads else 0 :]:  # to start a process takes long
        data = ShardData(
            str(tmp_path / "d"), str(tmp_path / "d"), index_dir=str(tmp_path / "i"), labels=where, num_workers=threads
        )
        for batch in (next(iter(data.batches(0, 0, 8, [VIEW]))), next(iter(data.val_subset(0, 8, 8, [VIEW])))):
            assert sorted(zip(map(int, batch.keys), batch.labels.tolist(), strict=True)) == list(enumerate(labels))


def test_a_name_without_a_number_ends_a_run_with_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "d", lambda number: b'{"label": "cat"}')
    words = {"index_dir": str(tmp_path / "i"), "labels": "json:label", "num_workers": 0}
    data = ShardData(str(tmp_path / "d"), str(tmp_path / "d"), **words)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no classes.json beside the shards lists: put all names there"):
        next(iter(data.val_subset(0, 4, 4, [VIEW])))
    assert next(iter(data.batches(0, 0, 4, [VIEW]))).labels.tolist() == [-1] * 4  # no objective looks at them
    assert next(iter(ShardData(str(tmp_path / "d"), num_workers=0).batches(0, 0, 4, [VIEW]))).labels.min() >= 0


def test_folders_that_number_names_differently_are_refused(tmp_path: Path) -> None:
    for folder, names in {"a": ["cat", "dog"], "b": ["dog", "cat"], "c": ["cat", "dog"]}.items():
        write(tmp_path / folder, lambda number: b"{}")
        (tmp_path / folder / "classes.json").write_text(json.dumps(names))
    folders = {name: str(tmp_path / name) for name in "abc"}
    words = {"index_dir": str(tmp_path / "i"), "num_workers": 0}
    both = [folders["a"], folders["b"]]
    with pytest.raises(UserError, match=r"a/classes.json` and `.*b/classes.json` number names differently"):
        ShardData(folders["a"], both, labels="json:label", **words)  # type: ignore[arg-type]
    assert ShardData(both, labels="json:label", **words).labels.classes == {}  # type: ignore[arg-type]
    assert ShardData([folders["a"], folders["b"]], **words).labels.classes == {}  # type: ignore[arg-type]
    same = ShardData([folders["a"], folders["c"]], labels="json:label", **words)  # type: ignore[arg-type]
    assert same.labels.classes == {"cat": 0, "dog": 1}
    (tmp_path / "c" / "classes.json").write_text('{"cat": 0}')
    with pytest.raises(UserError, match="must be a list of names"):
        ShardData(folders["a"], folders["c"], labels="json:label", **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "held"), [("cls", {"png", "cls"}), ("json:x", {"png", "json"}), ("none", {"png"}), (None, {"png"})]
)
def test_only_what_is_needed_is_held(tmp_path: Path, where: str | None, held: set[str]) -> None:
    index = open_index([write(tmp_path / "d", lambda number: b"{}" * 1000)], str(tmp_path / "i"))
    order = Order(index.counts, 0, None)
    numbers = Numbers(0, 1, 8, 8)
    stream = BatchStream(index, order, numbers, (VIEW,), labels=Labels(where))
    windows = Windows(index, order, numbers, Inline(), stream._needed)
    for g in range(8):
        windows.ask(g)
    (run,) = {id(run): run.result() for _, _, run in windows._samples.values()}.values()
    assert sorted(run) == sorted(
        part.start for member in range(8) for part in index.parts(0, member) if part.extension in held
    )
    assert windows.take(3)[2].keys() == held
    assert windows.read(0, 5).keys() == held


def test_a_json_is_opened_only_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index([write(tmp_path / "d", lambda number: b'{"x": 1}')], str(tmp_path / "i"))
    order = Order(index.counts, 0, None)
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(text), loads(text))[1])
    for where, count in (("cls", 0), ("none", 0), ("json:x", 8)):
        parsed.clear()
        (batch,) = BatchStream(index, order, Numbers(0, 1, 8, 8), (VIEW,), labels=Labels(where))
        assert parsed.count(b'{"x": 1}') == count
        assert len(batch) == 8


def test_probes_take_their_labels_from_where_they_are_told(job: Job) -> None:
    job.run("max_steps=1", "data.labels=none")  # pretraining needs none
    train = write(job.tmp / "t", lambda number: json.dumps({"label": number % 2}).encode(), cls=False)
    common = [f"checkpoint={job.out}", f"train={train}", f"val={train}", "num_workers=0", f"index_dir={job.tmp / 'i'}"]
    for name, words in (
        ("knn", ["k=1"]),
        ("linear_probe", []),
        ("linear_probe", ["solver=sgd", "batch_size=8", "epochs=2", "warmup_epochs=1"]),
    ):
        out = job.tmp / "result.json"
        result = run_script(name, *common, *words, "labels=json:label", f"out={out}")
        assert result.returncode == 0, result.stderr
        assert json.loads(out.read_text())["protocol"]["labels"] == "json:label"
        for labels, message in (
            ("cls", "has no label (a `.cls` member with a class number, labels=cls): a probe needs one for each"),
            ("json:other", "has no label (`other` in its `.json` member, labels=json:other)"),
            ("none", "labels=none: a probe needs labels"),
            ("txt", "labels=txt: must be cls, json:KEY"),
        ):
            result = run_script(name, *common, *words, f"labels={labels}")
            assert (result.returncode, message in result.stderr) == (1, True), result.stderr
            assert "Traceback" not in result.stderr


def test_the_online_probe_takes_the_runs_labels(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    val = write(job.tmp / "v", lambda number: json.dumps({"label": number % 2}).encode(), cls=False)
    words = [f"data.val={val}", "callbacks.online_knn.every_steps=1", "max_steps=2"]
    job.run(*words, "data.labels=json:label")
    assert all("knn" in row for row in job.rows())
    job.out = job.out.with_name("other")
    with caplog.at_level("INFO"):
        job.run(*words, "data.labels=none")
    assert "data.val has no labels (data.labels=none)" in caplog.text
