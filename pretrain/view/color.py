"""What is done to views on the device, a whole batch at a time: the flip, and colours to normalised numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from pretrain.random import Purpose, uniform
from pretrain.records import Batch
from pretrain.view.spec import ViewSpec


class Prepare(nn.Module):
    """uint8 views as the loader yields them → float32, flipped at random and normalised.

    Args:
        specs: of the views, one for each tensor of a batch.
        flip: whether to flip at all; evaluation does not.
    """

    def __init__(self, specs: Sequence[ViewSpec], flip: bool = True) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.flip = flip
        for number, spec in enumerate(self.specs):
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
            self.register_buffer(f"scale{number}", 1 / (255 * std), persistent=False)
            self.register_buffer(f"shift{number}", -mean / std, persistent=False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        views, first = [], 0
        draws = uniform(batch.seed, Purpose.FLIP, batch.g, sum(spec.count for spec in self.specs))  # [B, views]
        for number, (view, spec) in enumerate(zip(batch.views, self.specs, strict=True)):
            if self.flip and spec.flip > 0:
                flipped = spec.flip > draws[:, first : first + spec.count].T  # [V, B]
                view = torch.where(flipped[..., None, None, None], view.flip(-1), view)
            scale, shift = self.get_buffer(f"scale{number}"), self.get_buffer(f"shift{number}")
            views.append(view.to(torch.float32, memory_format=torch.preserve_format) * scale + shift)
            first += spec.count
        return replace(batch, views=tuple(views))
