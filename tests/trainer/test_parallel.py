"""The hardware of a run: which precision it picks, and what it says where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.config import check
from pretrain.overrides import composed
from pretrain.trainer.parallel import Hardware, resolve_precision


def test_no_gpu_is_one_sentence_that_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = [line for line in check(composed(["trainer=one_gpu"])) if line.startswith("trainer")]
    assert lines == [
        "trainer.accelerator=null: needs a GPU, and torch finds none here: train on the CPU with trainer=cpu"
    ]
    assert not list(Hardware.problems("one", "cpu", "cpu", None, None, 30.0))


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx", [False, True])
def test_a_cpu_takes_bf16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("cpu") == ("bf16-mixed" if avx or amx else "32-true")


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_takes_bf16_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert resolve_precision("gpu") == ("bf16-mixed" if native else "32-true")


def test_what_is_asked_for_is_taken() -> None:
    hardware = Hardware("one", "cpu", precision="bf16-mixed", deterministic=True)
    assert hardware.dtype == torch.bfloat16
    arguments = hardware.trainer_arguments(nn.Module())  # type: ignore[arg-type]
    assert (arguments["accelerator"], arguments["devices"]) == ("cpu", 1)
    assert (arguments["precision"], arguments["deterministic"]) == ("bf16-mixed", True)
