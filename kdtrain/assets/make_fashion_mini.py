"""Make fashion_mini.npz: the first 600 training and 200 test images of each class of Fashion-MNIST, in file order.

    python make_fashion_mini.py FOLDER

FOLDER holds the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist; Debian's package
dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
PER_CLASS = {"train": 600, "t10k": 200}


def read_idx(path: Path) -> Bytes:
    """The array in a gzipped IDX file of unsigned bytes, in the shape that its header gives."""
    data = gzip.decompress(path.read_bytes())
    ndim = data[3]
    shape = np.frombuffer(data, ">i4", ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def subset(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Images [N, 28, 28] and labels [N] of the class-balanced subset of "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    first = [np.flatnonzero(labels == label)[: PER_CLASS[part]] for label in range(10)]
    kept = np.sort(np.concatenate(first))
    return images[kept], labels[kept]


def make(folder: Path, target: Path) -> None:
    """Write `target` from the full files in `folder`; the same input gives the same bytes."""
    train_images, train_labels = subset(folder, "train")
    test_images, test_labels = subset(folder, "t10k")
    np.savez_compressed(
        target,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).with_name("fashion_mini.npz"))
