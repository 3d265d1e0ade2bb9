"""Our callbacks are told what Lightning's are told, in the order in which they stand, among Lightning's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Batch
from pretrain.trainer.adapter import Adapter, adapted
from pretrain.trainer.events import AtBatch, AtClose, AtEnd, AtFirstBatch, AtStart
from pretrain.trainer.state import RunState
from tests.job import Job

SAID: list[str] = []


class Ours(StepCallback, AtStart, AtFirstBatch, AtBatch, AtEnd, AtClose):
    """Says what it is told."""

    def __init__(self, context: Context, name: str, fails: bool = False) -> None:
        self.name = name
        self.fails = fails

    def _say(self, what: str) -> None:
        SAID.append(f"{self.name} {what}")

    def on_train_start(self) -> None:
        self._say("start")

    def on_first_batch(self) -> None:
        self._say("first")

    def on_batch(self, batch: Batch) -> None:
        self._say(f"batch {len(batch)}")

    def after_step(self) -> None:
        self._say("step")
        if self.fails:
            raise ZeroDivisionError("planted")

    def on_train_end(self) -> None:
        self._say("end")

    def close(self, failed: bool) -> None:
        self._say(f"close {failed}")


class Lightnings(Callback):
    """Likewise, one of Lightning's."""

    def __init__(self, context: Context, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        SAID.append(f"{self.name} start")

    def on_train_batch_end(self, *_: Any) -> None:
        SAID.append(f"{self.name} batch end")

    def teardown(self, *_: Any, **__: Any) -> None:
        SAID.append(f"{self.name} close")


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    SAID.clear()


def node(kind: str, name: str, **arguments: object) -> list[str]:
    values = {"_target_": f"tests.trainer.test_adapter.{kind}", "_partial_": "true", "name": name, **arguments}
    return [f"+callbacks.{name}.{key}={value}" for key, value in values.items()]


def test_all_are_told_in_their_order_and_a_step_is_not_a_micro_batch(job: Job) -> None:
    words = [*node("Ours", "a"), *node("Lightnings", "b"), *node("Ours", "c")]
    job.run("allow_targets=[tests.trainer]", "max_steps=2", "max_micro_batch_size=4", *words)
    first = ["a first", "a batch 4", "c first", "c batch 4", "b batch end"]
    again = ["a batch 4", "c batch 4", "b batch end"]
    stepped = ["a batch 4", "c batch 4", "a step", "b batch end", "c step"]
    ends = ["a end", "c end", "a close False", "b close", "c close False"]
    starts = ["a start", "b start", "c start"]
    told = [*starts, *first, *stepped, *again, *stepped, *ends]
    assert told == SAID


def test_callbacks_of_lightning_need_no_context(job: Job) -> None:
    job.run(
        "max_steps=2", "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer", "+callbacks.timer.interval=step"
    )


def test_a_run_that_fails_is_closed_and_has_no_end(job: Job) -> None:
    with pytest.raises(ZeroDivisionError, match="planted"):
        job.run("allow_targets=[tests.trainer]", *node("Ours", "a", fails="true"))
    assert SAID == ["a start", "a first", "a batch 8", "a step", "a close True"]


def test_lightnings_loop_ends_when_the_state_says_so(tmp_path: Path) -> None:
    state, trainer, module = RunState(), Trainer(logger=False, accelerator="cpu"), LightningModule()
    (one,) = adapted([Ours(None, "a")], state)  # type: ignore[arg-type]
    assert isinstance(one, Adapter)
    one.on_train_batch_end(trainer, module, None, None, 0)
    assert not trainer.should_stop
    trainer.should_stop = True  # asked for by a callback of Lightning's: ours do not take it back
    one.on_train_batch_end(trainer, module, None, None, 1)
    assert trainer.should_stop
    trainer.should_stop, state.stopping = False, "all steps are done"
    one.on_train_batch_end(trainer, module, None, None, 2)
    assert trainer.should_stop


def test_a_class_that_is_no_callback_is_refused_without_an_import_of_lightnings() -> None:
    from pretrain.config.nodes import check_nodes

    nodes = {"callbacks": {"a": {"_target_": "pretrain.nn.block.Block"}}, "checkpoint": {"_target_": "torch.nn.Linear"}}
    assert [line.rpartition(": ")[2] for line in check_nodes(nodes)] == ["is no callback", "is no checkpoint"]
    assert not issubclass(nn.Linear, Callback)
