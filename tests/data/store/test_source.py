"""Patterns become shards, and shards become bytes or a clear failure, never a hang."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.data.shard.index import open_index
from pretrain.data.store import patience, source
from pretrain.data.store.source import Reader, ReadError, expand
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Numbers
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards
from tests.data.store.servers import Handler, serving

Served = tuple[str, type[Handler]]


def test_folders_files_globs_braces_and_lists(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [1, 1, 1])
    assert expand(str(tmp_path / "d")) == (paths, [])
    assert expand(str(tmp_path / "d" / "*.tar")) == (paths, [])
    assert expand(str(tmp_path / "d" / "s-{000000..000002}.tar")) == (paths, [])
    assert expand(str(tmp_path / "d" / "s-00000{0,2}.tar")) == ([paths[0], paths[2]], [])
    assert expand([paths[2], str(tmp_path / "d" / "s-00000[01].tar")]) == ([paths[2], *paths[:2]], [])
    assert expand("pipe:sed 's/\\(.\\)/x/' {a,b}", allow_pipe=True)[0] == [f"pipe:sed 's/\\(.\\)/x/' {c}" for c in "ab"]
    assert expand("http://host/{a,b}.tar") == (["http://host/a.tar", "http://host/b.tar"], [])


def test_mistakes_are_said(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "d", [1, 1])
    for pattern, message in [
        (str(tmp_path / "nope" / "*.tar"), "no shard matches"),
        (str(tmp_path / "d" / "s-{000000..000004}.tar"), "3 of the 5 shards"),
        (str(tmp_path / "d" / "s-{000000..000001.tar"), "unbalanced braces"),
        ("foo://bucket/x.tar", "no protocol that fsspec knows"),
        ("pipe:cat x.tar", "data.allow_pipe=true"),
        ([paths[0], str(tmp_path / "d")], "listed more than once"),
        ([paths[0], str(tmp_path / "d" / ".." / "d" / "s-000000.tar")], "listed more than once"),
        ("http://[bad/x.tar", "is no address"),
        ("http:///x.tar", "it names no host"),
    ]:
        assert message in " ".join(expand(pattern)[1]), pattern


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """(address, handler) of a server of one shard."""
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    write_shards(tmp_path / "served", [3])
    with serving(tmp_path / "served") as both:
        yield both


@pytest.fixture
def server(served: Served) -> str:
    return served[0]


@pytest.mark.parametrize("mode", ["good", "whole", "flaky", "elsewhere", "moved", "idle"])
def test_http_shards_are_indexed_and_read(server: str, tmp_path: Path, mode: str) -> None:
    """By ranges or whole, through passing faults, wrong ranges, redirects and closed connections."""
    url = f"{server}/{mode}/s-000000.tar"
    opened = open_index([url], str(tmp_path / "i"))
    data = (tmp_path / "served" / "s-000000.tar").read_bytes()
    reader = Reader()
    for member in range(3):
        for part in opened.parts(0, member):
            assert reader.read(url, part.start, part.stop, len(data)) == data[part.start : part.stop]


FAULTS = [("missing", "404", 1), ("forbidden", "403", 1), ("cut", "too early", 3), ("stall", "timed out", 3)]
FAULTS += [("trickle", "bytes came in", 3), ("head", "bytes came in", 2), ("chunk", "bytes came in", 2)]
FAULTS += [("flaky", "503", 2), ("astray", "redirects to what is none", 1)]


@pytest.mark.parametrize(("mode", "message", "attempts"), FAULTS)
def test_http_failures_end_with_the_address_and_the_reason(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str, attempts: int
) -> None:
    """Whether the shard is read whole or by a range: what may pass is tried again, and nothing is awaited for ever."""
    server, handler = served
    if attempts > 1:
        monkeypatch.setattr(patience, "ATTEMPTS", attempts)
    if mode == "stall":
        monkeypatch.setattr(patience, "TIMEOUT", 0.5)
    elif message == "bytes came in":
        monkeypatch.setattr(patience, "allowed", lambda size: 0.5)
    url = f"{server}/{mode}/s-000000.tar"
    with pytest.raises(UserError, match=f"{mode}/s-000000.tar.*{message}"):
        open_index([url], str(tmp_path / "i"))
    assert len(handler.asked) == attempts
    handler.asked.clear()
    with pytest.raises(ReadError, match=f"{mode}/s-000000.tar.*{message}"):
        Reader().read(url, 0, 5000, (tmp_path / "served" / "s-000000.tar").stat().st_size)
    assert len(handler.asked) == attempts


def test_a_dying_server_ends_an_epoch_with_its_address(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with fewer batches, which would look like the end of the data."""
    server, _ = served
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    url = f"{server}/good/s-000000.tar"
    index = open_index([url], str(tmp_path / "i"))
    order = Order(index.counts, 0, Shuffle(streams=1, run_length=1, run_window=1, window=1))
    batches = iter(BatchStream(index, order, Numbers(0, 1, 1, 3000), (ViewSpec(8),), threads=2))
    next(batches)
    (tmp_path / "served" / "s-000000.tar").unlink()
    with pytest.raises(ReadError, match=f"cannot read `{url}`: .*404"):
        for _ in batches:
            pass


@pytest.mark.parametrize(
    ("mode", "message"), [("unnamed", "no Content-Range where bytes 0-99 were"), ("short", "bytes 0-9/")]
)
def test_a_part_that_is_not_stated_to_be_the_one_asked_for_is_not_believed(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    size = (tmp_path / "served" / "s-000000.tar").stat().st_size
    with pytest.raises(ReadError, match=message):
        Reader().read(f"{served[0]}/{mode}/s-000000.tar", 0, 100, size)


def test_a_whole_answer_that_was_cut_is_asked_for_again(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server says no length, only the index tells; if it stays so, either may be wrong."""
    server, handler = served
    data, reader = (tmp_path / "served" / "s-000000.tar").read_bytes(), Reader()
    assert reader.read(f"{server}/endless/s-000000.tar", 9, 99, len(data)) == data[9:99]
    reader.close()
    monkeypatch.setattr(patience, "ATTEMPTS", 3)
    handler.asked.clear()
    with pytest.raises(ReadError, match="either they were cut off each time, or it changed since"):
        Reader().read(f"{server}/endless/s-000000.tar", 9, 99, len(data) + 1)
    assert len(handler.asked) > 3


def test_connections_are_used_again(served: Served, tmp_path: Path) -> None:
    server, handler = served
    size, reader = (tmp_path / "served" / "s-000000.tar").stat().st_size, Reader()
    for start in range(20):
        reader.read(f"{server}/good/s-000000.tar", start, start + 10, size)
    assert handler.connections == 1


def test_a_connection_closed_while_idle_is_no_failed_attempt(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, handler = served
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    data = (tmp_path / "served" / "s-000000.tar").read_bytes()
    for start in range(4):
        assert Reader().read(f"{server}/idle/s-000000.tar", start, start + 9, len(data)) == data[start : start + 9]
    assert handler.connections == 4


def test_proxies_of_the_environment_are_used(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for the whole address."""
    server, _ = served
    data = (tmp_path / "served" / "s-000000.tar").read_bytes()
    seen: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(206)
            self.send_header("Content-Length", "5")
            self.send_header("Content-Range", f"bytes 0-4/{len(data)}")
            self.end_headers()
            self.wfile.write(data[:5])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert Reader().read(f"{server}/good/s-000000.tar", 0, 5, len(data)) == data[:5]
        assert seen == []
        assert Reader().read("http://example.invalid/x.tar", 0, 5, len(data)) == data[:5]
        assert seen == ["http://example.invalid/x.tar"]
        proxy.shutdown()


def test_a_shard_that_changed_since_it_was_indexed_is_not_read(server: str, tmp_path: Path) -> None:
    path = tmp_path / "served" / "s-000000.tar"
    with pytest.raises(ReadError, match="had 99 when it was indexed"):
        Reader().read(str(path), 0, 10, 99)
    with pytest.raises(ReadError, match="had 99 when it was indexed"):
        Reader().read(f"{server}/good/s-000000.tar", 0, 10, 99)


def test_nothing_is_asked_for_an_empty_member() -> None:
    assert Reader().read("http://127.0.0.1:9/x.tar", 7, 7, 99) == b""


def test_pipes_are_read_once_and_kept(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "d", [3])
    url = f"pipe:echo ran >> {tmp_path}/log; cat {path}"
    opened = open_index([url], str(tmp_path / "i"))
    data, reader = Path(path).read_bytes(), Reader()
    for part in (part for member in (2, 0, 1) for part in opened.parts(0, member)):
        assert reader.read(url, part.start, part.stop, len(data)) == data[part.start : part.stop]
    assert (tmp_path / "log").read_text() == "ran\n" * 2  # to index it, and to read it


FAILING = [
    ("exit 3", "exit code 3"),
    ("sleep 60", "wrote nothing for"),
    ("exec >&-; sleep 60", "closed its output, but"),
]


@pytest.mark.parametrize(("command", "message"), FAILING)
def test_failing_pipes_end_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    if command != "exit 3":
        monkeypatch.setattr(patience, "TIMEOUT", 2.0)
        monkeypatch.setattr(patience, "ATTEMPTS", 1)
    with pytest.raises(UserError, match=message):
        open_index([f"pipe:{command}"], str(tmp_path / "i"))


def test_many_shards_are_read_through_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_OPEN", 2)
    paths, reader = write_shards(tmp_path / "d", [1] * 6), Reader()

    def read_all() -> None:
        for path in paths * 20:
            assert reader.read(path, 0, 5, Path(path).stat().st_size) == Path(path).read_bytes()[:5]

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reader._files) <= 2
