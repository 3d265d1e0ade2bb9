"""Servers of shards for tests: http with any fault, and an S3 store."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder; the first part of the path says how badly, the second names the file."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    asked: list[str]  # the paths of all requests
    tags: dict[str, str]  # versions of files, by name
    lock: threading.Lock
    connections: int  # so many were opened

    def setup(self) -> None:
        super().setup()
        self.served = 0
        with self.lock:
            type(self).connections += 1

    def do_GET(self) -> None:
        _, mode, name = self.path.split("/")
        self.served += 1
        with self.lock:
            self.asked.append(self.path)
            count = self.asked.count(self.path)
        if mode == "idle" and self.served > 1:  # the server has closed a connection that lay idle
            self.close_connection = True
            return
        status = {"missing": 404, "forbidden": 403}.get(mode, 503 if mode == "flaky" and count % 3 else 0)
        if status or not (self.folder / name).exists():
            self.send_error(status or 404)
            return
        if mode == "moved":
            self.send_response(302)
            self.send_header("Location", f"/good/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if mode == "astray":
            self.send_response(302)
            self.send_header("Location", "http://[bad")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif mode in ("head", "chunk"):
            self._drip(mode)
        elif mode == "endless":
            self._close_early(name, count)
        else:
            self._serve(mode, name, count)

    def _drip(self, mode: str) -> None:
        """A header, or the size of a chunk, that never ends: a byte now and then."""
        begin = "X-Slow: " if mode == "head" else "Transfer-Encoding: chunked\r\n\r\n1;"
        status = (
            "HTTP/1.1 206 P\r\nContent-Range: bytes 0-4999/5000" if self.headers.get("Range") else "HTTP/1.1 200 OK"
        )
        self.wfile.write(f"{status}\r\n{begin}".encode())
        while True:  # until the client hangs up
            self.wfile.write(b"x")
            time.sleep(0.02)

    def _close_early(self, name: str, count: int) -> None:
        """The whole, which ends where the connection does: too early the first two times."""
        data = (self.folder / name).read_bytes()
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if count < 3 else data)

    def _serve(self, mode: str, name: str, count: int) -> None:
        data = (self.folder / name).read_bytes()
        wanted = self.headers.get("Range")
        if mode != "whole" and wanted:
            start, stop = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
            if mode == "elsewhere" and count % 2:
                start, stop = start + 1, stop + 1
            self.send_response(206)
            stop = min(stop, 9) if mode == "short" else stop
            if mode != "unnamed":
                self.send_header("Content-Range", f"bytes {start}-{stop}/{len(data)}")
            data = data[start : stop + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if name in self.tags:
            self.send_header("ETag", self.tags[name])
        self.end_headers()
        if mode == "stall":
            time.sleep(3)
        if mode == "trickle":
            for _ in range(100):
                self.wfile.write(data[:1])
                data = data[1:]
                time.sleep(0.02)
        if mode == "cut":
            self.close_connection = True
        self.wfile.write(data[: len(data) // 2] if mode == "cut" else data)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """A client that hangs up is what some tests are about."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, type[Handler]]]:
    """(address, handler) of an http server of a folder."""
    state = {"folder": folder, "asked": [], "tags": {}, "lock": threading.Lock(), "connections": 0}
    handler = type("H", (Handler,), state)
    with Server(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()
