"""Shards in an object store are found, indexed and read like local ones, and what is wrong there is said at once."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pretrain.config.secret import hidden
from pretrain.data.module import ShardData
from pretrain.data.shard.index import open_index
from pretrain.data.store import objects, patience
from pretrain.data.store.objects import Objects
from pretrain.data.store.source import Access, Reader, ReadError, expand
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards

VIEWS = (ViewSpec(8),)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of a folder with three shards, the copies of those in tmp_path/d; named by the environment alone."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(patience, "PAUSE", 0.01)
    name = tmp_path.name.replace("_", "-").lower()
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir(name)
    for path in write_shards(tmp_path / "d", [10, 7, 3]):
        store.put_file(path, f"{name}/set/{Path(path).name}")
    store.pipe_file(f"{name}/set/notes.txt", b"no shard")
    return f"s3://{name}/set"


def test_folders_globs_and_braces(bucket: str) -> None:
    shards = [f"{bucket}/s-00000{number}.tar" for number in range(3)]
    for pattern in (bucket, f"{bucket}/", f"{bucket}/*.tar", f"{bucket}/s-{{000000..000002}}.tar", shards):
        assert expand(pattern) == (shards, []), pattern
    assert expand(f"{bucket}/s-00000{{0,2}}.tar")[0] == [shards[0], shards[2]]
    assert expand(f"{bucket}/s-00000[01].tar")[0] == shards[:2]
    assert expand(shards[1])[0] == [shards[1]]


def test_mistakes_are_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    monkeypatch.setattr(patience.time, "sleep", lambda _: tries.append("again"))
    for pattern, message in [
        (f"{bucket}/x-*.tar", "no shard matches"),
        (f"{bucket}/nothing.tar", f"no shard matches `{bucket}/nothing.tar`"),
        (f"{bucket}/s-{{000000..000004}}.tar", f"2 of the 5 shards of `{bucket}/s-{{000000..000004}}.tar` are missing"),
        ("s3://no-such-bucket/*.tar", "no shard matches"),
        ("s3://no-such-bucket/x.tar", "no shard matches"),
        ("foo://bucket/x.tar", "foo:// is no protocol"),
        ([bucket, f"{bucket}/s-000000.tar"], "listed more than once"),
    ]:
        assert message in " ".join(expand(pattern)[1]), pattern
    assert tries == []


def test_a_missing_driver_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "missing_driver", objects.missing_driver.__wrapped__)

    def lacking(scheme: str) -> Any:
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    assert "pip install 'pretrain[gs]'" in objects.missing_driver("gs://b/x.tar")
    assert "pip install ossfs" in objects.missing_driver("oss://b/x.tar")
    assert "Install it" in objects.missing_driver("sftp://h/x.tar")


def test_samples_equal_those_of_the_local_shards(bucket: str, tmp_path: Path) -> None:
    """By a reader process with threads of its own, to which only options travel."""
    remote = ShardData(f"{bucket}/*.tar", num_workers=2, index_dir=str(tmp_path / "i"))
    local = ShardData(str(tmp_path / "d"), num_workers=0, index_dir=str(tmp_path / "i"))
    assert remote.train.digest == local.train.digest
    ours, theirs = (data.batches(0, 0, 8, VIEWS) for data in (remote, local))
    for _, one, other in zip(range(4), ours, theirs, strict=False):
        assert one.keys == other.keys
        assert (one.views[0] == other.views[0]).all()


def test_threads_share_one_driver(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    kind = fsspec.get_filesystem_class("s3")
    original = kind.__init__
    monkeypatch.setattr(kind, "__init__", lambda self, **options: made.append(1) or original(self, **options))
    opened = open_index(expand(bucket)[0], str(tmp_path / "i"), access=Access())
    reader, made[:] = Reader(pickle.loads(pickle.dumps(opened.access))), []
    path = tmp_path / "d" / "s-000000.tar"
    data, wrong = path.read_bytes(), []

    def read(start: int) -> None:
        if reader.read(f"{bucket}/s-000000.tar", start, start + 100, len(data)) != data[start : start + 100]:
            wrong.append(start)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 4000, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(made) == 1


def test_options_reach_the_driver_and_secrets_are_shown_nowhere(
    bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = {"endpoint_url": s3, "key": "someone", "secret": "h1dden-w0rd"}
    store = Objects(options)
    assert len(expand(bucket, access=Access(store))[0]) == 3
    assert "h1dden-w0rd" not in repr(store) + repr(Access(store))
    assert hidden({"client_kwargs": {"aws_session_token": "x", "region_name": "y"}}) == {
        "client_kwargs": {"aws_session_token": "hidden", "region_name": "y"}
    }
    assert "h1dden-w0rd" not in str(store._translated(RuntimeError("the key h1dden-w0rd is wrong")))
    (mistake,) = expand(bucket, access=Access(Objects(options | {"nonsense": "h1dden-w0rd"})))[1]
    assert "nonsense" in mistake
    assert "h1dden-w0rd" not in mistake


def test_a_shard_that_vanished_or_changed_is_reported_at_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = expand(bucket)[0]
    size = (tmp_path / "d" / "s-000000.tar").stat().st_size
    tries: list[str] = []
    monkeypatch.setattr(patience.time, "sleep", lambda _: tries.append("again"))
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    with pytest.raises(ReadError, match=rf"{shards[0]}.* had 99 when it was indexed"):
        Reader().read(shards[0], 0, 10, 99)
    reader = Reader()
    reader.read(shards[0], 0, 10, size)
    store.rm_file(shards[0])
    with pytest.raises(ReadError, match=rf"{shards[0]}.*does not exist"):
        reader.read(shards[0], 10, 20, size)
    with pytest.raises(UserError, match=f"cannot read `{shards[0]}`"):
        open_index(shards, str(tmp_path / "i"))
    assert tries == []


class Driver:
    """A driver whose answers the test writes; `attempts` counts them."""

    async_impl = False
    failure: Exception

    def __init__(self, failure: Exception, times: int) -> None:
        self.failure, self.times, self.attempts = failure, times, 0

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.attempts += 1
        if self.attempts <= self.times:
            raise self.failure
        return bytes(end - start)

    def info(self, path: str) -> dict[str, Any]:
        return {"size": 99, "type": "file"}


class CodedError(Exception):
    """As gcsfs and azure raise them."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class NoCredentialsError(Exception):
    """As botocore raises it."""


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        (FileNotFoundError("gone"), 1),
        (PermissionError("Forbidden"), 1),
        (NoCredentialsError("Unable to locate credentials"), 1),
        (CodedError(403), 1),
        (CodedError(429), 5),
        (CodedError(503), 5),
        (OSError(16, "SlowDown"), 5),
        (OSError(22, "Bad Request"), 1),
        (RuntimeError("who knows"), 5),
    ],
)
def test_only_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, failure: Exception, attempts: int) -> None:
    monkeypatch.setattr(patience, "PAUSE", 0.001)
    for times in (99, attempts - 1):
        driver = Driver(failure, times)
        store = Objects()
        monkeypatch.setattr(store, "_driver", lambda url, driver=driver: (driver, url))
        reader = Reader(Access(store))
        if times == 99:
            with pytest.raises(ReadError, match=r"cannot read `s3://b/x.tar`: .*[A-Za-z]"):
                reader.read("s3://b/x.tar", 0, 10, 99)
            assert driver.attempts == attempts
        elif times:
            assert reader.read("s3://b/x.tar", 0, 10, 99) == bytes(10)


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers of large stores have time-outs of their own, of minutes, and none for a trickle; this one has none."""
    import asyncio

    from fsspec.asyn import get_loop

    class Silent:
        async_impl, loop, attempts = True, get_loop(), 0

        async def _cat_file(self, path: str, start: int, end: int) -> bytes:
            Silent.attempts += 1
            await asyncio.sleep(3600)
            return b""

        async def _info(self, path: str) -> dict[str, Any]:
            return {"size": 99, "type": "file"}

    monkeypatch.setattr(patience, "PAUSE", 0.001)
    monkeypatch.setattr(patience, "TIMEOUT", 0.05)
    store = Objects()
    monkeypatch.setattr(store, "_driver", lambda url: (Silent(), url))
    with pytest.raises(ReadError, match=r"cannot read `s3://b/x.tar`: it did not come within"):
        Reader(Access(store)).read("s3://b/x.tar", 0, 10, 99)
    assert Silent.attempts == 5


def test_who_may_not_list_may_read(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, original = Objects(), Objects._call

    def call(self: Objects, url: str, method: str, *rest: Any, **arguments: Any) -> Any:
        if method in ("ls", "glob"):
            raise PermissionError("Access Denied")
        return original(self, url, method, *rest, **arguments)

    monkeypatch.setattr(Objects, "_call", call)
    assert len(expand(f"{bucket}/s-{{000000..000002}}.tar", access=Access(store))[0]) == 3
    assert "Access Denied" in expand(f"{bucket}/*.tar", access=Access(store))[1][0]
