"""The contract of every encoder: images in, tokens out, with or without a part of the image dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pretrain.records import Randomness, Tokens


def block_numbers(blocks: Sequence[int], depth: int) -> list[int]:
    """The numbers of blocks from 0; negative ones count from the end.

    Raises:
        ValueError: there is no such block.
    """
    if wrong := [block for block in blocks if not -depth <= block < depth]:
        raise ValueError(f"there are no blocks {wrong}: the encoder has {depth}, 0 to {depth - 1}, or −1 for the last")
    return [block % depth for block in blocks]


class Encoder(nn.Module, ABC):
    """A network that turns images into tokens. It has no classification head.

    Attributes:
        img_size: (height, width) in pixels that it is built for; it takes any multiple of `mask_unit`.
        in_chans: channels of an image.
        embed_dim: width D of an output token.
        mask_unit: side in pixels of the smallest square that can be dropped.
        token_size: side in pixels of the square that an output token stands for; divides `mask_unit`.
        has_cls: whether `Tokens.cls` is there.
        after_pretraining: arguments of the constructor that are other ones once it is pretrained. Probes and exports
            build it anew with these and give it the same weights; what then has no place served pretraining alone.
        notes: what a user has to know before a run starts, a sentence each.
    """

    img_size: tuple[int, int]
    in_chans: int
    embed_dim: int
    mask_unit: int
    token_size: int
    has_cls: bool
    after_pretraining: dict[str, Any]
    notes: tuple[str, ...]

    @abstractmethod
    def forward(
        self, images: Tensor, visible_ids: Tensor | None = None, randomness: Randomness | None = None
    ) -> Tokens:
        """Tokens of views of one size.

        Args:
            images: [B, C, H, W], normalised.
            visible_ids: [B, K] numbers of the mask units to look at, row by row from 0; None means all. No pixel of
                another unit may alter the output, and none is computed.
            randomness: what drop path is keyed by. Needed while training if there is any.

        Returns:
            Tokens whose `patches` are those of the visible units, in the order of `visible_ids`.
        """

    def forward_views(self, views: Sequence[Tensor], randomness: Sequence[Randomness] | None = None) -> list[Tokens]:
        """Tokens of several sets of views, each of its own size."""
        keys = [None] * len(views) if randomness is None else randomness
        return [self(view, randomness=key) for view, key in zip(views, keys, strict=True)]

    @abstractmethod
    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Tokens after each of the given blocks, after the final norm, without drop path; −1 is the last block.

        Raises:
            ValueError: there is no such block, or its tokens are not as wide as the final norm.
        """

    @abstractmethod
    def feature_maps(self, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tensor]:
        """Maps [B, D, rows, columns] after each of the given blocks, without a norm, for heads that predict densely.

        By default those of a pyramid where the encoder has one (Hiera's, with all its poolings: strides of 4, 8, 16 and
        32 pixels), else of four blocks at even distances. Nothing is dropped, not even while training.

        Raises:
            ValueError: there is no such block.
        """

    @abstractmethod
    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard, to recompute and to compile one by one, in the order in which they run."""

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay, beside biases and vectors, which always are."""

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Fills every parameter and buffer, whatever they hold: each from (seed, its own name) alone."""
