"""Secrets of the environment, of options and of addresses end in no file of a run and in no line that it says."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pretrain.config import secret
from pretrain.config.arguments import quote
from pretrain.config.check import mistakes
from pretrain.data.shard.index import open_index
from pretrain.records import UserError
from tests.job import Job
from tests.scripts import run_script

VARIABLE, PASSWORD, SIGNATURE, OPTION = "envs3cret-0123", "passw0rd-4567", "s1gn4ture/89+=", "0ption-s3cret"
ALL = (VARIABLE, PASSWORD, SIGNATURE, OPTION)


def holds_none(text: str | bytes) -> bool:
    content = text.encode() if isinstance(text, str) else text
    return not any(one.encode() in content for one in ALL)


def assert_clean(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if not holds_none(path.read_bytes())] == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, whatever the query is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MY_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "X_CREDENTIALS"):
        monkeypatch.setenv(name, VARIABLE)
    monkeypatch.setenv("WANDB_MODE", "offline")


def address(host: str, shard: str, signature: str = SIGNATURE) -> str:
    there = host.replace("http://", f"http://user:{PASSWORD}@")
    return f"{there}/{shard}?X-Amz-Credential=a/b/s3&X-Amz-Signature={signature}&id=5"


def test_a_run_keeps_its_secrets(job: Job, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in job.shards.glob("*.tar"))
    caplog.handler.addFilter(secret.Filter())
    with serving(job.shards) as host:
        urls = ",".join(address(host, name) for name in names)
        words = quote([f"data.train=[{urls}]", f"data.index_dir={job.out / 'index'}"])
        words += ["callbacks.log.wandb=offline", "callbacks.log.project=${oc.env:MY_API_KEY}", "max_steps=2"]
        words.append(f"data.storage_options={{secret: {OPTION}, client_kwargs: {{region_name: here}}}}")
        first = job.run(*words)
        again = ",".join(address(host, name, "another-s1gnature") for name in names)
        second = job.run(*quote([f"data.train=[{again}]", f"data.index_dir={job.out / 'index'}"]), *words[2:])
    assert second.folder.run_id == first.folder.run_id  # a new signature is the same run
    assert_clean(job.out)
    assert b"another-s1gnature" not in b"".join(path.read_bytes() for path in job.out.rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert holds_none(caplog.text + said.out + said.err)
    saved = OmegaConf.load(job.out / "config.yaml")
    assert saved.callbacks.log.project == secret.HIDDEN
    assert saved.data.storage_options == {"secret": secret.HIDDEN, "client_kwargs": {"region_name": "here"}}
    assert saved.data.train[0] == host.replace("http://", "http://hidden@") + f"/{names[0]}?hidden"
    rows = json.loads((job.out / "run.json").read_text())["identity"]["data"]["shards"]
    assert [row.split()[0] for row in rows] == [f"{name}?hidden" for name in names]


def test_refusals_keep_secrets(job: Job, tmp_path: Path) -> None:
    gone = address("http://127.0.0.1:9", "x.tar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.data.store.patience.PAUSE", 0.0)
        with pytest.raises(UserError, match=r"http://hidden@127.0.0.1:9/x.tar\?hidden") as refusal:
            open_index([gone], str(tmp_path / "i"))
        assert holds_none(str(refusal.value))
        result = run_script("shards", "action=verify", f"data={gone}", f"out={tmp_path / 'findings.json'}")
    assert result.returncode == 1
    assert holds_none(result.stdout + result.stderr)
    assert_clean(tmp_path)
    for words in (
        [f"data.storage_option={{secret: {OPTION}}}"],
        [f"data.storage_options.secret={OPTION}"],
        [f"+data.api_token={OPTION}"],
        [f"data.train=s4://user:{PASSWORD}@h/x.tar"],
        ["optim.lr=${oc.env:MY_API_KEY}"],
    ):
        lines = mistakes(quote(job.overrides(*words)))
        assert lines, words
        assert holds_none("\n".join(map(secret.typed, lines))), lines


def test_results_of_probes_keep_secrets(job: Job) -> None:
    job.run("max_steps=1")
    with serving(job.shards) as host:
        url, out = address(host, "s-000000.tar"), job.tmp / "results" / "knn.json"
        words = [f"checkpoint={job.out}", f"train={url}", f"val={url}", f"index_dir={job.tmp / 'i'}", f"out={out}"]
        result = run_script("knn", *words, "num_workers=0")
    assert result.returncode == 0, result.stderr
    assert_clean(out.parent)
    assert holds_none(result.stdout + result.stderr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@h/x.tar", "https://hidden@h/x.tar"),
        ("https://token@h/x.tar", "https://hidden@h/x.tar"),
        ("https://u:p@ss@h:80/x-{0..3}.tar?a=b", "https://hidden@h:80/x-{0..3}.tar?a=b"),
        ("abfss://container@account.dfs/x.tar", "abfss://container@account.dfs/x.tar"),
        ("sftp://me@h/x.tar", "sftp://me@h/x.tar"),
        ("https://h/x.tar?sv=1&sig=abc%3D", "https://h/x.tar?hidden"),
        ("https://h/d?id=5", "https://h/d?id=5"),
        ("https://h/x#token=a", "https://h/x#hidden"),
        ("[`https://h/a?Signature=b`, `s3://k:s@b/x`]", "[`https://h/a?hidden`, `s3://hidden@b/x`]"),
        (
            "pipe:curl -H 'Authorization: Bearer abc' https://h/x",
            "pipe:curl -H 'Authorization: Bearer hidden' https://h/x",
        ),
        (f"a {VARIABLE} b", "a hidden b"),
        ("d/x.tar", "d/x.tar"),
    ],
)
def test_what_is_shown_of_a_text(text: str, expected: str) -> None:
    assert secret.shown(text) == expected
    assert secret.shown(expected) == expected


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert secret.shown(f"false in {tmp_path}") == f"false in {tmp_path}"
    plain = {"encoder": {"mask_token": "learned", "depth": 3}, "seed": 1, "data": {"labels": "json:KEY", "skip": None}}
    assert secret.recorded(plain) == plain
    assert secret.recorded({"callback": {"api_key": "abc", "n": 3}}) == {"callback": {"api_key": "hidden", "n": 3}}


def test_the_log_of_every_library_is_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("urllib3", 30, "", 0, "retry %s", (f"https://u:{PASSWORD}@h/",), None)
    try:
        raise RuntimeError(VARIABLE)
    except RuntimeError as failure:
        record.exc_info = (RuntimeError, failure, failure.__traceback__)
    secret.Filter().filter(record)
    assert holds_none(logging.Formatter().format(record))
    assert "retry https://hidden@h/" in record.getMessage()


def test_a_sweep_keeps_secrets(job: Job) -> None:
    from tests.test_main import pretrain

    words = [f"data.storage_options={{secret: {OPTION}}}", "max_steps=1", "base_lr=1e-3,1e-4"]
    result = pretrain("--multirun", *job.overrides(*words), cwd=job.tmp)
    assert result.returncode == 0, result.stderr
    assert_clean(job.out)


def test_what_decides_whose_run_it_is_keeps_secrets(job: Job) -> None:
    (job.shards / "s-000000.tar").rename(job.shards / f"s-{VARIABLE}.tar")
    first = job.run("max_steps=1")
    assert first.folder.run_id == job.run("max_steps=1").folder.run_id
    assert_clean(job.out)


def test_a_sentence_keeps_secrets() -> None:
    assert str(UserError(f"{VARIABLE} https://u:{PASSWORD}@h/x")) == "hidden https://hidden@h/x"
