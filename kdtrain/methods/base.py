"""The interface of a distillation method."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.models.outputs import Model, Outputs

Groups = list[dict[str, Any]]
T = TypeVar("T")


class Batch(NamedTuple):
    """One batch as the student sees it."""

    images: Tensor  # [B, C, H, W], augmented and normalised
    labels: Tensor  # [B], int64
    indices: Tensor  # [B], int64: the images' places in the full training set
    epoch: int  # 1-based


class Setting(NamedTuple):
    """What a method may look at when it is built. `*_shapes` are outputs for one image: read only their shapes."""

    student: Model
    student_shapes: Outputs
    teacher: Model | None
    teacher_shapes: Outputs | None
    num_classes: int
    epochs: int


class Method(nn.Module, ABC):
    """One distillation method: its loss terms, its trainable modules (submodules) and its state (buffers).

    Parameters and buffers are saved in checkpoints, so state that must survive a resume is a buffer.
    The hooks (`param_groups`, `prepare`, `start_epoch`, `predict`, `teacher_trains`) say
    here what happens for a method that does not define them. A constructor raises ConfigError if its
    Config cannot work with these networks or this number of epochs; plans are checked by building.
    """

    class Config(Frozen):
        """The method's parameters; defaults are the paper's."""

    version: ClassVar[int] = 1  # part of the trial's identity: raise it when results change
    composed: ClassVar[dict[str, Any]] = {}  # defaults that differ when the method is added to another one
    needs: ClassVar[frozenset[str]] = frozenset()  # teacher outputs: "logits", "pooled", "stages"
    nesterov: ClassVar[bool] = False  # what the method's authors used

    def __init__(self, config: Any, setting: Setting) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """Named terms, weights applied; their sum is the loss. All features are float32 (or float64)."""

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher's BatchNorm uses batch statistics (and moves its running ones). False."""
        return False

    def param_groups(self) -> Groups:
        """Optimizer groups of the method's own modules; by default one, with the student's settings.

        A group may say `weight_decay`, and `lr_scale` for a learning rate relative to the student's.
        """
        parameters = list(self.parameters())
        return [{"params": parameters}] if parameters else []

    def prepare(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Called once before epoch 1 with the training images, not augmented, and the teacher's outputs."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch (1-based), also after a resume."""

    def predict(self, outputs: Outputs) -> Tensor:
        """The logits [B, K] by which the student is evaluated; by default its own."""
        return outputs.logits


def given(value: T | None) -> T:
    """`value`, which a method that names it in `needs` is always given."""
    assert value is not None, "the method needs a teacher"
    return value
