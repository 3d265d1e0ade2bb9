"""Skip lists: what they leave out, and that nothing else changes."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.cli.probe_data import ProbeArguments, open_probe_data
from pretrain.config.check import check_nodes
from pretrain.data.module import ShardData
from pretrain.data.opening import known_size, open_shards
from pretrain.data.shard.index import Index, open_index
from pretrain.data.shard.sidecar import Shard
from pretrain.data.shard.skip import Skipped, skipped_of, write_skip_list
from pretrain.data.stream.order import Order, Shuffle
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards

VIEW = ViewSpec(8)


def opened(tmp_path: Path, skip: Any = None) -> Index:
    """Samples 0 … 9 | 10 … 16 | 17 in three shards."""
    folder = tmp_path / "d"
    paths = sorted(map(str, folder.glob("*.tar"))) if folder.exists() else write_shards(folder, [10, 7, 1])
    return open_index(paths, str(tmp_path / "i"), skip=skip)


def listed(path: Path, index: Index, *members: tuple[int, int]) -> str:
    """A list that leaves out samples, by (shard, number)."""
    rows = [
        Skipped(index.shards[shard].sha256, index.shards[shard].name, member, "key", "why") for shard, member in members
    ]
    write_skip_list(path, rows)
    return str(path)


def keys(index: Index) -> list[int]:
    return [int(index.key(shard, member)) for shard, count in enumerate(index.counts) for member in range(count)]


@pytest.mark.parametrize("gone", [[], [0], [9], [0, 1, 2], [3, 4, 9, 12], [0, 9, 10, 16, 17], list(range(10))])
def test_the_index_is_that_of_the_others(tmp_path: Path, gone: list[int]) -> None:
    whole = opened(tmp_path)
    places = [(0, n) if n < 10 else (1, n - 10) if n < 17 else (2, 0) for n in gone]
    less = opened(tmp_path, listed(tmp_path / "s.json", whole, *places))
    kept = [n for n in range(18) if n not in gone]
    assert keys(less) == kept
    assert less.num_samples == len(kept)
    for index in (less, pickle.loads(pickle.dumps(less))):
        found = [index.parts(shard, member) for shard, count in enumerate(index.counts) for member in range(count)]
        whole_places = [(0, n) if n < 10 else (1, n - 10) if n < 17 else (2, 0) for n in kept]
        assert found == [whole.parts(*place) for place in whole_places]
    assert (less.digest == whole.digest) == (not gone)
    assert less.shards == whole.shards


def test_an_index_of_random_gaps_maps_every_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gone = np.sort(rng.choice(50, rng.integers(1, 49), replace=False))
        index = Index([Shard("x.tar", 50, 0, "", "")], skipped={0: gone})
        assert [index.number(0, member) for member in range(index.counts[0])] == sorted(set(range(50)) - set(gone))


def test_lists_add_up_and_the_digest_says_which_samples_they_leave_out(tmp_path: Path) -> None:
    whole = opened(tmp_path)
    one, two = (listed(tmp_path / f"{n}.json", whole, (0, n), (0, 5)) for n in (2, 3))
    both = opened(tmp_path, [one, two])
    assert keys(both) == [n for n in range(18) if n not in (2, 3, 5)]
    digests = {opened(tmp_path, skip).digest for skip in (None, one, two, [one, two])}
    assert len(digests) == 4
    assert opened(tmp_path, [two, one]).digest == both.digest


def test_a_run_never_sees_them_and_every_other_sample_once(tmp_path: Path) -> None:
    skip = listed(tmp_path / "s.json", opened(tmp_path), (0, 0), (0, 7), (1, 3), (2, 0))
    shuffle = Shuffle(streams=2, run_length=2, run_window=4, window=4)
    data = ShardData(str(tmp_path / "d"), num_workers=0, index_dir=str(tmp_path / "i"), skip=skip, shuffle=shuffle)
    batches = itertools.islice(data.batches(0, 0, 7, [VIEW]), 4)
    seen = [(int(key), label, view) for b in batches for key, label, view in _samples(b)]
    assert sorted(key for key, _, _ in seen) == sorted(2 * [n for n in range(18) if n not in (0, 7, 13, 17)])
    assert all(label == key % 10 and green == key for key, label, green in seen)


def _samples(batch: Any) -> list[tuple[str, int, int]]:
    return [
        (key, int(label), int(view[1, 0, 0]))
        for key, label, view in zip(batch.keys, batch.labels, batch.views[0][0], strict=True)
    ]


def test_the_identity_of_a_run_says_so_and_only_training_samples_are_left_out(tmp_path: Path) -> None:
    skip = listed(tmp_path / "s.json", opened(tmp_path), (1, 3))
    shards = str(tmp_path / "d")
    one, other = (
        ShardData(shards, val=shards, num_workers=0, index_dir=str(tmp_path / "i"), skip=s) for s in (None, skip)
    )
    assert one.identity()["digest"] != other.identity()["digest"]
    assert other.identity()["shards"][1].startswith("s-000001.tar 6 ")
    assert other.val is not None
    assert other.val.num_samples == 18
    assert known_size(shards, str(tmp_path / "i"), skip) == 17
    assert Order(other.train.counts, 0, Shuffle()).num_samples == 17


def test_shards_that_are_not_there_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = opened(tmp_path)
    stranger = [Skipped("0" * 64, "other.tar", 1, "k", ""), Skipped(whole.shards[0].sha256, "s", 1, "k", "")]
    write_skip_list(tmp_path / "s.json", stranger)
    with caplog.at_level(logging.INFO):
        assert opened(tmp_path, str(tmp_path / "s.json")).num_samples == 17
    assert [record.message for record in caplog.records] == [
        f"1 of the 2 shards that `{tmp_path}/s.json` speaks of are not among these",
        "1 samples of 1 shards are left out",
    ]


SHA = "0" * 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("[1", "is not json"),
        ("[1]", "no skip list of this version"),
        ('{"format": 2, "shards": {}}', "no skip list of this version"),
        ('{"format": 1, "shards": {"abc": {"samples": []}}}', "cannot be understood"),
        (f'{{"format": 1, "shards": {{"{SHA}": {{"samples": [{{"member": -1}}]}}}}}}', "cannot be understood"),
        (f'{{"format": 1, "shards": {{"{SHA}": {{"samples": [{{"member": true}}]}}}}}}', "cannot be understood"),
        (f'{{"format": 1, "shards": {{"{SHA}": {{"samples": [3]}}}}}}', "cannot be understood"),
        (f'{{"format": 1, "shards": {{"{SHA}": 3}}}}', "cannot be understood"),
        (f'{{"format": 1, "shards": {{"{SHA}": {{"samples": [{{"member": {10**30}}}]}}}}}}', "cannot be understood"),
        ("[" * 100_000, "is not json"),
    ],
)
def test_what_is_no_list_is_refused_before_anything_starts(tmp_path: Path, content: str | None, reason: str) -> None:
    write_shards(tmp_path / "d", [2])
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    node = {"_target_": "pretrain.data.module.ShardData", "train": str(tmp_path / "d"), "skip": str(path)}
    (line,) = check_nodes({"data": node})
    assert line.startswith("data.skip=")
    assert reason in line
    assert str(path) in line
    with pytest.raises(UserError, match=reason):
        opened(tmp_path, str(path))


def test_a_list_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    index = opened(tmp_path)
    with pytest.raises(UserError, match=r"leaves out sample 7 of `s-000001.tar`, which has 7"):
        skipped_of(index.shards, listed(tmp_path / "s.json", index, (1, 7)))
    everything = listed(tmp_path / "all.json", index, *[(0, n) for n in range(10)], *[(1, n) for n in range(7)], (2, 0))
    with pytest.raises(UserError, match="leaves out every sample"):
        open_shards(str(tmp_path / "d"), str(tmp_path / "i"), skip=everything)


def test_a_list_of_any_names_is_written_as_json(tmp_path: Path) -> None:
    write_skip_list(tmp_path / "s.json", [Skipped(SHA, 'a"b\n.tar', 4, "ключ\udc80", "x"), Skipped(SHA, "", 2, "", "")])
    content = json.loads((tmp_path / "s.json").read_text())
    assert [row["member"] for row in content["shards"][SHA]["samples"]] == [2, 4]
    write_skip_list(tmp_path / "none.json", [])
    assert opened(tmp_path, str(tmp_path / "none.json")).num_samples == 18


def test_a_probe_takes_one_for_its_training_samples(tmp_path: Path) -> None:
    skip = listed(tmp_path / "s.json", opened(tmp_path), (0, 1), (0, 2))
    shards = str(tmp_path / "d")
    train, val = open_probe_data(ProbeArguments("", shards, shards, index_dir=str(tmp_path / "i"), skip=skip))
    assert (train.num_samples, val.num_samples) == (16, 18)
