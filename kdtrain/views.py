"""What the network sees of the images: crop, flip and normalise, one vectorised step for a batch.

The augmentation is RepDistiller's: zero padding by an eighth of the rows (4 of 32), random crop, random horizontal
flip, then normalisation.
The view of image i in epoch e is a pure function of (view_seed, e, i): numbers are drawn by counter for the whole
data set at once, so they depend neither on the order of the batches nor on how many images are drawn.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdtrain.draws import Stream, below, raw


class Views(NamedTuple):
    """The augmentation of all N images in one epoch."""

    dy: Tensor  # [N] int64, first row of the crop in the padded image, 0..2 padding
    dx: Tensor  # [N] int64, first column, 0..2 padding
    flip: Tensor  # [N] bool, whether the crop is mirrored left to right


def padding(size: int) -> int:
    """Pixels of padding on each side of images of `size` rows and columns: 4 of 28 and 32, 8 of 64, 12 of 96."""
    return (size + 4) // 8


def draw(view_seed: int, epoch: int, n: int, size: int, device: torch.device, stream: Stream = Stream.VIEWS) -> Views:
    """The views of images 0..n-1, of `size` rows and columns, in `epoch`: offsets and flips uniform, independent."""
    numbers = raw(view_seed, stream, epoch, (n, 3))
    dy, dx = below(numbers[:, :2], 2 * padding(size) + 1).T
    flip = numbers[:, 2] >> 63 == 1
    return Views(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (dy, dx, flip)))


def apply(images: Tensor, indices: Tensor, views: Views, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The views of the images `indices` [B], as float32 [B, C, H, W], channels last, normalised by channel.

    `images`: uint8 [N, C, H, W], H = W, channels last in memory, on the device of the others. `mean`, `std`: C values
    for pixels in 0..1. The padding is black before normalisation, not after.
    """
    _, channels, height, width = images.shape
    pad = padding(height)
    # Whole rows are copied first; padding, crop and flip then only touch bytes of the small batch. This takes a
    # quarter of the time of advanced indexing by (image, row, column).
    rows = views.dy[indices][:, None] + torch.arange(-pad, height - pad, device=images.device)
    wanted = indices[:, None] * height + rows.clamp(0, height - 1)
    picked = _rows(images).flatten(0, 1).index_select(0, wanted.flatten()).view(len(indices), height, -1)
    padded = picked.new_zeros(len(indices), height, (width + 2 * pad) * channels)
    padded[:, :, pad * channels : -pad * channels] = picked
    padded *= ((rows >= 0) & (rows < height))[:, :, None]
    columns = _columns(width, channels, images.device)[views.flip[indices].long(), views.dx[indices]]
    crops = padded.gather(2, columns[:, None].expand(-1, height, -1))
    return _normalise(crops, mean, std)


def plain(images: Tensor, indices: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The images `indices` [B] of uint8 `images` [N, C, H, W] (channels last in memory), not augmented.

    Returns float32 [B, C, H, W] as `apply` does.
    """
    return _normalise(_rows(images).index_select(0, indices), mean, std)


def _rows(images: Tensor) -> Tensor:
    """[N, C, H, W] as a view [N, H, W * C]; ValueError if that would copy the data set."""
    if not images.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"images must be channels last in memory, but got strides {images.stride()}.")
    return images.permute(0, 2, 3, 1).flatten(2)


def _normalise(rows: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, H, W * C] to (x / 255 - mean) / std, float32 [B, C, H, W] in the same memory order."""
    batch, height, size = rows.shape
    width = size // len(mean)
    scale, shift = _affine(mean, std, width, rows.device)
    return torch.addcmul(shift, rows.float(), scale).view(batch, height, width, len(mean)).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift of one row of pixels, each [W * C]: broadcasting whole rows is faster than channels."""
    mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * std_), -mean_ / std_
    return scale.float().repeat(width).to(device), shift.float().repeat(width).to(device)


@lru_cache(maxsize=16)
def _columns(width: int, channels: int, device: torch.device) -> Tensor:
    """[2, 2 padding + 1, W * C] int64: for each flip and offset, which bytes of a padded row make one of the view."""
    pixels = torch.arange(width * channels).view(width, channels)
    straight_and_flipped = torch.stack([pixels, pixels.flip(0)]).flatten(1)
    offsets = torch.arange(2 * padding(width) + 1) * channels
    return (straight_and_flipped[:, None] + offsets[:, None]).to(device)
