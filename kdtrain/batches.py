"""The batches of a trial: which images, in which order, as which views."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kdtrain import methods, subset, views
from kdtrain.config import TrialConfig
from kdtrain.data import Dataset
from kdtrain.draws import Stream, permutation, same_class
from kdtrain.methods.base import Batch

EVAL_BATCH = 500


class Batches:
    """All that a trial sees of a data set, on the data set's device. Epochs are pure functions of their number."""

    def __init__(self, images: Dataset, trial: TrialConfig) -> None:
        self.images, self.trial = images, trial
        self.device = images.train_images.device
        labels, data = images.train_labels.cpu(), trial.data
        split = subset.split(labels, data.fraction, data.val_size, data.subset_seed)
        self.train, self.val = (part.to(self.device) for part in split)
        self.train_labels = labels[split.train]
        self.padded = views.pad(images.train_images)
        self.partners, self.rotated = methods.partners(trial.method), methods.rotated(trial.method)

    def epoch(self, epoch: int, number: int) -> Iterator[tuple[Batch, Tensor | None]]:
        """The batches of an epoch, each with the images of the partners for a method that has them.

        epoch: what the batches say of themselves; number: 1, 2 ..., what order and views are drawn by.
        """
        seed, size = self.trial.seed, self.trial.train.batch_size
        order = self._on_device(permutation(seed, Stream.ORDER, number, len(self.train)))
        drawn = self._draw(number, Stream.VIEWS)
        turned = []
        if self.rotated:
            streams = (Stream.TURNED_90, Stream.TURNED_180, Stream.TURNED_270)
            # The flip comes before the turn and is the same for all four.
            turned = [self._draw(number, stream)._replace(flip=drawn.flip) for stream in streams]
        if self.partners:
            others = self.train[self._on_device(same_class(seed, number, self.train_labels.numpy()))][order]
            drawn_others = self._draw(number, Stream.PARTNER_VIEWS)
        for i, indices in enumerate(self.train[order].split(size)):
            shown = [self._look(indices, drawn)]
            shown += [torch.rot90(self._look(indices, view), k, (2, 3)) for k, view in enumerate(turned, 1)]
            images = shown[0]
            if turned:  # whose memory is in another order
                images = torch.cat(shown).contiguous(memory_format=torch.channels_last)
            partner = self._look(others[i * size : (i + 1) * size], drawn_others) if self.partners else None
            yield Batch(images, self.images.train_labels[indices], indices, epoch), partner

    def plain(self, split: str) -> Iterator[Batch]:
        """The images of "train", "val" or "test", not augmented, in large batches."""
        if split == "test":
            images, labels = self.images.test_images, self.images.test_labels
            chosen = torch.arange(len(labels), device=self.device)
        else:
            images, labels = self.images.train_images, self.images.train_labels
            chosen = self.train if split == "train" else self.val
        for indices in chosen.split(EVAL_BATCH):
            yield Batch(self._plain(images, indices), labels[indices], indices, 0)

    def _draw(self, number: int, stream: Stream) -> views.Views:
        return views.draw(self.trial.views, number, len(self.images.train_labels), self.device, stream)

    def _look(self, indices: Tensor, drawn: views.Views) -> Tensor:
        if not self.trial.train.augment:
            return self._plain(self.images.train_images, indices)
        return views.apply(self.padded, indices, drawn, self.images.info.mean, self.images.info.std)

    def _plain(self, images: Tensor, indices: Tensor) -> Tensor:
        return views.plain(images, indices, self.images.info.mean, self.images.info.std)

    def _on_device(self, places: object) -> Tensor:
        return torch.as_tensor(places).to(self.device)
