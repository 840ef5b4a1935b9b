"""Two methods or more together: `crd+kd` in a spec."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from kdtrain.config import ConfigError
from kdtrain.methods.base import Batch, Groups, Method, Setting
from kdtrain.models.outputs import Outputs


class Composed(Method):
    """The union of the terms of several methods.

    The cross-entropy and the prediction are the first method's; the others' cross-entropy is left
    out, so that it counts once. Every hook calls that of each part.
    """

    def __init__(self, parts: Mapping[str, Method], setting: Setting) -> None:
        super().__init__({name: part.config for name, part in parts.items()}, setting)
        for name, part in list(parts.items())[1:]:
            if type(part).predict is not Method.predict:
                raise ConfigError(
                    f"{name} must stand first in {'+'.join(parts)!r}: it predicts with its own classifier."
                )
        self.by_name = nn.ModuleDict(dict(parts))

    @property
    def parts(self) -> list[Method]:
        """The methods, in order."""
        return [part for part in self.by_name.values() if isinstance(part, Method)]

    @property
    def teacher_trains(self) -> bool:
        """Whether any part wants the teacher's BatchNorm in train mode."""
        return any(part.teacher_trains for part in self.parts)

    def param_groups(self) -> Groups:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups()]

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
        for i, part in enumerate(self.parts):
            new = part.loss(batch, student, teacher)
            if i:
                new.pop("ce", None)
            if both := terms.keys() & new.keys():
                raise ValueError(f"two methods of {'+'.join(self.config)} have a term named {min(both)!r}.")
            terms |= new
        return terms

    def predict(self, outputs: Outputs) -> Tensor:
        """The first method's prediction."""
        return self.parts[0].predict(outputs)
