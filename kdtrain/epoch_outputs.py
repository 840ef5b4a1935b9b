"""The outputs of a frozen teacher for all images of an epoch, computed at once and kept in float16.

They depend on the teacher, the images and the view that each image has in the epoch, and not on the student, its method
or the order of the batches. So trials may share them, see `output_cache`; a trial that computes its own does so in the
same way, and gets the same numbers.
"""

import time
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from kdtrain import methods
from kdtrain.batches import Batches
from kdtrain.build import images_of
from kdtrain.config import TeacherRef, TrialConfig, Where, digest
from kdtrain.data.prepared import cache
from kdtrain.device import device_name
from kdtrain.forward import forward
from kdtrain.methods.base import MAPS
from kdtrain.models.outputs import Model, Outputs
from kdtrain.output_cache import OutputCache, Shared

FORMAT = 1  # of the files, and of the way the numbers come about
DTYPE = torch.float16
FOLDER = "teacher_outputs"  # in the cache of a machine
GIGABYTE = 10**9


def identity(trial: TrialConfig, ref: TeacherRef) -> dict[str, Any]:
    """What the outputs of a teacher of the trial depend on, beside the epoch and the machine."""
    return {
        "teacher": ref.model_dump(),
        "data": images_of(trial.data),
        "view_seed": trial.views if trial.train.augment else None,
        "precision": trial.train.precision,
    }


def shared_in(trial: TrialConfig, ref: TeacherRef, where: Where, device: torch.device) -> OutputCache:
    """The files in which trials share the outputs of a teacher on this machine.

    Those of other devices, threads or versions of torch would differ in their last digits.
    """
    machine = [FORMAT, device_name(device), where.cpus, torch.__version__]
    folder = cache(where) / FOLDER
    return OutputCache(folder, digest([machine, identity(trial, ref)]), round(where.cache_gb * GIGABYTE))


def rounded(outputs: Outputs) -> Outputs:
    """Float32 outputs without maps, as they come out of a file."""
    values = outputs.logits, outputs.pooled, *outputs.digests.values()
    logits, pooled, *digests = (value.to(DTYPE).float() for value in values)
    return Outputs(logits, pooled, outputs.stem[:0], (), (), dict(zip(outputs.digests, digests, strict=True)))


class EpochOutputs:
    """What a trial sees of one frozen teacher, an epoch at a time.

    `names`: what it looks at: "logits", "pooled" and digests. `files`: where outputs are shared, if they are, and
    `stored` what is put there: what all trials that share them look at.
    """

    def __init__(
        self,
        model: Model,
        batches: Batches,
        names: Iterable[str],
        files: OutputCache | None = None,
        stored: Iterable[str] = (),
    ) -> None:
        self.model, self.batches, self.files = model, batches, files
        self.names = frozenset(names)
        self.stored = self.names | frozenset(stored)
        # Of the last `begin`: seconds at the teacher and at shared files, and epochs that were computed.
        self.computing, self.sharing, self.computed = 0.0, 0.0, 0
        self._opened = Shared({})
        self._rows: Mapping[str, Tensor] = {}

    def begin(self, number: int, last: int) -> None:
        """Have the outputs for the views of an epoch. `number`: see `Batches.epoch`; `last`: of the epochs to come."""
        start, self.computing, self.computed = time.perf_counter(), 0.0, 0
        self.end()
        if self.files is None:
            self._rows = self._compute(number, self.names)
        else:
            # Without augmentation all epochs are alike.
            places = range(number, last + 1) if self.batches.trial.train.augment else range(1)
            self._opened = self.files.get(places[0], self.names, self._stored, places[1:])
            arrays, device = self._opened.arrays, self.batches.device
            self._rows = {name: arrays[name].to(device, non_blocking=True) for name in self.names}
        self.sharing = time.perf_counter() - start - self.computing if self.files else 0.0

    def end(self) -> None:
        """Let go of the outputs of the last epoch."""
        self._rows = {}
        self._opened.close()
        self._opened = Shared({})

    def of(self, indices: Tensor) -> Outputs:
        """The outputs for images of the epoch, in float32. indices: [B], places in the full training set."""
        places = torch.searchsorted(self.batches.train, indices)
        rows = {name: values.index_select(0, places).float() for name, values in self._rows.items()}
        empty = torch.empty(0, device=indices.device)
        return Outputs(rows.pop("logits", empty), rows.pop("pooled", empty), empty, (), (), rows)

    def _stored(self, number: int, names: Set[str]) -> dict[str, Tensor]:
        return self._compute(number, names | self.stored)

    def _compute(self, number: int, names: Set[str]) -> dict[str, Tensor]:
        """The outputs for all images in ascending order, [n, ...] each; on the CPU where they are to be stored."""
        start, first = time.perf_counter(), 0
        rows: dict[str, Tensor] = {}
        with torch.inference_mode():
            for images in self.batches.in_order(number):
                for name, values in self._of(images, names).items():
                    if first == 0:
                        rows[name] = values.new_empty(len(self.batches.train), *values.shape[1:], dtype=DTYPE)
                    rows[name][first : first + len(images)] = values
                first += len(images)
            if self.files is not None:
                rows = {name: values.cpu() for name, values in rows.items()}
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize(self.batches.device)  # else these seconds would be those of the next step
        self.computing += time.perf_counter() - start
        self.computed += 1
        return rows

    def _of(self, images: Tensor, names: Set[str]) -> dict[str, Tensor]:
        digests = names - {"logits", "pooled"}
        maps = MAPS if digests else frozenset()
        outputs = forward(self.model, images, maps, self.batches.trial.train.precision)
        every = {"logits": outputs.logits, "pooled": outputs.pooled, **methods.digested(digests, outputs).digests}
        return {name: every[name] for name in names}
