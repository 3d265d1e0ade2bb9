"""Colour operations on batches of images, a parameter for each image: torchvision's definitions, batched.

Images are float32 [N, 3, H, W] with values between 0 and 1; blur takes any channels and values. The operations of
colour jitter, grayscale and solarize are those of torchvision's `transforms.v2.functional` on float tensors; blur is
the Gaussian with its own σ for each image. Which images an operation is for is decided on the host (`jitter`'s
`orders`, and who calls the others), so that nothing here waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretrain import precision

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the numbers of the operations in an order of `jitter`

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it
_HUES = torch.tensor([0, 1 / 3, 2 / 3], device="cpu")[:, None, None]  # of red, green and blue
_BLOCK = 32  # pixels of a line that are blurred at once
_LEAST = 1e-12  # chroma below it is none: the hue of a gray pixel is never used, but must be finite


def gray(images: Tensor) -> Tensor:
    """Luma of each pixel: [N, 3, H, W] → [N, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends each image with black: factor [N] ≥ 0, 1 changes nothing."""
    zero = torch.zeros_like(factor)
    return _blend(images.clone(), factor, zero, zero)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends each image with the mean of its luma: factor [N] ≥ 0, 1 changes nothing."""
    return _blend(images.clone(), factor, torch.zeros_like(factor), 1 - factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends each pixel with its luma: factor [N] ≥ 0, 1 changes nothing."""
    return _blend(images.clone(), factor, 1 - factor, torch.zeros_like(factor))


def _blend(images: Tensor, keep: Tensor, own: Tensor, mean: Tensor) -> Tensor:
    """clamp(keep · pixel + own · its luma + mean · mean luma of the image, 0, 1), in place; the factors are [N]."""
    luma = gray(images)
    offset = luma.mean((1, 2, 3)).mul_(mean)
    luma.mul_(_column(own)).add_(_column(offset))
    return images.mul_(_column(keep)).add_(luma).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of each image by a share [N] of the colour circle, in HSV."""
    return _turn(images.clone(), shift)


def _turn(images: Tensor, shift: Tensor) -> Tensor:
    """`hue` in place: HSV without a branch.

    With the least channel of a pixel taken off and the greatest at 1, its hue is 1 − red + green + blue sixths of the
    circle away from red, on the side of green or of blue, whichever is more. Where d is how far the turned hue is from
    a channel's own (0, ⅓ or ⅔ of the circle), that channel becomes least + chroma · clamp(2 − 6·d, 0, 1).
    """
    red, green, blue = images.unbind(1)
    least = torch.minimum(torch.minimum(red, green), blue)
    greatest = torch.maximum(torch.maximum(red, green), blue)
    sixfold = (greatest - least).clamp_min_(_LEAST).mul_(6)  # of the chroma
    angle = greatest.sub_(red).add_(green).add_(blue).sub_(least, alpha=2)
    angle.div_(sixfold).copysign_(green - blue).add_(shift[:, None, None])
    distance = angle[:, None] - _send(_HUES, images.device)  # [N, 3, H, W]
    distance.sub_(distance.round()).abs_().clamp_(1 / 6, 1 / 3)
    least.add_(sixfold, alpha=1 / 3)
    return torch.addcmul(least[:, None], distance, sixfold[:, None], value=-1, out=images)


def jitter(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each image, in an order of its own.

    Before and after hue lie nothing but blends of one form, so three passes over the batch do them all. Hue, which
    costs most, is for the images whose turn it is: they lie side by side once images are sorted by `place_of_hue`, and
    here they are sorted unless they come so.

    Args:
        factors: [N, 4] on the host: of brightness, contrast and saturation, and the shift of hue.
        orders: [N, 4] int64 on the host: the numbers of the operations, first to last.
    """
    place = place_of_hue(orders.numpy())
    if (place[1:] < place[:-1]).any():
        sorting = torch.from_numpy(place.argsort(kind="stable"))
        jittered = jitter(images[_send(sorting, images.device)], factors[sorting], orders[sorting])
        return jittered[_send(sorting.argsort(), images.device)]
    order, factor = orders.numpy(), factors.numpy().astype(np.float32)
    blends = order[order != HUE].reshape(-1, 3)
    keep = np.take_along_axis(factor, blends, axis=1)
    parts = np.stack([keep.T, ((1 - keep) * (blends == SATURATION)).T, ((1 - keep) * (blends == CONTRAST)).T], axis=1)
    shift, images = _send(torch.from_numpy(factor[:, HUE].copy()), images.device), images.clone()
    for turn, passed in enumerate([*_send(torch.from_numpy(parts), images.device), None]):  # [part, N] each
        own = slice(*np.searchsorted(place, [turn, turn + 1]).tolist())
        if own.start < own.stop:
            _turn(images[own], shift[own])
        if passed is not None:
            _blend(images, *passed)
    return images


def place_of_hue(orders: np.ndarray) -> np.ndarray:
    """Where in each order hue stands: [N, 4] → [N]."""
    return (orders == HUE).argmax(axis=1)


def grayscale(images: Tensor) -> Tensor:
    """Each pixel's luma in all three channels."""
    return gray(images).expand_as(images)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with each image's σ, borders reflected.

    A blur of lines is a product with a band matrix. Products of matrices are faster than convolutions with a kernel for
    each image, on a CPU too.

    Args:
        sigma: [N] > 0, in pixels.
        radius: of the kernel; it ends at side − 1.
    """
    channels, height, width = images.shape[1:]
    down = _blur_matrix(sigma, height, radius, channels)
    across = down if height == width else _blur_matrix(sigma, width, radius, channels)
    with precision.full(images):
        lines = _product(images.flatten(0, 1).transpose(1, 2), down, radius)
        return _product(lines.transpose(1, 2), across, radius).view(images.shape)


def _blur_matrix(sigma: Tensor, side: int, radius: int, channels: int) -> Tensor:
    """[N·C, side, side], an image's once a channel; row i has the weights of a line's pixels in its blurred pixel i."""
    radius = min(radius, side - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [N, 2 radius + 1]
    source = (torch.arange(side, device=sigma.device)[:, None] + offsets).abs()  # reflected at 0 …
    source = side - 1 - (side - 1 - source).abs()  # … and at side − 1: [side, 2 radius + 1]
    matrix = sigma.new_zeros(len(sigma), side, side)
    matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weights[:, None].expand(-1, side, -1))
    return matrix.repeat_interleave(channels, dim=0)


def _product(lines: Tensor, matrix: Tensor, radius: int) -> Tensor:
    """Lines [M, L, side] by band matrices [M, side, side], a block of pixels from those near it at a time."""
    side = lines.shape[2]
    blocks = []
    for start in range(0, side, _BLOCK):
        block, near = slice(start, start + _BLOCK), slice(max(0, start - radius), start + _BLOCK + radius)
        blocks.append(torch.bmm(lines[:, :, near], matrix[:, block, near].transpose(1, 2)))
    return torch.cat(blocks, dim=2)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Inverts all values of at least the threshold."""
    bright = images.clone().ge_(threshold)  # 1.0 or 0.0
    return bright.sub_(images).abs_()


def _column(values: Tensor) -> Tensor:
    """[N] → [N, 1, 1, 1]."""
    return values[:, None, None, None]


def _send(values: Tensor, device: torch.device) -> Tensor:
    """What lies on the host, on a device, without waiting for it."""
    return values.to(device, non_blocking=True)
