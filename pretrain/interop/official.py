"""Weights as the original repositories store them.

facebookresearch/mae keeps encoder and decoder in one flat module; its encoder's names are timm's, hence ours.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from pretrain.nn.position import sincos_2d

_DECODER = (
    (r"mask_token", r"decoder.mask_token"),
    (r"decoder_embed\.(.+)", r"decoder.embed.\1"),
    (r"decoder_blocks\.(.+)", r"decoder.blocks.\1"),
    (r"decoder_norm\.(.+)", r"decoder.norm.\1"),
    (r"decoder_pred\.(.+)", r"decoder.pred.\1"),
)
_ENCODER = r"(?:cls_token|pos_embed|patch_embed\.proj\..+|blocks\..+|norm\..+)"


def mae_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our `MAE` from that of the official `MaskedAutoencoderViT`.

    Raises:
        ValueError: a key is unknown, or the fixed position table of the decoder is not the fixed table.
    """
    ours = {}
    for key, tensor in state.items():
        if key == "decoder_pos_embed":
            _require_fixed_table(tensor)
            continue
        ours[_to_ours(key)] = tensor
    return ours


def mae_to_official(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The inverse of `mae_from_official`; `grid` is the (rows, columns) of patches the decoder's table is made for."""
    official = {_to_official(key): tensor for key, tensor in state.items()}
    table = sincos_2d(grid, official["mask_token"].shape[-1])
    official["decoder_pos_embed"] = torch.cat([torch.zeros_like(table[:1]), table])[None]
    return official


def _to_ours(key: str) -> str:
    for pattern, replacement in _DECODER:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    if re.fullmatch(_ENCODER, key):
        return f"encoder.{key}"
    raise ValueError(f"`{key}` is no key of an official MAE checkpoint")


def _to_official(key: str) -> str:
    if key.startswith("encoder."):
        return key.removeprefix("encoder.")
    if key == "decoder.mask_token":
        return "mask_token"
    return key.replace("decoder.", "decoder_", 1)


def _require_fixed_table(table: Tensor) -> None:
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise ValueError(f"`decoder_pos_embed` has {table.shape[1] - 1} positions, which is no square grid")
    if not torch.allclose(table[0, 1:].float().cpu(), sincos_2d((side, side), table.shape[2]), atol=1e-5):
        raise ValueError("`decoder_pos_embed` is not the fixed sine–cosine table that this decoder uses")
