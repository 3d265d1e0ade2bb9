"""Patterns become shards, and shards become bytes or a clear failure, never a hang."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.data import patience, source
from pretrain.data.index import open_index
from pretrain.data.source import Reader, ReadError, expand
from pretrain.records import UserError
from tests.data.shards import write_shards


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


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder; the first part of the path says how badly."""

    folder: Path
    attempts: dict[str, int]

    def do_GET(self) -> None:
        _, mode, name = self.path.split("/")
        count = self.attempts[self.path] = self.attempts.get(self.path, 0) + 1
        if mode == "missing" or (mode == "flaky" and count % 3):
            self.send_error(404 if mode == "missing" else 503)
            return
        data = (self.folder / name).read_bytes()
        wanted = self.headers.get("Range")
        if mode != "whole" and wanted:
            start, stop = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
            if mode == "elsewhere" and count % 2:
                start, stop = start + 1, stop + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(data)}")
            data = data[start : stop + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if mode == "stall":
            time.sleep(3)
        self.wfile.write(data[: len(data) // 2] if mode == "cut" else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    monkeypatch.setattr(patience, "TIMEOUT", 0.5)
    write_shards(tmp_path / "served", [3])
    handler = type("H", (Handler,), {"folder": tmp_path / "served", "attempts": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("mode", ["good", "whole", "flaky", "elsewhere"])
def test_http_shards_are_indexed_and_read(server: str, tmp_path: Path, mode: str) -> None:
    """With ranges, from a server that knows none, through passing faults, and where another range is answered."""
    url = f"{server}/{mode}/s-000000.tar"
    opened = open_index([url], str(tmp_path / "i"))
    data = (tmp_path / "served" / "s-000000.tar").read_bytes()
    reader = Reader()
    for member in range(3):
        for part in opened.parts(0, member):
            assert reader.read(url, part.start, part.stop, len(data)) == data[part.start : part.stop]


@pytest.mark.parametrize(("mode", "message"), [("missing", "404"), ("cut", "too early"), ("stall", "timed out")])
def test_http_failures_end_with_the_address_and_the_reason(
    server: str, tmp_path: Path, mode: str, message: str
) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{mode}/s-000000.tar.*{message}"):
        open_index([f"{server}/{mode}/s-000000.tar"], str(tmp_path / "i"))
    assert time.monotonic() - start < 20


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


@pytest.mark.parametrize(("command", "message"), [("exit 3", "exit code 3"), ("sleep 5", "wrote nothing for")])
def test_failing_pipes_end_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    monkeypatch.setattr(patience, "TIMEOUT", 0.3)
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
