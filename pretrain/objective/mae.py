"""Masked autoencoder (He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377).

The encoder sees a quarter of the image; a light decoder predicts the pixels of the rest; the loss is the mean squared
error on masked patches. Ours equals the official code in loss and gradient, and differs in the work it does: only
visible patches are projected, only masked ones predicted, and nothing is shuffled back. It asks the encoder for the
side of its mask units and tokens, and knows nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder
from pretrain.nn.mask_unit import token_ids
from pretrain.nn.patch import PixelOrder, grid_of, patchify, unpatchify
from pretrain.objective.decoder import Decoder
from pretrain.objective.health import effective_rank, feature_std
from pretrain.objective.masking import split_by_noise
from pretrain.objective.objective import Objective
from pretrain.objective.picture import colours
from pretrain.precision import wide
from pretrain.random import Purpose, uniform
from pretrain.records import Batch, Problem, Progress, Randomness, StepOutput, refuse
from pretrain.view.spec import ViewSpec


class MAE(Objective):
    """Masked autoencoding with any encoder that can drop mask units.

    Args:
        encoder: what is pretrained.
        decoder: makes the decoder, given `in_dim`, `out_dim` and `grid`.
        view: the one view of every sample.
        mask_ratio: share of the mask units to hide.
        norm_pix_loss: whether each patch's pixels are normalised by their own mean and variance before comparison.
        pixel_order: of the pixels inside a predicted patch: `hwc` as the official MAE, `chw` as Hiera.

    Raises:
        ValueError: an argument is out of range, or the view cannot be cut into the encoder's mask units.
    """

    pool: Literal["cls", "mean"] = "mean"

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[..., Decoder],
        view: ViewSpec,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        pixel_order: PixelOrder = "hwc",
    ) -> None:
        super().__init__()
        refuse(self, self.problems(mask_ratio))
        height, width = view.height_width
        if height % encoder.mask_unit or width % encoder.mask_unit:
            raise ValueError(
                f"MAE: a view of {height}×{width} pixels cannot be cut into mask units of {encoder.mask_unit}"
            )
        if height * width < 2 * encoder.mask_unit**2:
            raise ValueError(f"MAE: a view of {height}×{width} pixels is a single mask unit: nothing can be hidden")
        if encoder.in_chans != view.channels:
            raise ValueError(
                f"MAE: images have {view.channels} channels, but `encoder.in_chans` is {encoder.in_chans}: give "
                f"objective.view.mean and std a value for each of {encoder.in_chans} channels, and "
                "objective.view.pixels the type of their numbers; or the encoder as many channels as the view"
            )
        self.views = (view,)
        self.encoder = encoder
        self.decoder = decoder(
            in_dim=encoder.embed_dim,
            out_dim=encoder.token_size**2 * encoder.in_chans,
            grid=(height // encoder.token_size, width // encoder.token_size),
        )
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.pixel_order: PixelOrder = pixel_order

    @staticmethod
    def problems(mask_ratio: float, **_: object) -> Iterator[Problem]:
        if not 0 < mask_ratio < 1:
            yield "mask_ratio", "must be between 0 and 1, both excluded"

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[0][0]
        return StepOutput(self.loss(images, *self.mask(images, batch), Randomness(batch.seed, batch.g)))

    def mask(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The units of each image to show and to hide: visible_ids [B, K] and masked_ids [B, M]."""
        rows, columns = grid_of(images, self.encoder.mask_unit)
        return split_by_noise(uniform(batch.seed, Purpose.MASK, batch.g, rows * columns), self.mask_ratio)

    def loss(
        self, images: Tensor, visible_ids: Tensor, masked_ids: Tensor, randomness: Randomness | None = None
    ) -> Tensor:
        """The mean over masked patches of the mean squared error of their pixels: images [B, C, H, W] → scalar."""
        visible, masked = (self._token_ids(images, ids) for ids in (visible_ids, masked_ids))
        tokens = self.encoder(images, visible_ids, randomness)
        prediction = self.decoder(tokens, visible, masked)  # [B, M, pixels of a patch]
        target = patchify(images, self.encoder.token_size, masked, self.pixel_order)
        if self.norm_pix_loss:
            mean, scale = self._pixel_statistics(target)
            target = (target - mean) / scale
        return (wide(prediction) - target).square().mean()

    @torch.no_grad()
    def reconstruct(self, images: Tensor, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        """The predicted pixels of every patch [B, L, pixels], normalised like the targets."""
        visible, masked = (self._token_ids(images, ids) for ids in (visible_ids, masked_ids))
        return self.decoder.predict_all(self.encoder(images, visible_ids), visible, masked)

    def _token_ids(self, images: Tensor, unit_ids: Tensor) -> Tensor:
        """The numbers of the tokens inside units [B, K], unit by unit: [B, K·tokens of a unit]."""
        unit, token = self.encoder.mask_unit, self.encoder.token_size
        return token_ids(unit_ids, grid_of(images, unit)[1], unit // token).flatten(1)

    @staticmethod
    def _pixel_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and √(unbiased variance + 1e-6) of each patch, [B, K, 1]."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """One row a sample: the image, what the encoder sees of it, and that with the predicted pixels filled in."""
        images = batch.views[0][0]
        visible_ids, masked_ids = self.mask(images, batch)
        side, order = self.encoder.token_size, self.pixel_order
        patches = patchify(images, side, order=order)  # [B, L, pixels]
        prediction = self.reconstruct(images, visible_ids, masked_ids).to(patches.dtype)
        if self.norm_pix_loss:
            mean, scale = self._pixel_statistics(patches)
            prediction = prediction * scale + mean
        hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=images.device)
        hidden = hidden.scatter(1, self._token_ids(images, masked_ids), True)[..., None]
        grid = grid_of(images, side)
        columns = [patches, torch.where(hidden, 0.0, patches), torch.where(hidden, prediction, patches)]
        pictures = [colours(unpatchify(column, grid, side, order), self.views[0]) for column in columns]
        return {"reconstruction": torch.cat(pictures, dim=-1).permute(1, 0, 2, 3).flatten(1, 2)}

    @torch.no_grad()
    def health(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """How much the features of whole images differ, and how much the predictions of masked patches do."""
        images = batch.views[0][0]
        features = self.encoder(images).patches.mean(dim=1)
        visible_ids, masked_ids = self.mask(images, batch)
        visible, masked = (self._token_ids(images, ids) for ids in (visible_ids, masked_ids))
        predictions = self.decoder(self.encoder(images, visible_ids), visible, masked)  # [B, M, pixels of a patch]
        return {
            "feature_std": feature_std(features),
            "effective_rank": effective_rank(features),
            "prediction_std": predictions.float().flatten(0, 1).std(dim=0, correction=0).mean(),
        }

    def alarms(self, health: Mapping[str, float]) -> Iterator[str]:
        if health["effective_rank"] < 2 or health["feature_std"] < 1e-3:
            yield (
                "rank: features of different images hardly differ, or in one direction alone (effective rank "
                f"{health['effective_rank']:.2f}, spread {health['feature_std']:.4f}). A lower learning rate or a "
                "longer warm-up are the usual cures"
            )
        if health["prediction_std"] < 1e-3:
            yield (
                "constant: the same pixels are predicted for every masked patch (their spread is "
                f"{health['prediction_std']:.5f}), which is the mean patch. A lower learning rate or a longer warm-up "
                "are the usual cures; look whether the images themselves differ"
            )

    def after_step(self, progress: Progress, skipped: Tensor) -> None:
        """Nothing moves beside the weights."""

    @property
    def encoder_for_export(self) -> Encoder:
        return self.encoder

    @property
    def trained_encoder(self) -> Encoder:
        return self.encoder

    def advice(self, images: int, batch: int, steps: int | None, epochs: int) -> Iterator[str]:
        """Nothing: what is far off for masked autoencoding is not known."""
        yield from ()

    def fsdp_units(self) -> list[nn.Module]:
        return [*self.encoder.fsdp_units(), *self.decoder.blocks]

    def no_decay(self) -> set[str]:
        return {f"encoder.{name}" for name in self.encoder.no_decay()}

    def init_weights(self, seed: int) -> None:
        self.encoder.init_weights(seed)
        self.decoder.init_weights(seed)
