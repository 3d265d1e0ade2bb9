"""Multi-head self-attention (Vaswani et al., arXiv 1706.03762), and the one place that picks its kernel.

`attend` is softmax(q kᵀ / √d) v. Which kernel computes it depends on device and precision alone:

- `flash`: flash-attn, when its package is installed and loads, and the tensors are half precision, with at most 256
  channels a head, on a GPU that it knows (Ampere or later);
- `plain`: two matrix products and a softmax, in reduced precision on a CPU, where torch's fused kernel is
  3 to 6 times slower for the short sequences of an image;
- `sdpa`: torch's fused kernel, everywhere else.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.precision import wide

log = logging.getLogger(__name__)

Kernel = Literal["flash", "plain", "sdpa"]


def _flash_is_usable() -> bool:
    return _flash_loads()


# All that `torch.compiler.assume_constant_result` does. That imports the compiler: more than a second of every command.
_flash_is_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _flash_loads() -> bool:
    """Whether flash-attn is there, loads with this torch, and knows this GPU."""
    if importlib.util.find_spec("flash_attn") is None or not torch.cuda.is_available():
        return False
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as failure:  # built for another torch, say
        log.warning("flash-attn is installed but does not load (%s): torch's own attention is used", failure)
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def kernel_for(device_type: str, dtype: torch.dtype, head_dim: int = 64) -> Kernel:
    """The name of the kernel that `attend` uses for tensors on such a device, in such a precision, with such heads."""
    half = dtype in (torch.float16, torch.bfloat16)
    if device_type == "cuda" and half and head_dim <= 256 and _flash_is_usable():
        return "flash"
    if device_type == "cpu" and half:
        return "plain"
    return "sdpa"


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel | None = None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: [B, M, heads, d], the M tokens that ask.
        k, v: [B, N, heads, d], the N tokens that answer.
        kernel: forces one kernel; by default `kernel_for` decides.

    Returns:
        [B, M, heads, d]
    """
    kernel = kernel or kernel_for(q.device.type, q.dtype, q.shape[-1])
    if kernel == "flash":
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, heads, ·, d]
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, heads, M, N]
    return (logits.softmax(dim=-1, dtype=q.dtype) @ v).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value, its parameters named as timm names them."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """[B, N, D] → [B, N, D], or [B, `queries`, D] where only the first `queries` tokens ask."""
        batch, tokens, dim = x.shape
        heads = self.num_heads
        if queries is None:
            q, k, v = self.qkv(x).view(batch, tokens, 3, heads, dim // heads).unbind(2)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, :queries], weight[:dim], None if bias is None else bias[:dim])
            kv = F.linear(x, weight[dim:], None if bias is None else bias[dim:])
            q = q.view(batch, queries, heads, dim // heads)
            k, v = kv.view(batch, tokens, 2, heads, dim // heads).unbind(2)
        return self.proj(attend(q, k, v).flatten(2))

    def weights(self, x: Tensor) -> Tensor:
        """How much each token looks at each other: [B, N, D] → [B, heads, N, N], rows that sum to 1. For pictures."""
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        return wide(logits).softmax(dim=-1)
