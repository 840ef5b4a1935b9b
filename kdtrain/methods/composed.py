"""Two methods or more together, or a method with a plug-in: `crd+kd`, `sskd+ipwd` in a spec."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kdtrain.config import ConfigError
from kdtrain.methods.base import Batch, Groups, Method, Part, Plugin, Pretraining, Setting, first_rows
from kdtrain.models.outputs import Outputs


class Composed(Method):
    """The union of the terms of several methods; a plug-in changes the terms of the first.

    The cross-entropy and the prediction are the first method's; the others' cross-entropy is left
    out, so that it counts once. At most one part has a stage before the epochs; all other hooks call
    those of each part.
    """

    def __init__(self, parts: Mapping[str, Part], setting: Setting) -> None:
        super().__init__({name: part.config for name, part in parts.items()}, setting)
        for name, part in list(parts.items())[1:]:
            if isinstance(part, Method) and part.predictor():
                raise ConfigError(
                    f"{name} must stand first in {'+'.join(parts)!r}: it predicts with its own classifier."
                )
        if len(pretrained := [name for name, part in parts.items() if part.pretraining() is not None]) > 1:
            raise ConfigError(
                f"one method at most may have a stage before the first epoch, but {' and '.join(pretrained)} have one."
            )
        self.by_name = nn.ModuleDict(dict(parts))

    @property
    def parts(self) -> list[Part]:
        """The methods and plug-ins, in order."""
        return [part for part in self.by_name.values() if isinstance(part, Part)]

    @property
    def host(self) -> Method:
        """The first method."""
        first = self.parts[0]
        assert isinstance(first, Method)
        return first

    @property
    def teacher_trains(self) -> bool:
        """Whether any part wants the teacher's BatchNorm in train mode."""
        return any(part.teacher_trains for part in self.parts)

    @property
    def teacher_in_loss(self) -> bool:
        """Whether any part's loss looks at the teacher."""
        return any(part.teacher_in_loss for part in self.parts)

    def digests(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.digests()))

    def param_groups(self) -> Groups:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups()]

    def allocate(self, indices: Tensor, labels: Tensor) -> None:
        """Make the buffers of each part."""
        for part in self.parts:
            part.allocate(indices, labels)

    def pretraining(self) -> Pretraining | None:
        """That of the one part that has one."""
        return next((stage for part in self.parts if (stage := part.pretraining()) is not None), None)

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """The terms of that part."""
        part = next(part for part in self.parts if part.pretraining() is not None)
        n = _rows(part, batch)
        return part.pretrain_loss(
            _cut(batch, n), student and first_rows(student, n), teacher and first_rows(teacher, n)
        )

    def prepare(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Prepare each part."""
        for part in self.parts:
            part.prepare(batches)

    def start_epoch(self, epoch: int) -> None:
        """Start the epoch in each part."""
        for part in self.parts:
            part.start_epoch(epoch)

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """All terms; ValueError if two parts give terms of one name."""
        terms: dict[str, Tensor] = {}
        plugin = next((part for part in self.parts if isinstance(part, Plugin)), None)
        for part in self.parts:
            if not isinstance(part, Method):
                continue
            n = _rows(part, batch)
            seen = _cut(batch, n), first_rows(student, n), teacher and first_rows(teacher, n)
            new = plugin.change(part, *seen) if plugin and part is self.host else part.loss(*seen)
            if part is not self.host:
                new.pop("ce", None)
            if both := terms.keys() & new.keys():
                raise ValueError(f"two methods of {'+'.join(self.config)} have a term named {min(both)!r}.")
            terms |= new
        return terms

    def predict(self, outputs: Outputs) -> Tensor:
        """The first method's prediction."""
        return self.host.predict(outputs)

    def predictor(self) -> dict[str, Tensor]:
        """The first method's."""
        return self.host.predictor()


def _rows(part: Part, batch: Batch) -> int | None:
    """How many rows of the outputs a part looks at: all if it is `rotated`, else those of the upright images."""
    return None if part.rotated else len(batch.labels)


def _cut(batch: Batch, n: int | None) -> Batch:
    """The batch with the first n rows of what may have more."""
    return batch._replace(images=batch.images[:n], assistants=tuple(first_rows(o, n) for o in batch.assistants))
