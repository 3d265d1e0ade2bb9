"""Weights as the original repositories store them.

facebookresearch/mae and facebookresearch/hiera keep encoder and decoder in one flat module; their encoders' names are
ours. Every key is accounted for: what is unknown is refused, and what an encoder alone leaves out is said.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from pretrain.nn.position import sincos_2d

_DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    r"decoder_(embed|blocks|norm|pred)\.(.+)": r"decoder.\1.\2",
}
_VIT = {r"((?:cls_token|pos_embed|patch_embed\.proj\..+|blocks\..+|norm\..+))": r"encoder.\1"}
_HIERA = {
    r"((?:pos_embed|pos_embed_win|patch_embed\.proj\..+|blocks\..+|norm\..+))": r"encoder.\1",
    r"(multi_scale_fusion_heads\..+)": r"encoder.\1",
    r"encoder_norm\.(.+)": r"encoder.norm.\1",  # of the autoencoder, after fusion
}
_HEAD = r"head\.projection\.(?:weight|bias)"


def mae_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our `MAE` with a `ViT` from that of the official `MaskedAutoencoderViT`.

    Raises:
        ValueError: a key is unknown, or the fixed position table of the decoder is not the fixed table.
    """
    ours = {_rename(key, _VIT | _DECODER, "MAE"): tensor for key, tensor in state.items()}
    if (table := ours.pop("decoder.pos_embed", None)) is not None:
        _require_fixed_table(table)
    return ours


def mae_to_official(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The inverse of `mae_from_official`; `grid` is the (rows, columns) of patches the decoder's table is made for."""
    official = {_flat(key): tensor for key, tensor in state.items()}
    table = sincos_2d(grid, official["mask_token"].shape[-1])
    official["decoder_pos_embed"] = torch.cat([torch.zeros_like(table[:1]), table])[None]
    return official


def hiera_mae_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our `MAE` with a fusing `Hiera` and learned positions from the official `MaskedAutoencoderHiera`'s.

    Raises:
        ValueError: a key is unknown.
    """
    return {_rename(key, _HIERA | _DECODER, "Hiera"): tensor for key, tensor in state.items()}


def hiera_mae_to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `hiera_mae_from_official`."""
    return {re.sub(r"^norm\.", "encoder_norm.", _flat(key)): tensor for key, tensor in state.items()}


def hiera_from_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state of our `Hiera`, without fusion, from that of the official `Hiera` or `MaskedAutoencoderHiera`.

    Returns:
        The state, and the keys that are left out: a classification head, or fusion and decoder.

    Raises:
        ValueError: a key is unknown.
    """
    left = [key for key in state if re.fullmatch(_HEAD, key)]
    ours = {key: _rename(key, _HIERA | _DECODER, "Hiera") for key in state if key not in left}
    left += [key for key, name in ours.items() if re.match(r"decoder\.|encoder\.multi_scale_fusion", name)]
    return {name.removeprefix("encoder."): state[key] for key, name in ours.items() if key not in left}, left


def hiera_to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the official `Hiera` but for its classification head, from that of our `Hiera` without fusion."""
    return dict(state)


def _rename(key: str, renames: dict[str, str], system: str) -> str:
    for pattern, replacement in renames.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    raise ValueError(f"`{key}` is no key of an official {system} checkpoint")


def _flat(key: str) -> str:
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
