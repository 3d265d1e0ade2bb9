"""wandb: a copy of the metrics that training neither stops nor waits for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pretrain.callbacks import wandb
from pretrain.callbacks.wandb import WandbProcess
from tests.job import Job


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_without_a_key_it_is_offline_and_says_so_in_one_line(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "_PATIENCE", 600.0)
    with caplog.at_level(logging.INFO):
        job.run("callbacks.log.wandb=auto", f"data.val={job.shards}", "callbacks.evaluate.every_steps=5")
    lines = [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]
    assert lines == [
        f"wandb: offline, in {job.out / 'wandb'} (no key: log in by `wandb login`); `wandb sync` uploads it"
    ]
    (file,) = (job.out / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(name in content for name in (b"train/loss", b"train/grad_norm", b"val/loss", b"speed/data_wait"))
    assert content.count(b"progress/samples_seen") >= 12  # a row a step


def test_a_service_that_cannot_be_reached_costs_no_time_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb, "_PATIENCE", 600.0)
    process = WandbProcess(tmp_path, "p", "n", "id1", {}, "auto")
    os.kill(process._process.pid or 0, signal.SIGSTOP)  # it cannot be waited for
    for step in range(100):
        process.write(step, {"loss": 1.0})
    os.kill(process._process.pid or 0, signal.SIGCONT)
    process.close()
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("wandb: offline")]
    assert len(lines) == 1
    assert f"in {tmp_path}/wandb (cannot reach 127.0.0.1:" in lines[0]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_service_that_never_answers_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and says nothing
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr(wandb, "_PATIENCE", 1.0)
        start = time.monotonic()
        process = WandbProcess(tmp_path, "p", "n", "id1", {}, "auto")
        process.write(0, {"loss": 1.0})
        process.close()
    assert time.monotonic() - start < 30.0
    assert "metrics.jsonl" in caplog.text


@pytest.mark.parametrize(
    ("netrc", "expected"), [("machine api.wandb.ai login user password x", True), ("machine x", False)]
)
def test_a_key_may_stand_in_the_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str, expected: bool
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb._has_key() is expected
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb._has_key()
