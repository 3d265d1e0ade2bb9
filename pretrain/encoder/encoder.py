"""The contract of every encoder: images in, tokens out, with or without a part of the image dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from pretrain.records import Tokens


class Encoder(nn.Module, ABC):
    """A network that turns images into tokens. It has no classification head.

    Attributes:
        img_size: (height, width) in pixels that it is built for; it takes any multiple of `mask_unit`.
        in_chans: channels of an image.
        embed_dim: width D of a token.
        mask_unit: side in pixels of the smallest square that can be dropped.
        token_size: side in pixels of the square that an output token stands for; divides `mask_unit`.
        has_cls: whether `Tokens.cls` is there.
    """

    img_size: tuple[int, int]
    in_chans: int
    embed_dim: int
    mask_unit: int
    token_size: int
    has_cls: bool

    @abstractmethod
    def forward(self, images: Tensor, visible_ids: Tensor | None = None) -> Tokens:
        """Tokens of views of one size.

        Args:
            images: [B, C, H, W], normalised.
            visible_ids: [B, K] numbers of the mask units to look at, row by row from 0; None means all. No pixel of
                another unit may alter the output, and none is computed.

        Returns:
            Tokens whose `patches` are those of the visible units, in the order of `visible_ids`.
        """

    def forward_views(self, views: Sequence[Tensor]) -> list[Tokens]:
        """Tokens of several sets of views, each of its own size."""
        return [self(view) for view in views]

    @abstractmethod
    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Tokens after each of the given blocks, after the final norm; −1 is the last block."""

    @abstractmethod
    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard, to recompute and to compile one by one, in the order in which they run."""

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Fills every parameter and buffer, whatever they hold: each from (seed, its own name) alone."""
