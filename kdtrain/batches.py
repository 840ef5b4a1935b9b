"""The batches of a trial: which images, in which order, as which views."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kdtrain import methods, subset
from kdtrain.config import ConfigError, TrialConfig
from kdtrain.data.dataset import Dataset, Look
from kdtrain.draws import TURNED, Stream, permutation, same_class
from kdtrain.methods.base import Batch

EVAL_BATCH = 500  # images, of 64 x 64 at most; of larger ones as many as have so many pixels
TEACHER_BATCH = 125  # the same of a teacher, whose maps may be many times as large


def eval_chunks(indices: Tensor, image_size: int, most: int | None = None) -> tuple[Tensor, ...]:
    """`indices` in batches for evaluation, large but not beyond the memory that large images need.

    most: in a batch, of images up to 64 x 64; None: EVAL_BATCH.
    """
    most = most or EVAL_BATCH
    return indices.split(max(1, min(most, most * 64**2 // image_size**2))) if len(indices) else ()


class Batches:
    """All that a trial sees of a data set, on the data set's device. Epochs are pure functions of their number."""

    def __init__(self, images: Dataset, trial: TrialConfig) -> None:
        self.images, self.trial = images, trial
        self.device = images.train.labels.device
        labels, data = images.train.labels.cpu(), trial.data
        split = subset.split(labels, data.fraction, data.val_size, data.subset_seed)
        self.train, self.val = (part.to(self.device) for part in split)
        self.train_labels = labels[split.train]
        if not self.steps:
            raise ConfigError(
                f"train.drop_last needs a whole batch of {trial.train.batch_size} images, but got {len(self.train)}."
            )
        self.partners, self.rotated = methods.partners(trial.method), methods.rotated(trial.method)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        n, size = len(self.train), self.trial.train.batch_size
        return n // size if self.trial.train.drop_last else -(-n // size)

    def epoch(self, epoch: int, number: int) -> Iterator[tuple[Batch, Tensor | None]]:
        """The batches of an epoch, each with the images of the partners for a method that has them.

        epoch: what the batches say of themselves; number: 1, 2 ..., what order and views are drawn by.
        """
        seed, size = self.trial.seed, self.trial.train.batch_size
        order = self._on_device(permutation(seed, Stream.ORDER, number, len(self.train)))
        chunks = self.train[order].split(size)[: self.steps]
        looks = [[Look(indices, Stream.VIEWS), *self._turned(indices)] for indices in chunks]
        if self.partners:
            others = self.train[self._on_device(same_class(seed, number, self.train_labels.numpy()))][order]
            for some, partners in zip(looks, others.split(size), strict=False):
                some.append(Look(partners, Stream.PARTNER_VIEWS))
        source = self.images.train
        augment = self.trial.train.augment
        for indices, shown in zip(chunks, source.look(self.trial.views, number, looks, augment), strict=True):
            partner = shown.pop() if self.partners else None
            images = shown[0]
            if self.rotated:
                images = torch.cat(shown).contiguous(memory_format=torch.channels_last)
            yield Batch(images, source.labels[indices], indices, epoch), partner

    def in_order(self, number: int) -> Iterator[Tensor]:
        """The training images in ascending order, as views of an epoch, in batches that suit a teacher."""
        chunks = eval_chunks(self.train, self.images.info.image_size, TEACHER_BATCH)
        looks = [[Look(indices, Stream.VIEWS)] for indices in chunks]
        for (images,) in self.images.train.look(self.trial.views, number, looks, self.trial.train.augment):
            yield images

    def plain(self, split: str) -> Iterator[Batch]:
        """The images of "train", "val" or "test", not augmented, in large batches."""
        source = self.images.test if split == "test" else self.images.train
        if split == "test":
            chosen = torch.arange(len(source.labels), device=self.device)
        else:
            chosen = self.train if split == "train" else self.val
        chunks = eval_chunks(chosen, self.images.info.image_size)
        for indices, images in zip(chunks, source.plain(chunks), strict=True):
            yield Batch(images, source.labels[indices], indices, 0)

    def _turned(self, indices: Tensor) -> list[Look]:
        return [Look(indices, stream, turns) for turns, stream in enumerate(TURNED, 1)] if self.rotated else []

    def _on_device(self, places: object) -> Tensor:
        return torch.as_tensor(places).to(self.device)
