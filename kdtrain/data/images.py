"""Image files to square RGB pixels, many at a time; and the one way in which images are resized.

Resizing is PIL's bilinear filter, whose support grows with the reduction (so it does not alias): what
torchvision.transforms.Resize does with a PIL image.
"""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.config import ConfigError

CHUNK = 256  # images in memory at once; at 224x224 they are 38 MB

Pixels = NDArray[np.uint8]


class Chunk(NamedTuple):
    """Some images of one split, in its order."""

    images: Pixels  # [n, H, W, C]
    labels: NDArray[np.int64]  # [n]
    skipped: tuple[str, ...] = ()  # the files of this part that are left out


class Files(NamedTuple):
    """Image files, wherever they lie."""

    root: Path  # the folder or the archive, for messages
    read: Callable[[str], bytes]  # of the name of a file; Corrupt, or ConfigError if it cannot be read
    names: list[str]  # below the root
    labels: list[int]


class Corrupt(Exception):  # noqa: N818 (not an error of the program)
    """An image that cannot be decoded; the text says why."""


def reader(root: Path) -> Callable[[str], bytes]:
    """The contents of files below `root` by name; ConfigError if one cannot be read."""

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{root / name} cannot be read ({error.strerror}).") from error

    return read


def decode(raw: bytes, size: int) -> Pixels:
    """The image in a file's bytes, uint8 [size, size, 3], its first frame if there are more; Corrupt.

    Turned as its EXIF orientation says; grey, palette and CMYK images become RGB, of 16 bits the upper 8 are kept,
    and what is transparent is laid over black, as the padding of the augmentation is black. The shorter side is resized
    to `size`, then the centre is cut out.
    """
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return np.asarray(_square(_rgb(ImageOps.exif_transpose(image)), size))
    except UnidentifiedImageError as error:
        raise Corrupt("no image format that is known") from error
    except Exception as error:  # PIL's decoders raise nearly anything when a file is damaged
        raise Corrupt(" ".join(str(error).split())) from error


def shape(raw: bytes) -> tuple[int, int]:
    """Columns and rows of the image in a file's bytes, by its header; Corrupt."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return image.size
    except Exception as error:  # as above
        raise Corrupt("no image format that is known") from error


def refusal(root: Path, name: str, cause: Corrupt) -> ConfigError:
    """The error that names a corrupt image, and the way to do without it."""
    return ConfigError(
        f"{root / name} is corrupt or truncated ({cause}): repair or remove it, "
        "or set skip_corrupt = true under [data], which leaves such images out."
    )


def decoded(files: Files, size: int, skip_corrupt: bool) -> Iterator[Chunk]:
    """The images of `files`, decoded by as many threads as there are processors: PIL runs without the lock of Python.

    ConfigError if an image is corrupt and not to be skipped, or if a class is left without images by skipping.
    """

    def attempt(name: str) -> Pixels | Corrupt:
        try:
            return decode(files.read(name), size)
        except Corrupt as error:
            return error

    left, skipped = set[int](), dict[int, str]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files.names), CHUNK):
            names, labels = files.names[start : start + CHUNK], files.labels[start : start + CHUNK]
            images, kept, out = [], [], []
            for name, label, image in zip(names, labels, pool.map(attempt, names), strict=True):
                if isinstance(image, Corrupt):
                    if not skip_corrupt:
                        raise refusal(files.root, name, image)
                    out.append(name)
                    skipped.setdefault(label, name)
                else:
                    images.append(image)
                    kept.append(label)
            left.update(kept)
            yield Chunk(np.array(images, np.uint8).reshape(-1, size, size, 3), np.array(kept, np.int64), tuple(out))
    for label in skipped.keys() - left:
        raise ConfigError(
            f"skip_corrupt leaves a class without images: all like {files.root / skipped[label]} are corrupt "
            "(training and test split need one each)."
        )


def in_chunks(images: Pixels, labels: NDArray[np.int64], size: int) -> Iterator[Chunk]:
    """Images uint8 [N, H, W, C] that lie in memory, resized to `size`."""
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        yield Chunk(resized(images[part], size), labels[part])


def resized(images: Pixels, size: int) -> Pixels:
    """Square images uint8 [N, H, H, C] of 1 or 3 channels as [N, size, size, C]."""
    if images.shape[1:3] == (size, size):
        return images
    planes = images[..., 0] if images.shape[3] == 1 else images
    made = [np.asarray(_square(Image.fromarray(np.ascontiguousarray(plane)), size)) for plane in planes]
    return np.stack(made).reshape(len(images), size, size, images.shape[3])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # whole numbers of 16 bits, which PIL would cut off at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """The rounding of the longer side and of the centre is that of torchvision's Resize and CenterCrop."""
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
