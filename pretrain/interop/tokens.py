"""All tokens of an encoder in one tensor: what exports are compared by."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder


def all_tokens(encoder: Encoder, images: Tensor) -> Tensor:
    """[B, 1 + L, D], the class token first if there is one, after the final norm."""
    tokens = encoder(images)
    return tokens.patches if tokens.cls is None else torch.cat([tokens.cls[:, None], tokens.patches], dim=1)
