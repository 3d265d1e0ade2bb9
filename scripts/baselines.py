"""What `bench_data.py` compares with: the official transforms of an image, and the loaders that most people use.

The transforms are those that main_pretrain.py of facebookresearch/mae and main_dino.py of facebookresearch/dino state.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from pretrain.data.shard.sample import IMAGES

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Work = Callable[[Sequence[bytes]], object]


def official_mae() -> Callable[[Image.Image], Tensor]:
    """Of main_pretrain.py."""
    from torchvision import transforms as T

    steps = [T.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC)]
    whole: Callable[[Image.Image], Tensor] = T.Compose([*steps, T.RandomHorizontalFlip(), *_as_numbers()])
    return whole


def official_dino() -> Callable[[Image.Image], list[Tensor]]:
    """Of main_dino.py."""
    from torchvision import transforms as T

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Callable[[Image.Image], Tensor]:
        cut = T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC)
        colours = [T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), T.RandomGrayscale(0.2)]
        rest = [T.RandomApply([T.Lambda(_blurred)], blur), T.RandomApply([T.Lambda(ImageOps.solarize)], solarize)]
        one: Callable[[Image.Image], Tensor] = T.Compose(
            [cut, T.RandomHorizontalFlip(), *colours, *rest, *_as_numbers()]
        )
        return one

    views = [view(224, (0.4, 1.0), 1.0, 0.0), view(224, (0.4, 1.0), 0.1, 0.2)] + 8 * [view(96, (0.05, 0.4), 0.5, 0.0)]
    return lambda image: [one(image) for one in views]


def _as_numbers() -> list[Any]:
    from torchvision import transforms as T

    return [T.ToTensor(), T.Normalize(_MEAN, _STD)]


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def by_pillow(transform: Callable[[Image.Image], object]) -> Work:
    """As ImageFolder opens files, less the files."""

    def work(files: Sequence[bytes]) -> None:
        for data in files:
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return work


def imagefolder(folder: Path, batch: int, count: int, workers: int) -> Iterable[object]:
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    files = ImageFolder(str(folder), official_mae())
    sampler = RandomSampler(files, replacement=True, num_samples=batch * count)
    return DataLoader(files, batch, sampler=sampler, num_workers=workers)


def webdataset_loader(urls: list[str], batch: int, workers: int) -> Iterable[object]:
    import webdataset

    transform = official_mae()

    def opened(sample: dict[str, Any]) -> tuple[Tensor, int]:
        data = next(sample[extension] for extension in IMAGES if extension in sample)
        return transform(Image.open(io.BytesIO(data)).convert("RGB")), int(sample.get("cls", b"0"))

    shards = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(200).map(opened)
    return webdataset.WebLoader(shards.batched(batch, partial=False), batch_size=None, num_workers=workers)
