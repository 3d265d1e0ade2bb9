"""What is said of how well an order mixes: the measures themselves, and that the documented ones come out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.stream.order import Order, Shuffle
from tests.scripts import FOLDER, loaded, run_script

SCRIPT = loaded("order_quality")
MEASURED = FOLDER.parent / "docs" / "measurements"
FILES = ["order_quality_imagenet", "order_quality_cifar10"]


def measured(**words: Any) -> dict[str, Any]:
    result: dict[str, Any] = SCRIPT["measured"](SCRIPT["Arguments"](**words))
    return result


def test_measures_of_orders_whose_mix_is_known() -> None:
    classes = np.arange(64) // 16
    as_stored, dealt = np.arange(64), np.arange(64).reshape(4, 16).T.reshape(-1)
    worst = SCRIPT["mix"](as_stored, as_stored, classes, 8)
    assert (worst.classes, worst.fewest, worst.largest, worst.distance) == (1.0, 1, 1.0, 0.75)
    assert worst.mates == pytest.approx(63 / 7)  # all mates are mates again, where 7 of 63 would be
    best = SCRIPT["mix"](dealt, as_stored, classes, 8)
    assert (best.classes, best.fewest, best.largest, best.distance) == (4.0, 4, 0.25, 0.0)
    draw = np.random.default_rng(0)
    first, second = draw.permutation(20_000), draw.permutation(20_000)
    assert SCRIPT["mix"](first, second, np.arange(20_000) // 200, 100).mates == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("run_length", "reads"), [(1, 1.0), (8, 1 / 8)])
def test_an_epoch_is_visited_whole_and_its_reads_are_counted(run_length: int, reads: float) -> None:
    order = Order([250] * 40, 0, Shuffle(streams=4, run_length=run_length, run_window=2400, window=64))
    samples, found = SCRIPT["visit"](order, 1)
    assert sorted(samples.tolist()) == list(range(10_000))
    starts = np.cumsum(order.counts) - order.counts
    for p in (0, 1, 777, 9_999):
        shard, member = order.locate(10_000 + p)
        assert samples[p] == starts[shard] + member
    assert found == pytest.approx(reads, rel=0.15)  # now and then the next is near enough to be read with it


def test_run_windows_as_long_as_a_stream_mix_what_short_ones_starve() -> None:
    """As the default and the former one on ImageNet, at a sixty-fourth of its size and fewer streams."""
    sizes = {"samples": 20_000, "classes": 125, "shard": 160, "batch": [64]}
    result = measured(**sizes, streams=[8], run_length=[4], run_window=[65536, 512], window=[64])
    true = result["true"]["64"]["classes"]
    long, short = (row["batches"]["64"]["classes"] / true for row in result["settings"])
    assert long > 0.85
    assert short < 0.6


@pytest.mark.parametrize("file", FILES)
def test_the_documents_show_what_was_measured(file: str) -> None:
    text = (FOLDER.parent / "docs" / "data.md").read_text()
    rows = SCRIPT["table"](json.loads((MEASURED / f"{file}.json").read_text())).splitlines()
    assert "\n".join(rows) in text


def test_the_advice_is_what_was_measured() -> None:
    """The shares of a true shuffle's classes that the text names, by the key that a row has in place of the base's."""
    measured = json.loads((MEASURED / "order_quality_imagenet.json").read_text())
    base = measured["settings"][0]["shuffle"]
    shares = {
        (size, *sorted(row["shuffle"].items() - base.items())): here["classes"] / measured["true"][size]["classes"]
        for row in measured["settings"]
        for size, here in row["batches"].items()
    }
    assert base == vars(Shuffle())
    named = {("256",): 95, ("4096",): 75, ("4096", ("run_window", 8192)): 44, ("4096", ("window", 512)): 96}
    for key, percent in (named | {("4096", ("run_length", 1)): 100}).items():
        assert round(100 * shares[key]) == percent


def test_the_defaults_come_out_as_measured() -> None:
    """Of the small data set, the same to the last sample."""
    committed = json.loads((MEASURED / "order_quality_cifar10.json").read_text())
    again = measured(**committed["run"] | {"run_length": [8], "window": [128], "streams": [64], "run_window": [65536]})
    default = {"streams": 64, "run_length": 8, "run_window": 65536, "window": 128}
    assert vars(Shuffle()) == committed["settings"][0]["shuffle"] == default
    assert again["settings"][0] == committed["settings"][0]
    for size, here in again["true"].items():
        assert here == pytest.approx(committed["true"][size], rel=1e-9)


def test_the_script_writes_what_it_prints(tmp_path: Path) -> None:
    words = ["samples=4000", "classes=20", "shard=200", "batch=[64]", "streams=[8,1]", "window=[16]", "run_window=[64]"]
    files = [f"out={tmp_path / 'q.json'}", f"picture={tmp_path / 'q.png'}"]
    result = run_script("order_quality", *words, "run_length=[2]", *files)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "q.json").read_text())
    assert result.stdout.strip() == SCRIPT["table"](written)
    assert [row["streams"] for row in written["settings"]] == [8, 1]
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")


def test_all_mistakes_are_reported_at_once() -> None:
    words = ["samples=100", "classes=0", "batch=[1,200]", "run_length=[8]", "run_window=[12]"]
    assert run_script("order_quality", *words, "streams=[]", "shard=x").stderr.splitlines() == [
        "streams=[]: must be a list of a whole number",
        "shard=x: must be a whole number",
    ]
    assert run_script("order_quality", *words, "streams=[0]").stderr.splitlines() == [
        "classes=0: must be at least 1",
        "batch=1: must be between 2 and samples (=100)",
        "batch=200: must be between 2 and samples (=100)",
        "streams=0: must be at least 1",
        "run_window=12: must be a positive multiple of `run_length` (=8)",
    ]
