"""Every kernel computes the same attention, and the right one is picked."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

from pretrain.nn import attention
from pretrain.nn.attention import Attention, attend, kernel_for
from pretrain.nn.block import Block


def by_loops(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(q.shape[0], q.shape[1], *v.shape[2:], dtype=q.dtype)
    for b in range(q.shape[0]):
        for head in range(q.shape[2]):
            for i in range(q.shape[1]):
                logits = torch.stack([q[b, i, head] @ k[b, j, head] for j in range(k.shape[1])]) / math.sqrt(q.shape[3])
                weights = logits.exp() / logits.exp().sum()
                out[b, i, head] = (weights[:, None] * v[b, :, head]).sum(0)
    return out


@pytest.mark.parametrize("kernel", ["sdpa", "plain"])
@pytest.mark.parametrize("queries", [5, 3])
def test_kernels_equal_the_definition(kernel: attention.Kernel, queries: int) -> None:
    q, k, v = (torch.randn(2, 5, 3, 8, dtype=torch.float64) for _ in range(3))
    q = q[:, :queries]
    torch.testing.assert_close(attend(q, k, v, kernel), by_loops(q, k, v))  # float64: 1e-7


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kernels_agree_in_value_and_gradient(dtype: torch.dtype, tolerance: float) -> None:
    """bf16 has 8 bits: its own rounding of probabilities is 0.4 %, summed over a few terms."""
    inputs = [torch.randn(2, 17, 3, 16).to(dtype).requires_grad_() for _ in range(3)]
    results = []
    for kernel in ("sdpa", "plain"):
        out = attend(*inputs, kernel)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_attn_agrees_on_a_gpu() -> None:
    pytest.importorskip("flash_attn")
    q, k, v = (torch.randn(2, 197, 12, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    assert (attend(q, k, v, "flash") - attend(q, k, v, "sdpa")).abs().max() < 2e-2


def test_kernel_is_chosen_by_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flash_is_usable", lambda: True)
    assert kernel_for("cuda", torch.bfloat16) == "flash"
    assert kernel_for("cuda", torch.float32) == "sdpa"
    assert kernel_for("cuda", torch.bfloat16, head_dim=288) == "sdpa"
    assert kernel_for("cpu", torch.bfloat16) == "plain"
    assert kernel_for("cpu", torch.float32) == "sdpa"
    monkeypatch.setattr(attention, "_flash_is_usable", lambda: False)
    assert kernel_for("cuda", torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), True), ((7, 5), False)])
def test_flash_attn_must_load_and_know_the_gpu(
    capability: tuple[int, int], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "flash_attn.py").write_text("")
    attention._flash_loads.cache_clear()
    assert attention._flash_loads() is expected
    monkeypatch.delitem(sys.modules, "flash_attn")
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol')")
    importlib.invalidate_caches()
    attention._flash_loads.cache_clear()
    assert not attention._flash_loads()
    attention._flash_loads.cache_clear()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_few_queries_give_the_first_rows_of_all(qkv_bias: bool) -> None:
    x = torch.randn(2, 9, 24)
    layer = Attention(24, 3, qkv_bias)
    torch.testing.assert_close(layer(x, queries=4), layer(x)[:, :4])
    block = Block(24, 3, 4.0, qkv_bias, 1e-6)
    torch.testing.assert_close(block(x, queries=4), block(x)[:, :4])


def test_the_compiler_takes_what_is_installed_for_a_constant() -> None:
    """As torch itself would mark it."""
    marked = torch.compiler.assume_constant_result(lambda: True)
    assert vars(attention._flash_is_usable) == vars(marked)
