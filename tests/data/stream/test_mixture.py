"""Mixtures: exact shares, each source's own epochs, and the same samples from any entry on any ranks and threads."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.arguments import quote
from pretrain.config.check import mistakes
from pretrain.config.overrides import composed
from pretrain.data.module import ShardData
from pretrain.data.opening import known_shares, known_size, open_training
from pretrain.data.stream import mixture
from pretrain.data.stream.mixture import HAND, Mixture
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Inline, Numbers, Windows
from pretrain.data.training import TrainingShards
from pretrain.plan import plan
from pretrain.records import SourceShare, UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.data.stream.test_reader import colours
from tests.job import Job
from tests.scripts import run_script

SMALL = Shuffle(streams=24, run_length=2, run_window=4, window=4)
VIEW = ViewSpec(8)


def mixed(counts: list[list[int]], weights: list[float], seed: int = 0, shuffle: Shuffle = SMALL) -> Mixture:
    """A mixture of sources with shards of such sizes."""
    places = mixture.places({f"{number:02d}": weight for number, weight in enumerate(weights)})
    shares = [place / sum(places.values()) for place in places.values()]
    orders = [
        Order(sizes, mixture.seed_of(seed, source), mixture.portion(shuffle, share))
        for source, (sizes, share) in enumerate(zip(counts, shares, strict=True))
    ]
    return Mixture(orders, list(places.values()), seed)


# ── how many of which ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.7, 0.3], [700, 300]),
        ([7, 3], [700, 300]),
        ([1, 1, 1], [334, 333, 333]),
        ([0.99, 0.01], [990, 10]),
        ([0.995, 0.005], [9950, 50]),
        ([1, 1e-5], [99_999, 1]),
    ],
)
def test_places_of_a_block_are_the_weights(weights: list[float], expected: list[int]) -> None:
    assert list(mixture.places(dict(zip("abc", weights, strict=False))).values()) == expected


@pytest.mark.parametrize("number", range(20))
def test_no_share_is_rounded_by_more_than_a_twentieth(number: int) -> None:
    draw = random.Random(number)
    weights = {f"s{n}": math.exp(draw.uniform(-6, 0)) for n in range(draw.randint(2, 12))}
    places = mixture.places(weights)
    size = sum(places.values())
    assert size in (1_000, 10_000, 100_000)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(places[name] / size - share) <= min(1 / size, share / 20)


def test_each_block_holds_exactly_the_shares_and_each_stretch_nearly() -> None:
    order = mixed([[500], [300], [50]], [0.6, 0.37, 0.03])
    block = 1000 * HAND
    sources = [order.source(g)[0] for g in range(2 * block)]
    for start in (0, block):
        assert Counter(sources[start : start + block]) == {0: 600 * HAND, 1: 370 * HAND, 2: 30 * HAND}
    assert sources[:block] != sources[block:]
    for start in range(0, 2 * block - 256, 96):
        seen = Counter(sources[start : start + 256])
        for source, share in enumerate((0.6, 0.37, 0.03)):
            assert abs(seen[source] - 256 * share) < 3 * HAND


def test_up_to_eight_ranks_see_the_same_mix_and_read_streams_of_their_own() -> None:
    order = mixed([[5000], [3000]], [0.7, 0.3], shuffle=Shuffle(streams=64, window=16))
    sources = [order.source(g)[0] for g in range(16_000)]
    streams = [{order.place(g)[1] for g in range(rank, 3000, 8)} for rank in range(8)]
    for rank in range(1, 8):
        assert sources[rank::8] == sources[::8]
        assert not streams[rank] & streams[0]


# ── which of a source ────────────────────────────────────────────────────────────────────────────────────────────────


def visited(order: Mixture, stop: int) -> list[tuple[int, int]]:
    """The (shard, member) of all g below `stop`, by their windows as readers find them: quicker than one by one."""
    window = functools.cache(order.window)
    samples = []
    for g in range(stop):
        epoch, stream, offset = order.place(g)
        number, inside = order.window_at(stream, offset)
        one = window(epoch, stream, number)
        samples.append((int(one.shards[inside]), int(one.members[inside])))
    return samples


def random_mixture(number: int) -> Mixture:
    draw = random.Random(number)
    counts = [[draw.randint(1, 40) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(2, 4))]
    run = draw.choice([1, 2, 3])
    shuffle = Shuffle(draw.choice([1, 3, 16, 40]), run, run * draw.choice([1, 4]), draw.choice([1, 2, 5, 16]))
    return mixed(counts, [draw.choice([0.02, 0.3, 1, 2.5]) for _ in counts], number, shuffle)


@pytest.mark.parametrize("number", range(6))
def test_every_sample_of_a_source_comes_exactly_once_in_each_of_its_epochs(number: int) -> None:
    order = random_mixture(number)
    seen: list[list[tuple[int, int]]] = [[] for _ in order.orders]
    for g, sample in enumerate(visited(order, 600)):
        source, rank = order.source(g)
        assert rank == len(seen[source])  # no number of a source is left out, none comes twice
        seen[source].append(sample)
    first = 0
    for source, one in enumerate(order.orders):
        everything = [(first + shard, n) for shard, count in enumerate(one.counts) for n in range(count)]
        for start in range(0, len(seen[source]) - one.num_samples + 1, one.num_samples):
            assert sorted(seen[source][start : start + one.num_samples]) == everything
        first += len(one.counts)


@pytest.mark.parametrize("number", range(12))
def test_windows_are_what_their_samples_say(number: int) -> None:
    """Place, window and numbers agree: each g is found where its window says that it is visited."""
    order = random_mixture(number)
    for g in random.Random(number).sample(range(10**6), 6):
        epoch, stream, offset = order.place(g)
        window, inside = order.window_at(stream, offset)
        samples, numbers = order.window(epoch, stream, window), order.numbers(epoch, stream, window)
        assert len(samples.shards) == len(numbers)
        assert numbers[inside] == g
        assert sorted(numbers) == list(numbers)
        assert [order.locate(one) for one in numbers] == list(
            zip(samples.shards.tolist(), samples.members.tolist(), strict=True)
        )


def test_equal_sources_do_not_run_in_step() -> None:
    whole = Shuffle(streams=1, run_length=1, run_window=400, window=400)
    order = mixed([[400], [400]], [1, 1], shuffle=whole)
    members: list[list[int]] = [[], []]
    for g, (_, member) in enumerate(visited(order, 800)):
        members[order.source(g)[0]].append(member)
    assert sum(one == other for one, other in zip(*members, strict=False)) < 12  # 1 expected


def test_sources_share_the_streams_and_so_the_memory() -> None:
    assert [mixture.portion(Shuffle(), share).streams for share in (0.7, 0.3, 0.1, 0.01)] == [40, 16, 6, 1]
    order = mixed([[10**6]] * 10, [1] * 10, shuffle=Shuffle())
    assert sum(one.streams for one in order.orders) <= 64


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def training(tmp_path: Path) -> TrainingShards:
    """Two sources: `a` with 18 samples of the colours 0 … 17, `b` with 9 of 100 … 108."""
    write_shards(tmp_path / "a", [10, 7, 1])
    (tmp_path / "b").mkdir()
    write_tar(tmp_path / "b" / "t.tar", [(f"{n}.png", image_bytes(n)) for n in range(100, 109)])
    train = {"b": str(tmp_path / "b"), "a": str(tmp_path / "a")}
    return open_training(train, {"a": 0.7, "b": 0.3}, str(tmp_path / "i"))


def stream(training: TrainingShards, numbers: Numbers, threads: int = 0) -> BatchStream:
    return BatchStream(training.index, training.order(5, SMALL), numbers, (VIEW,), threads=threads)


@pytest.mark.parametrize(("world", "threads"), [(2, 0), (3, 2), (8, 0)])
def test_any_ranks_threads_and_entries_give_the_same_samples(
    training: TrainingShards, world: int, threads: int
) -> None:
    whole = [key for batch in stream(training, Numbers(0, 1, 10, stop=288)) for key in colours(batch)]
    assert Counter(key >= 100 for key in whole)[True] == pytest.approx(288 * 0.3, abs=2 * HAND)
    order = training.order(5, SMALL)
    sizes, keys = (10, 7, 1, 9), [*range(18), *range(100, 109)]
    assert whole == [keys[sum(sizes[:shard]) + member] for shard, member in visited(order, 288)]
    seen = {}
    for rank in range(world):
        for batch in stream(training, Numbers(96 + rank, world, 6, stop=288), threads):
            seen.update(zip(batch.g.tolist(), colours(batch), strict=True))
    assert [seen[g] for g in range(96, 288)] == whole[96:]


@pytest.mark.parametrize("world", [1, 3])
def test_bytes_are_let_go(training: TrainingShards, world: int) -> None:
    """Of each stream there are two windows at most, and in them what this rank needs."""
    reading = stream(training, Numbers(0, world, 4))
    order = reading.order
    assert isinstance(order, Mixture)
    windows = Windows(training.index, order, reading.numbers, Inline())
    most = 0
    for gs in itertools.islice(reading.numbers.batches(), 60):
        for g in gs:
            windows.ask(g)
        for g in gs:
            windows.take(g)
        most = max(most, len(windows._samples))
    assert most <= sum(one.streams for one in order.orders) * SMALL.window


def test_what_stands_in_for_a_bad_sample_is_of_the_same_source(tmp_path: Path) -> None:
    folders = {}
    for name, first in (("a", 0), ("b", 100)):
        members = [(f"{n}.png", b"no image" if n % 100 < 5 else image_bytes(n)) for n in range(first, first + 20)]
        (tmp_path / name).mkdir()
        folders[name] = str(write_tar(tmp_path / name / "t.tar", members))
    training = open_training(folders, {"a": 1, "b": 1}, str(tmp_path / "i"))
    order, replaced = training.order(5, SMALL), []
    for threads in (0, 2):
        batches = list(stream(training, Numbers(0, 1, 8, stop=160), threads))
        for batch in batches:
            for g, colour in zip(batch.g.tolist(), colours(batch), strict=True):
                assert colour // 100 == order.source(g)[0]
        replaced.append([(one.g, one.key) for batch in batches for one in batch.replaced])
    assert len(replaced[0]) >= 40  # a quarter of 160, and some that stood in
    assert replaced[0] == replaced[1]


def test_pipes_of_all_sources_are_few_at_a_time(tmp_path: Path) -> None:
    patterns = {}
    for name, counts in {"a": [20] * 20, "b": [40] * 10}.items():
        patterns[name] = [f"pipe:cat {path}" for path in write_shards(tmp_path / name, counts)]
    arguments: dict[str, Any] = {"allow_pipe": True, "index_dir": str(tmp_path / "i"), "num_workers": 0}
    data = ShardData(patterns, sources={"a": 3, "b": 1}, shuffle=Shuffle(window=4), **arguments)
    order = data.training.order(0, data.shuffle)
    assert isinstance(order, Mixture)
    assert [(one.streams, one.shuffle.run_window) for one in order.orders] == [(8, 16), (4, 24)]


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mixture_of_one_is_that_data_set(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [10, 7])
    options: dict[str, Any] = {"index_dir": str(tmp_path / "i"), "num_workers": 0}
    alone, one = (ShardData(train, **options) for train in (str(tmp_path / "a"), {"x": str(tmp_path / "a")}))
    assert alone.identity() == one.identity()
    batches = zip(alone.batches(3, 0, 5, [VIEW]), one.batches(3, 0, 5, [VIEW]), strict=False)
    for here, there in itertools.islice(batches, 5):
        assert here.keys == there.keys
        assert torch.equal(here.views[0], there.views[0])


def test_an_epoch_is_as_long_as_all_sources_together(training: TrainingShards, tmp_path: Path) -> None:
    assert training.order(0, SMALL).num_samples == 27
    assert training.shares == {"a": SourceShare(0.7, 18), "b": SourceShare(0.3, 9)}
    train = {name: str(tmp_path / name) for name in "ab"}
    assert known_size(train, str(tmp_path / "i")) == 27
    assert known_size({**train, "c": str(tmp_path / "c")}, str(tmp_path / "i")) is None
    shares = known_shares({"a": train["a"], "b": str(tmp_path / "none")}, {"a": 0.7, "b": 0.3}, str(tmp_path / "i"))
    assert shares == {"a": SourceShare(0.7, 18), "b": SourceShare(0.3, None)}


def words(tmp_path: Path, sources: str = "{photos: 0.7, drawings: 0.3}") -> tuple[str, str]:
    train = f"data.train={{photos: {tmp_path}/shards/s-{{000000..000003}}.tar, drawings: [{tmp_path}/more]}}"
    return train, f"data.sources={sources}"


def keys_of(job: Job, monkeypatch: pytest.MonkeyPatch, *extra: str) -> list[tuple[int, str]]:
    """The samples that a run trains on, (g, key), in the order in which they come."""
    seen: list[tuple[int, str]] = []
    real = ShardData.batches

    def batches(self: ShardData, *arguments: Any, **others: Any) -> Any:
        for batch in real(self, *arguments, **others):
            seen.extend(zip(batch.g.tolist(), batch.keys, strict=True))
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(ShardData, "batches", batches)
        run = job.run(*quote(extra))
    return [one for one in seen if one[0] < run.state.samples_seen]


def test_a_run_on_two_sources_goes_on_with_the_same_samples(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar_of_drawings(job.tmp / "more")
    mix = words(job.tmp)
    whole = keys_of(job, monkeypatch, *mix, f"output_dir={job.tmp / 'whole'}")
    assert [g for g, _ in whole] == list(range(12 * 8))
    assert Counter(key[0] == "d" for _, key in whole)[True] == pytest.approx(12 * 8 * 0.3, abs=HAND)
    with caplog.at_level("INFO"):
        first = keys_of(job, monkeypatch, *mix, "stop_after_steps=5")
    assert "drawings: 0.3 of all samples, each of its 12 seen 2.4 times" in caplog.text  # of 12 steps of 8 samples
    then = keys_of(job, monkeypatch, *mix)
    assert first + then == whole
    assert len(first) == 5 * 8
    with pytest.raises(UserError, match=r'data.sources.photos.weight: "700 of 1000" there, "600 of 1000" here'):
        job.run(*quote(words(job.tmp, "{photos: 0.6, drawings: 0.4}")))
    with pytest.raises(UserError, match=r"data.sources: \{.* there, null here"):
        job.run(f"data.train={job.shards}")


def write_tar_of_drawings(folder: Path) -> None:
    folder.mkdir()
    write_tar(folder / "t.tar", [(f"d{n}.png", image_bytes(n)) for n in range(12)])


def test_proportions_count_and_neither_scale_nor_sequence(training: TrainingShards, tmp_path: Path) -> None:
    train = {name: str(tmp_path / name) for name in "ab"}
    again = open_training(train, {"b": 30, "a": 70}, str(tmp_path / "i"))
    assert again.identity(SMALL) == training.identity(SMALL)
    orders = [one.order(5, SMALL) for one in (again, training)]
    assert isinstance(orders[0], Mixture)
    assert [orders[0].place(g) for g in range(200)] == [orders[1].place(g) for g in range(200)]


def test_an_incident_of_a_mixture_is_made_again(job: Job) -> None:
    write_tar_of_drawings(job.tmp / "more")
    mix = words(job.tmp)
    job.run(*quote(mix), "objective.view.std=[1e-38,1e-38,1e-38]", "max_steps=2")
    moved = job.tmp / "moved"
    job.shards.rename(moved)
    incident = f"incident={job.out / 'incidents' / 'step_00000002'}"
    where = f"train={{photos: {moved}/s-*.tar, drawings: {job.tmp}/more}}"
    result = run_script("replay", incident, where, "device=cpu")
    assert result.returncode == 0, result.stderr
    assert "reproduced: the loss is nan" in result.stdout
    swapped = f"train={{drawings: {moved}, photos: {job.tmp}/more}}"
    assert "are other shards than those of the run" in run_script("replay", incident, swapped).stderr


def test_the_plan_names_the_sources(job: Job) -> None:
    write_tar_of_drawings(job.tmp / "more")
    common = ["+experiment=mae_digits", "global_batch_size=8", "max_steps=50", f"data.index_dir={job.tmp / 'i'}"]
    uncounted = plan(composed(common), 1500, 1, {"a": SourceShare(0.3, None), "b": SourceShare(0.7, None)})
    assert str(uncounted).endswith("50 steps (0.3 epochs)\na: 0.3 of all samples\nb: 0.7 of all samples")
    train = quote(words(job.tmp))[0].partition("=")[2]
    open_training(known(train), {"photos": 7, "drawings": 3}, str(job.tmp / "i"))
    after = run_script("plan", *common, *words(job.tmp)).stdout
    assert "53 samples an epoch, 6 steps an epoch" in after
    assert "photos: 0.7 of all samples, each of its 41 seen 6.8 times" in after


def known(train: str) -> dict[str, Any]:
    plain = composed([f"data.train={train}"]).data.train
    return {name: list(one) if not isinstance(one, str) else one for name, one in plain.items()}


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_that_is_wrong_with_a_mixture_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "x.tar").touch()
    train = f"data.train={{a: {tmp_path}/x.tar, b: {tmp_path}/none, c: 5, d: {tmp_path}/y-{{0..1}}.tar}}"
    found = mistakes(quote(["trainer=cpu", train, "data.sources={a: 0, b: nan, e: -1, c: inf, f: many, g: true}"]))
    lines = [line.partition(": ")[2].rpartition("}: ")[2] for line in found]
    for expected in [
        f"b: no shard matches `{tmp_path}/none`",
        "c: no shard matches `5`",
        f"d: no shard matches `{tmp_path}/y-{{0..1}}.tar`",
        "has no weight for d",
        "e, f, g: data.train names no such data set, but a, b, c, d",
        "the weight of a (=0) must be a positive number; to leave it out, name it neither here nor in data.train",
        "the weight of b (=nan) must be a positive number",
        "the weight of e (=-1) must be a positive number",
        "the weight of c (=inf) must be a positive number",
        "the weight of f (=many) must be a positive number",
        "the weight of g (=True) must be a positive number",
    ]:
        assert any(line.endswith(expected) for line in lines), (expected, found)
    assert len(found) == 11


@pytest.mark.parametrize(
    ("train", "sources", "message"),
    [
        ("{a: X, b: X}", None, "data.sources=null: is missing: give a weight to each of a, b"),
        ("X", "{a: 1, b: 2}", "has weights, but data.train names no data sets: write data.train={a: …, b: …}"),
        ("{a: X, b: X}", "{a: 1, b: 1e-6}", "the share of b (1.0e-06) is below the least that can be dealt, 1e-05"),
        ("{a: X, b: X}", "0.5", "data.sources=0.5: must be {name: a number} or null"),
        ("{1a: X, b: X}", "{1a: 1, b: 1}", "no shard matches"),
        ("null", "{a: 0}", "the weight of a (=0) must be"),
    ],
)
def test_each_mistake_says_what_to_do(tmp_path: Path, train: str, sources: str | None, message: str) -> None:
    (tmp_path / "x.tar").touch()
    given = [f"data.train={train.replace('X', f'{tmp_path}/x.tar')}", *([f"data.sources={sources}"] if sources else [])]
    assert any(message in line for line in mistakes(quote(["trainer=cpu", *given]))), mistakes(quote(given))


def test_no_data_set_at_all_is_named_as_missing() -> None:
    assert "data.train={}: is missing: name the training shards by" in mistakes(["trainer=cpu", "data.train={}"])[0]


def test_shards_that_cannot_be_read_are_named_for_every_source(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.tar").write_bytes(b"x" * 1024)
    with pytest.raises(UserError, match=r"(?s)a: .*t.tar.*\nb: .*t.tar"):
        open_training({name: str(tmp_path / name) for name in "ab"}, {"a": 1, "b": 1}, str(tmp_path / "i"))


def test_the_identity_says_what_is_mixed(training: TrainingShards) -> None:
    identity = json.loads(json.dumps(training.identity(SMALL)))
    assert identity["sources"]["a"]["weight"] == "700 of 1000"
    assert identity["sources"]["b"]["shards"][0].startswith("t.tar 9 ")
    assert identity["sources"]["a"]["digest"] != identity["sources"]["b"]["digest"]
