"""Shards on http(s) servers: whole, or by ranges, over connections that are kept open.

Threads share one pool of connections a proxy; the proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`, …).
A connection that the server closed while it lay idle is replaced at once, which is no failed attempt.
"""

from __future__ import annotations

import functools
import http.client
import io
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, IncompleteRead, ProtocolError

from pretrain.data.store import patience

_CONNECTIONS = 64  # kept open to one server
_PIECE = 1 << 18
_REDIRECTS = urllib3.Retry(total=None, connect=False, read=False, other=False, redirect=10)


def is_web(shard: str) -> bool:
    return shard.startswith(("http://", "https://"))


@contextmanager
def stream(url: str) -> Iterator[Callable[[int], bytes]]:
    """A function that gives at most so many of the next bytes, and b"" at their end.

    Raises:
        OSError: the server cannot be reached, said no, went silent or ended too early.
    """
    with _opened(url) as response:
        yield _body(response)


def read_range(url: str, start: int, stop: int) -> tuple[bytes, int | None] | None:
    """(bytes start … stop of a URL, how many it has if the server says so); None from servers that send it whole only.

    Raises:
        OSError: as above, or other bytes came.
    """
    with _opened(url, {"Range": f"bytes={start}-{stop - 1}"}) as response:
        if response.status != 206:
            return None
        content = response.headers.get("Content-Range", "no Content-Range")
        if not re.match(rf"bytes[ =]{start}-{stop - 1}(/|$)", content.strip()):
            raise OSError(f"the server answered with {content} where bytes {start}-{stop - 1} were asked for")
        read, parts, left = _body(response), [], stop - start
        while left > 0 and (part := read(left)):
            parts.append(part)
            left -= len(part)
        if left or read(1):
            raise OSError(f"{'fewer' if left else 'more'} bytes came than the {stop - start} that were asked for")
        return b"".join(parts), _total(response)


def version(url: str) -> tuple[int | None, str]:
    """(how many bytes a URL has if the server says so, what it calls this version of them), read from an answer's head.

    Not every server answers HEAD, and signed addresses are signed for GET alone: one byte is asked for.
    """
    with _opened(url, {"Range": "bytes=0-0"}) as response:
        headers = response.headers
        if response.status == 206:
            _body(response)(1)
        return _total(response), headers.get("ETag") or headers.get("Last-Modified") or ""


def _total(response: urllib3.BaseHTTPResponse) -> int | None:
    """The size of the whole, by the head of an answer."""
    name = "Content-Range" if response.status == 206 else "Content-Length"
    total = response.headers.get(name, "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


@contextmanager
def _opened(url: str, headers: dict[str, str] | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
    """An answer without an error. Its connection is used again if its body was read to the end."""
    try:
        response = _ask(url, headers or {})
        try:
            if patience.refuses(response.status):
                raise patience.RefusedError(_status(response))
            if response.status >= 300:
                raise OSError(_status(response))
            yield response
        finally:
            if not response.closed:
                response.close()
            response.release_conn()
    except HTTPError as failure:
        raise OSError(_reason(failure)) from failure


def _ask(url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    pool, timeout = _pool(_proxy(url)), urllib3.Timeout(patience.TIMEOUT)
    headers = {"Accept-Encoding": "identity", "User-Agent": "pretrain"} | headers

    def ask() -> urllib3.BaseHTTPResponse:
        return pool.request(
            "GET",
            url,
            headers=headers,
            timeout=timeout,
            retries=_REDIRECTS,
            preload_content=False,
            decode_content=False,
        )

    try:
        try:
            return ask()
        except ProtocolError as failure:  # before any answer: most likely an idle connection that the server had closed
            if not isinstance(failure.args[-1], http.client.RemoteDisconnected | ConnectionError):
                raise
            return ask()
    except ValueError as failure:
        raise patience.RefusedError(f"it is no address, or redirects to what is none ({failure})") from failure


def _body(response: urllib3.BaseHTTPResponse) -> Callable[[int], bytes]:
    """Reads what has come. A connection that is cut is an error, not an end."""
    return lambda size: response.read1(min(size, _PIECE))


def _status(response: urllib3.BaseHTTPResponse) -> str:
    return f"HTTP error {response.status} ({response.reason})"


def _reason(failure: HTTPError) -> str:
    """The cause in short, without the names of the library's objects."""
    cause = failure.args[-1] if failure.args else failure
    if isinstance(cause, IncompleteRead):
        return f"the connection ended {cause.expected} bytes too early"
    return re.sub(r"^.*Pool\(.*?\): |^.*Connection\(.*?\): ", "", str(cause)) or type(cause).__name__


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address."""
    parts = urlsplit(url)
    if parts.hostname is None or urllib.request.proxy_bypass(parts.hostname):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return found if not found or "://" in found else f"http://{found}"


@functools.cache
def _pool(proxy: str | None) -> urllib3.PoolManager:
    manager = _manager(proxy)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return manager


def _manager(proxy: str | None) -> urllib3.PoolManager:
    context = ssl.create_default_context()  # the system's certificates, or those of SSL_CERT_FILE
    if proxy is None:
        return urllib3.PoolManager(maxsize=_CONNECTIONS, ssl_context=context)
    parts = urlsplit(proxy)
    who = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=who)
    return urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS, ssl_context=context, proxy_headers=headers)


class _Paced(io.RawIOBase):
    """What a socket receives for one answer, head and all, at the least pace.

    The socket's own timeout ends one wait only: a server that sends a byte of a header, or of a chunk's size, now and
    then would hold its reader for ever.
    """

    def __init__(self, socket: io.RawIOBase) -> None:
        self._socket, self._pace = socket, patience.Pace()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            return len(self._pace.keep(lambda: view[: self._socket.readinto(view)]))  # type: ignore[attr-defined]

    def close(self) -> None:
        self._socket.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
