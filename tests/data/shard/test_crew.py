"""An index of many shards: built by several processes, killed, shared, and the same whoever builds it."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretrain.config.problem import UserError
from pretrain.data.shard import claim, crew, index, listing, sidecar
from pretrain.data.shard.claim import Claims
from pretrain.data.shard.index import Index, open_index
from pretrain.data.store import source
from tests.data.shards import image_bytes, write_shards, write_tar

# A build by hand, slow enough to be caught: each shard that is scanned is noted, then waits a little. Once it has noted
# so many it waits for another's log to have ten lines, too, if it is told to.
BUILD = """
    import sys, time
    from pathlib import Path
    from pretrain.data.shard import claim
    from pretrain.data.shard import crew
    from pretrain.data.shard import sidecar
    from pretrain.data.shard.index import open_index
    def lines(path):
        return Path(path).exists() and len(Path(path).read_text().split())
    original = sidecar._scan
    def scan(url, access):
        with open(sys.argv[3], "a") as file:
            file.write(Path(url).name + "\\n")
        time.sleep(0.01)
        while len(sys.argv) > 4 and lines(sys.argv[3]) >= int(sys.argv[5]) and lines(sys.argv[4]) < 10:
            time.sleep(0.01)
        return original(url, access)
    sidecar._scan = scan
    claim._STALE = 1e9
    urls = sorted(str(path) for path in Path(sys.argv[1]).glob("*.tar"))
    print("ready", flush=True)
    sys.stdin.readline()
    print(open_index(urls, sys.argv[2]).digest)
"""


def build(folder: Path, cache: Path, log: Path, *hold: object) -> subprocess.Popen[str]:
    """Starts to build an index in another process, once it is sent a line."""
    words = [sys.executable, "-c", textwrap.dedent(BUILD), str(folder), str(cache), str(log), *map(str, hold)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes], str]:
    """(60 shards, what an index of them by one thread holds, its digest)."""
    folder = tmp_path_factory.mktemp("many")
    urls = write_shards(folder / "d", [1 + number % 3 for number in range(60)])
    (folder / "i").mkdir()
    for url, path in listing.sidecars(urls, folder / "i").items():
        sidecar.scan(url, path)
    plain = contents(folder / "i")
    return urls, plain, open_index(urls, str(folder / "i")).digest


Many = tuple[list[str], dict[str, bytes], str]


def test_processes_build_what_one_thread_builds(many: Many, tmp_path: Path) -> None:
    urls, expected, digest = many
    shards = {shard.url: shard for shard in crew.scan_all(listing.sidecars(urls, tmp_path), processes=2)}
    assert contents(tmp_path) == expected
    assert Index([shards[url] for url in urls]).digest == digest


def test_many_shards_get_processes_and_few_do_not(many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(crew, "_processes", lambda count, *how: started.append(count) or crew._here(*how))
    monkeypatch.setattr(crew, "_FEW", 60)
    open_index(many[0][:59], str(tmp_path / "few"))
    assert started == []
    open_index(many[0], str(tmp_path / "many"))
    assert len(started) == 1
    assert started[0] >= 4


def test_a_process_that_is_killed_ends_the_build_with_a_sentence_and_the_next_goes_on(
    many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_serve", _kill_itself)
    sidecars = listing.sidecars(many[0], tmp_path)
    with pytest.raises(UserError, match="was killed, perhaps for want of memory; start again"):
        crew.scan_all(sidecars, processes=1)
    monkeypatch.undo()
    crew.scan_all(sidecars)
    assert contents(tmp_path) == many[1]


def _kill_itself(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_build_that_is_killed_goes_on_where_it_stopped(many: Many, tmp_path: Path) -> None:
    urls, expected, digest = many
    cache, log = tmp_path / "i", tmp_path / "log"
    process = build(Path(urls[0]).parent, cache, log, tmp_path / "never", 40)
    go(process)
    deadline = time.monotonic() + 120
    while len(list(cache.glob("*.idx"))) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    found = contents(cache)
    whole = {name: content for name, content in found.items() if name.endswith(".idx")}
    assert 20 <= len(whole) < 60
    assert whole.items() <= expected.items()  # what looks whole is whole
    first = log.read_text().split()
    again = build(Path(urls[0]).parent, cache, log)
    go(again)
    assert again.communicate(timeout=300)[0] == f"{digest}\n"  # a claim whose process has died is void at once
    second = log.read_text().split()[len(first) :]
    assert len(second) == 60 - len(whole)
    assert {path.name: path.read_bytes() for path in cache.glob("*.idx")} == expected
    left = {path.name.removesuffix(".claim") for path in cache.glob("*.claim")}
    assert left <= whole.keys()  # killed between the sidecar and the end of the claim, which is asked for by nobody now


def test_two_builders_divide_the_work(many: Many, tmp_path: Path) -> None:
    urls, expected, digest = many
    cache = tmp_path / "i"
    logs = [tmp_path / f"log{number}" for number in range(2)]
    builders = [build(Path(urls[0]).parent, cache, logs[number], logs[1 - number], 10) for number in range(2)]
    for one in builders:
        go(one)
    for one in builders:
        out, err = one.communicate(timeout=300)
        assert out == f"{digest}\n", err
    assert contents(cache) == expected  # and no claim is left
    scanned = [log.read_text().split() for log in logs]
    assert sorted(scanned[0] + scanned[1]) == [Path(url).name for url in urls]  # each once
    assert min(map(len, scanned)) >= 10


def test_damaged_shards_are_all_named_by_processes_too(tmp_path: Path) -> None:
    urls = write_shards(tmp_path / "d", [2] * 4)
    os.truncate(urls[1], 700)
    os.truncate(urls[3], 700)
    with pytest.raises(UserError, match=r"s-000001\.tar` is no whole tar(.|\n)*s-000003\.tar` is no whole tar"):
        crew.scan_all(listing.sidecars(urls, tmp_path), processes=2)
    assert len(list(tmp_path.glob("*.idx"))) == 2
    assert not list(tmp_path.glob("*.claim"))


@pytest.fixture
def claims() -> Iterator[Claims]:
    with Claims() as made:
        yield made


def test_a_claim_is_one_processs(tmp_path: Path, claims: Claims) -> None:
    with Claims() as others, claims.claim(tmp_path / "c") as ours, others.claim(tmp_path / "c") as theirs:
        assert (ours, theirs) == (True, False)
    with claims.claim(tmp_path / "c") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_another_machine_is_void_when_nobody_touches_it(
    tmp_path: Path, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its clock says: only that the time of the file does not change counts."""
    os.symlink("elsewhere 1", tmp_path / "c")
    now = [1000.0]
    monkeypatch.setattr(claim.time, "monotonic", lambda: now[0])
    for passed, touched, expected in [(0, 1, False), (59, 1, False), (30, 2, False), (59, 2, False), (2, 2, True)]:
        now[0] += passed
        os.utime(tmp_path / "c", (touched, touched), follow_symlinks=False)
        with claims.claim(tmp_path / "c") as ours:
            assert ours == expected, (passed, touched)


def test_a_claim_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT", 0.01)
    with Claims() as claims, claims.claim(tmp_path / "c"):
        os.utime(tmp_path / "c", (1, 1), follow_symlinks=False)
        deadline = time.monotonic() + 120
        while os.lstat(tmp_path / "c").st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were read from end to end."""
    seen: list[str] = []
    original = sidecar._scan
    monkeypatch.setattr(sidecar, "_scan", lambda url, access: (seen.append(Path(url).name), original(url, access))[1])
    return seen


def test_a_list_that_grows_costs_its_new_shards_alone(tmp_path: Path, scans: list[str]) -> None:
    urls = write_shards(tmp_path / "d", [1, 2, 3])
    open_index(urls[:2], str(tmp_path / "i"))
    scans.clear()
    assert open_index(urls, str(tmp_path / "i")).counts == [1, 2, 3]
    assert scans == ["s-000002.tar"]


def test_the_second_opening_reads_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = write_shards(tmp_path / "d", [1, 2])
    first = open_index(urls, str(tmp_path / "i"))
    monkeypatch.setattr(listing, "from_sidecar", None)  # it would be an error to open a sidecar
    again = open_index(urls, str(tmp_path / "i"))
    assert again.shards == first.shards
    monkeypatch.undo()
    for content in ("", "[]", '{"format": 1}', '{"format": 2, "count": [1, 2]}'):  # whatever happened to the table
        (table,) = (tmp_path / "i" / "lists").iterdir()
        table.write_text(content)
        assert open_index(urls, str(tmp_path / "i")).shards == first.shards


def test_shards_of_one_name_in_two_folders_have_a_sidecar_each(tmp_path: Path) -> None:
    urls = [*write_shards(tmp_path / "a", [2]), *write_shards(tmp_path / "b", [3])]
    opened = open_index(urls, str(tmp_path / "i"))
    assert opened.counts == [2, 3]
    assert [len(opened.parts(shard, count - 1)) for shard, count in enumerate(opened.counts)] == [2, 2]
    assert len(list((tmp_path / "i").glob("*-s-000000.tar.idx"))) == 2


def test_mappings_are_bounded_and_hold_no_descriptor(
    many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_index(many[0], str(tmp_path / "i"))
    opened.key(0, 0)
    monkeypatch.setattr(index, "_MAPPED", 7)
    for shard in range(60):
        assert opened.key(shard, 0) == opened.key(shard, 0)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / "i") in line]
    assert len(mapped) == 7
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.startswith(str(tmp_path))]
    sent = pickle.dumps(opened)
    assert len(sent) < 60 * 400
    assert not pickle.loads(sent)._sidecars


def test_threads_may_look_up_anything_while_mappings_come_and_go(
    many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_index(many[0], str(tmp_path / "i"))
    expected = [[opened.key(shard, member) for member in range(count)] for shard, count in enumerate(opened.counts)]
    opened = open_index(many[0], str(tmp_path / "i"))
    monkeypatch.setattr(index, "_MAPPED", 3)
    start = threading.Barrier(8)

    def look(thread: int) -> list[list[str]]:
        start.wait()
        places = [(7 * thread + step) % 60 for step in range(120)]
        found = {shard: [opened.key(shard, member) for member in range(opened.counts[shard])] for shard in places}
        return [found[shard] for shard in range(60)]

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(look, range(8)))
    assert len(opened._sidecars) <= 3


def age(path: Path) -> None:
    """Makes a sidecar one of the older version, which knew fewer members."""
    path.write_bytes(b"PRTIDX1\n" + path.read_bytes()[8:])


def test_sidecars_of_the_older_version_are_built_again(tmp_path: Path, scans: list[str]) -> None:
    urls = write_shards(tmp_path / "d", [2, 1])
    expected = open_index(urls, str(tmp_path / "i")).shards
    for path in (tmp_path / "i").glob("*.idx"):
        age(path)
    for table in (tmp_path / "i" / "lists").iterdir():
        table.unlink()
    scans.clear()
    opened = open_index(urls, str(tmp_path / "i"))
    assert sorted(scans) == ["s-000000.tar", "s-000001.tar"]
    assert opened.shards == expected
    assert opened.key(1, 0) == "00002"


def test_an_older_index_beside_shards_gives_way_to_the_cache(tmp_path: Path, scans: list[str]) -> None:
    """As on storage that cannot be written; beside the shards nothing changes."""
    urls = write_shards(tmp_path / "d", [2, 1])
    index.write_index(tmp_path / "d", [sidecar.scan(url, Path(f"{url}.idx")) for url in urls])
    path = tmp_path / "d" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    for url in urls:
        age(Path(f"{url}.idx"))
    before = contents(tmp_path / "d")
    scans.clear()
    opened = open_index(urls, str(tmp_path / "i"))
    assert (opened.counts, opened.key(0, 1)) == ([2, 1], "00001")
    assert sorted(scans) == ["s-000000.tar", "s-000001.tar"]
    assert contents(tmp_path / "d") == before
    assert index.owns_index(tmp_path / "d")  # a further set may be written there


def test_a_sidecar_of_another_shard_is_never_used(tmp_path: Path) -> None:
    urls = write_shards(tmp_path / "d", [2, 1])
    opened = open_index(urls, str(tmp_path / "i"))
    os.replace(opened.shards[0].sidecar, opened.shards[1].sidecar)
    with pytest.raises(UserError, match=r"is of another `s-000001\.tar`: delete it"):
        opened.key(1, 0)
    with pytest.raises(UserError, match="is gone since the run began"):
        opened.key(0, 0)
    write_tar(Path(urls[0]), [("x.png", image_bytes(9))])
    assert open_index(urls, str(tmp_path / "i")).counts == [1, 1]


def test_scanning_needs_no_torch() -> None:
    """A process for each core starts for it."""
    code = "import sys, pretrain.data.shard.crew; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_nobody_foresaw_is_said_of_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that scans goes on with the next shard."""
    ours, theirs = multiprocessing.Pipe()

    def fail(*_: object) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(crew, "scan", fail)
    thread = threading.Thread(target=crew._serve, args=(theirs, "data.", source.PLAIN))
    thread.start()
    for url in write_shards(tmp_path / "d", [1, 1]):
        ours.send((url, tmp_path / f"{Path(url).name}.idx"))
        assert ours.recv() == f"`{url}` cannot be indexed: MemoryError: too large"
    ours.close()
    thread.join()
