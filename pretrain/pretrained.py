"""A pretrained encoder in Python: `encoder = pretrain.load("RUN")`, `encoder.features(images)`.

It sees an image as probes see it, so that its features are those of `pretrain probe`. Nothing here needs Hydra,
OmegaConf, Lightning or wandb.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from pretrain import frozen
from pretrain.encoder.encoder import Encoder
from pretrain.probe.features import Pool, pooled
from pretrain.records import Batch, UserError
from pretrain.view import given
from pretrain.view.color import Prepare
from pretrain.view.given import Given
from pretrain.view.spec import ViewSpec

Network = Literal["trained", "student", "random"]


def load(
    path: str | os.PathLike[str],
    network: Network = "trained",
    *,
    device: str | torch.device | None = None,
    trust_checkpoint: bool = False,
    allow_targets: Sequence[str] = (),
) -> Pretrained:
    """The encoder of a run's newest checkpoint, or of an exported folder.

    Nothing in the folder is executed: weights are read as tensors, descriptions as plain data, and only classes of this
    package are built.

    Args:
        path: of the run's folder, or of an export of format timm, hf or official.
        network: `trained` is the one that is exported, where there is a teacher the teacher; `student` is the one that
            the optimizer trained; `random` has the weights that the run began with (an export: those of seed 0).
        device: where it computes; None is the GPU if there is one.
        trust_checkpoint: whether to load a checkpoint that another user could have written.
        allow_targets: packages of your own whose encoders and objectives may be built.

    Raises:
        UserError (a ValueError): the folder is neither, the run has no checkpoint yet, or it may not be loaded.
    """
    if network not in get_args(Network):
        raise UserError(f"network={network}: must be one of {', '.join(get_args(Network))}")
    packages = [allow_targets] if isinstance(allow_targets, str) else list(allow_targets)
    if not Path(path).is_dir():
        raise UserError(f"`{path}` is no folder: give a run's folder (its output_dir), or an export")
    loaded = frozen.load(Path(path), network, trust_checkpoint, packages)
    return Pretrained(loaded, Path(path), network).to(device or frozen.default_device())


class Pretrained:
    """An encoder with the way in which it sees images. `print` says what it is.

    Attributes:
        view: the size, the central crop and the normalisation of what the encoder sees.
        pool: what makes one vector of its tokens unless `features` is told otherwise: `cls` or `mean`.
        run_id, step: the run that made the weights, and its optimizer steps done.
        path: of the folder that it was loaded from.
    """

    def __init__(self, loaded: frozen.Frozen, path: Path, network: Network) -> None:
        self.view: ViewSpec = loaded.view
        self.pool: Pool = loaded.pool
        self.run_id, self.step = loaded.card.run_id, loaded.card.step
        self.path = path
        self._encoder = loaded.encoder
        self._network = network
        self._prepare = Prepare([self.view], augment=False)

    @property
    def module(self) -> Encoder:
        """The network itself, a `torch.nn.Module`: normalised images [B, C, H, W] → `Tokens`, with `cls` [B, D] or
        None and `patches` [B, L, D]. It is in evaluation mode; to fine-tune it, call its `train()`."""
        return self._encoder

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._encoder.parameters()).device

    @property
    def embed_dim(self) -> int:
        """The length D of a feature vector."""
        return self._encoder.embed_dim

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which images are cut."""
        return self.view.height_width

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Of each of the `feature_maps`, how many pixels of a cut image lie between two of its vectors."""
        side = self._encoder.mask_unit
        with self._evaluation():
            smallest = torch.zeros(1, self._encoder.in_chans, side, side, device=self.device, dtype=self._dtype)
            return tuple(side // one.shape[-1] for one in self._encoder.feature_maps(smallest))

    def to(self, device: str | torch.device) -> Pretrained:
        """Itself, moved to another device."""
        self._encoder.to(device)
        self._prepare.to(device)
        return self

    def features(self, images: Given | Iterable[Given], *, pool: Pool | None = None, batch_size: int = 64) -> Tensor:
        """One vector for each image: [N, D] float32, on the CPU, in the order of the images, without gradients.

        Args:
            images: paths of files, images of Pillow, or both: a list, another iterable, or a single one. They are
                turned as the camera noted, laid over white where transparent, made RGB, cut centrally, resized to
                `img_size` and normalised, exactly as probes treat images of shards. Pillow decodes some JPEGs a level
                of 255 otherwise than we do: for the last digit, give paths.

                Or a tensor. `uint8` [N, C, H, W], or [C, H, W], holds decoded images, colours of 0 to 255 and of any
                size: they are cut, resized and normalised like files. (Arrays of other numbers, see `view.pixels`,
                come in that type.) Floats [N, C, H, W] are taken as they are: they must be cut, resized and normalised
                already; height and width are any multiples of `module.mask_unit`.
            pool: `cls` takes the class token, `mean` the mean of the patches; None takes what the run did, `self.pool`.
            batch_size: images in memory at once; the last digits of features may depend on it.

        Raises:
            UserError (a ValueError): a file cannot be read or decoded, and it is named; a tensor has another shape or
                type; there are no images; the encoder has no class token.
        """
        pool = self.pool if pool is None else pool
        if pool not in get_args(Pool):
            raise UserError(f"pool={pool}: must be one of {', '.join(get_args(Pool))}")
        with self._evaluation():
            found = [pooled(self._encoder, batch, pool).float().cpu() for batch in self._batches(images, batch_size)]
        return torch.cat(found)

    def feature_maps(
        self, images: Given | Iterable[Given], *, blocks: Sequence[int] | None = None, batch_size: int = 64
    ) -> list[Tensor]:
        """Maps [N, C, H, W] of the encoder's stages, fine to coarse, float32, on the CPU, without a norm or gradients.

        A Hiera has four, of `strides` 4, 8, 16 and 32 pixels, in which C doubles; of a ViT they are four blocks at even
        distances, all of one stride, its patch. A map of stride s has H = image height / s rows. For a head that is
        trained together with the encoder call `module.feature_maps`, which keeps gradients.

        Args:
            images, batch_size: as for `features`.
            blocks: the numbers of other blocks, −1 is the last; a map for each.

        Raises:
            UserError (a ValueError): as `features` does. ValueError: there is no such block.
        """
        with self._evaluation():
            batches = [
                [one.float().cpu() for one in self._encoder.feature_maps(batch, blocks)]
                for batch in self._batches(images, batch_size)
            ]
        return [torch.cat(one) for one in zip(*batches, strict=True)]

    def _batches(self, images: Given | Iterable[Given], size: int) -> Iterator[Tensor]:
        """Normalised images [B, C, H, W] on the device."""
        if not isinstance(size, int) or not 1 <= size <= sys.maxsize:
            raise UserError(f"batch_size={size}: must be a whole number, at least 1")
        if isinstance(images, Tensor) and images.is_floating_point():
            self._refuse_shape(images)
            yield from (part.to(self.device, self._dtype) for part in images.detach().split(size))
            return
        for view in given.views(images, self.view, size):
            count = len(view)
            batch = Batch((view[None],), torch.arange(count), torch.full((count,), -1), [""] * count, seed=0)
            yield self._prepare(batch.to(self.device)).views[0][0].to(self._dtype)

    def _refuse_shape(self, images: Tensor) -> None:
        channels, unit = self._encoder.in_chans, self._encoder.mask_unit
        wanted = f"[N, {channels}, H, W], normalised, with H and W multiples of {unit}"
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != channels or not images.numel() or shape[2] % unit or shape[3] % unit:
            raise UserError(
                f"images: a tensor of floats of shape {shape} is none of shape {wanted}; or give uint8, which is cut, "
                "resized and normalised here"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._encoder.parameters()).dtype

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Without gradients and drop path, also while somebody fine-tunes the module."""
        training = self._encoder.training
        self._encoder.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._encoder.train(training)

    def __repr__(self) -> str:
        view, encoder = self.view, self._encoder
        count = sum(one.numel() for one in encoder.parameters())
        height, width = self.img_size
        kind = "RGB" if view.pixels == "rgb" else f"{view.channels} channels of {view.pixels}"
        mean, std = (", ".join(f"{one:.4g}" for one in values) for values in (view.mean, view.std))
        weights = "random weights" if self._network == "random" else f"the {self._network} network"
        rows = {
            "weights": f"{weights} of run {self.run_id}, step {self.step:,} ({self.path})",
            "image size": f"{height} × {width} pixels, {kind}: the central {view.crop_pct:.4g}, {view.interpolation}",
            "normalised": f"mean ({mean}), std ({std})",
            "patch": f"{encoder.token_size} × {encoder.token_size} pixels a token",
            "features": f"embed_dim {self.embed_dim}, pool {self.pool}",
            "device": str(self.device),
        }
        lines = [f"{type(encoder).__name__}, {count:,} parameters"]
        return "\n".join(lines + [f"  {name:<11}{text}" for name, text in rows.items()])
