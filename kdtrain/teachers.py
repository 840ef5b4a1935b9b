"""What the steps of a trial see of its teachers: outputs of the epoch, computed at once and perhaps shared, or live."""

from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import Tensor

from kdtrain import methods
from kdtrain.batches import Batches
from kdtrain.config import TrialConfig, Where
from kdtrain.epoch_outputs import EpochOutputs, rounded, shared_in
from kdtrain.forward import forward
from kdtrain.methods.base import MAPS, Batch, Method, Setting
from kdtrain.models.outputs import Model, Outputs


class Teachers:
    """The teacher of a trial and its assistants.

    Where a method looks at a few numbers an image that no step changes, they are computed for all images of an epoch
    before its first step: it costs less in large batches, and trials may share them if `where` says so. Else the
    teacher is asked in each step.
    """

    def __init__(self, trial: TrialConfig, setting: Setting, method: Method, batches: Batches, where: Where) -> None:
        self.trial, self.method = trial, method
        self.teacher, self.assistants = setting.teacher, setting.assistants
        self.frozen = methods.cacheable(trial.method)
        self.at_once = self._epoch_outputs(batches, where) if self.frozen and batches.images.info.in_memory else []

    @property
    def problem(self) -> str | None:
        """Why outputs could not be shared with other trials, though they were to be."""
        problems = (outputs.files.problem for outputs in self.at_once if outputs.files)
        return next((problem for problem in problems if problem), None)

    def spent(self) -> dict[str, Any]:
        """What the last `begin` took, as fields of an EpochRecord."""
        return {
            "teacher_seconds": sum(outputs.computing for outputs in self.at_once),
            "shared_seconds": sum(outputs.sharing for outputs in self.at_once),
            "teacher_epochs": sum(outputs.computed for outputs in self.at_once[:1]),
        }

    def begin(self, number: int, last: int) -> None:
        """Have what can be computed at once for an epoch. See `EpochOutputs.begin`."""
        for outputs in self.at_once:
            outputs.begin(number, last)

    def end(self) -> None:
        """Let go of it."""
        for outputs in self.at_once:
            outputs.end()

    def of(self, batch: Batch) -> tuple[Outputs | None, tuple[Outputs, ...]]:
        """The outputs of the teacher, if there is one, and of the assistants, for a batch of the epoch begun."""
        if self.at_once:
            teacher, *assistants = (outputs.of(batch.indices) for outputs in self.at_once)
            return teacher, tuple(assistants)
        return self.live(batch), self.live_assistants(batch)

    def live(self, batch: Batch) -> Outputs | None:
        """The teacher's outputs for any batch, computed now."""
        if self.teacher is None:
            return None
        digests = self.method.digests()
        maps = MAPS if digests else methods.needs(self.trial.method) & MAPS
        return self._ask(self.teacher, batch.images, maps, digests)

    def live_assistants(self, batch: Batch) -> tuple[Outputs, ...]:
        """The assistants' outputs for any batch, computed now."""
        return tuple(self._ask(model, batch.images, frozenset()) for model in self.assistants)

    def _ask(self, model: Model, images: Tensor, maps: Set[str], digests: Iterable[str] = ()) -> Outputs:
        """Rounded where other trials may read the same from a file."""
        with torch.no_grad():
            outputs = forward(model, images, maps, self.trial.train.precision)
            outputs = methods.digested(digests, outputs)
            return rounded(outputs) if self.frozen else outputs

    def _epoch_outputs(self, batches: Batches, where: Where) -> list[EpochOutputs]:
        """For the teacher, then for each assistant, of which the logits are seen."""
        if self.teacher is None or self.trial.teacher is None:
            return []
        names = {*(methods.needs(self.trial.method) - {"digest"}), *self.method.digests()}
        networks = [(self.teacher, self.trial.teacher, names, where.shared)]
        for model, ref in zip(self.assistants, self.trial.assistants or (), strict=True):
            networks.append((model, ref, {"logits"}, ()))
        return [
            EpochOutputs(
                model, batches, names, shared_in(self.trial, ref, where, batches.device) if where.shared else None, also
            )
            for model, ref, names, also in networks
        ]
