"""The interface of a distillation method."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from kdtrain.config import Frozen
from kdtrain.models.outputs import Model, Outputs

Groups = list[dict[str, Any]]
MAPS = frozenset({"stages", "preact"})
T = TypeVar("T")


class Batch(NamedTuple):
    """One batch as the student sees it. B is the number of its labels."""

    images: Tensor  # [B, C, H, W], augmented and normalised; [4B, C, H, W] for a method that is `rotated`
    labels: Tensor  # [B], int64
    indices: Tensor  # [B], int64: the images' places in the full training set
    epoch: int  # 1-based, within its stage
    partner: Outputs | None = None  # the student's for another image of each label, without gradient; see `partners`
    assistants: tuple[Outputs, ...] = ()  # those of the networks that `assistants` names, for `images`


class Setting(NamedTuple):
    """What a method may look at when it is built. `*_shapes` are outputs for one image: read only their shapes."""

    student: Model
    student_shapes: Outputs
    teacher: Model | None
    teacher_shapes: Outputs | None
    num_classes: int
    epochs: int
    assistants: tuple[Model, ...] = ()


class Pretraining(NamedTuple):
    """A stage before the epochs of the recipe: an SGD of its own trains `modules`, all else is fixed and in eval mode.

    Momentum, weight decay and the factor at the milestones are the recipe's.
    """

    epochs: int
    modules: Sequence[nn.Module]
    lr: float | None = None  # None: the recipe's
    milestones: tuple[int, ...] = ()  # the last epoch at each learning rate
    student: bool = True  # whether the loss looks at the student's outputs


class Paper(NamedTuple):
    """Where a method was published."""

    title: str
    authors: str
    venue: str
    year: int


class Range(NamedTuple):
    """The values of a parameter that a search tries unless told otherwise."""

    low: float
    high: float
    log: bool = True  # uniform in the logarithm, for scales


Space = Mapping[str, Range | tuple[Any, ...]]  # a tuple holds choices


class Part(nn.Module):
    """What methods and plug-ins share: modules, state, and hooks that do nothing unless they are defined.

    Submodules are trained unless `param_groups` says otherwise. Parameters and buffers are saved in checkpoints, so
    state that must survive a resume is a buffer. A constructor raises ConfigError if its Config cannot work with these
    networks or this number of epochs; plans are checked by building.
    """

    class Config(Frozen):
        """The parameters; defaults are the paper's."""

    version: ClassVar[int] = 1  # part of the trial's identity: raise it when results change
    paper: ClassVar[Paper | None] = None
    search_space: ClassVar[Space] = {}
    min_batch: ClassVar[int] = 1  # 2 for what compares the images of a batch
    rotated: ClassVar[bool] = False  # batches hold each image turned by 0, 90, 180, 270 degrees: B, then 3B rows

    def __init__(self, config: Any, setting: Setting) -> None:
        super().__init__()
        self.config = config

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher's BatchNorm uses batch statistics (and moves its running ones): `teacher_bn` says so."""
        return trains_teacher(self.config)

    @property
    def teacher_in_loss(self) -> bool:
        """Whether the loss looks at the teacher; False for a method that does so in `pretraining` alone."""
        return False

    def digests(self) -> tuple[str, ...]:
        """All that the losses look at of the teacher's maps, where that is few numbers an image: names of `digest`.

        `METHOD:...`, METHOD being the key of METHODS. Trials share the numbers of a name, so it says all that they
        depend on beside the teacher and the images. For a method whose `needs` have "digest".
        """
        return ()

    def param_groups(self) -> Groups:
        """Optimizer groups of the own modules; by default one, with the student's settings.

        A group may say `weight_decay`, and `lr_scale` for a learning rate relative to the student's.
        """
        parameters = list(self.parameters())
        return [{"params": parameters}] if parameters else []

    def allocate(self, indices: Tensor, labels: Tensor) -> None:
        """Called once, before a saved state is loaded: make the buffers whose size depends on the training images.

        indices: [n] int64, the images' places in the full training set, ascending; labels: [n] int64.
        """

    def pretraining(self) -> Pretraining | None:
        """The stage before the epochs of the recipe; None where there is none. Its loss is `pretrain_loss`."""
        return None

    def pretrain_loss(self, batch: Batch, student: Outputs | None, teacher: Outputs | None) -> dict[str, Tensor]:
        """Named terms of the loss of `pretraining`; of the parts that have that stage, and never asked of others."""
        raise NotImplementedError(f"{type(self).__name__} has no stage before the epochs.")

    def prepare(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Called once before the first epoch with the training images, not augmented, and the teacher's outputs."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch of the recipe (1-based), also after a resume."""


class Method(Part, ABC):
    """One distillation method: its loss terms, its trainable modules (submodules) and its state (buffers)."""

    composed: ClassVar[Mapping[str, Any]] = {}  # defaults that differ when the method is added to another one
    # Of the teacher: "logits", "pooled", whole maps ("stages", "preact"), or "digest" where `digests` are all it needs.
    needs: ClassVar[frozenset[str]] = frozenset()
    nesterov: ClassVar[bool] = False  # what the method's authors used
    partners: ClassVar[bool] = False  # the student also sees another image of each label, see Batch

    @classmethod
    def needs_with(cls, config: Any) -> frozenset[str]:
        """The teacher outputs needed with this Config; `needs` unless the method depends on it."""
        return cls.needs

    @classmethod
    def digest(cls, name: str, teacher: Outputs) -> Tensor:
        """The numbers [B, ...] of one of the names of `digests`; never asked of methods that have none."""
        raise NotImplementedError(f"{cls.__name__} has no digests.")

    @classmethod
    def maps(cls, config: Any) -> frozenset[str]:
        """The maps of the student that the losses look at, "stages" (and the stem) and "preact"; by default `needs`."""
        return cls.needs_with(config) & MAPS

    @classmethod
    def assistants(cls, config: Any) -> tuple[str, ...]:
        """The architectures of teachers beside the teacher, each distilled with those before it. None."""
        return ()

    @classmethod
    def assistant_params(cls, config: Any, place: int) -> Mapping[str, Any]:
        """The parameters that change where this method trains its assistant at `place` (from 0). None."""
        return {}

    @classmethod
    def self_taught(cls, config: Any) -> bool:
        """Whether the teacher is a trained network of the student's own architecture, whatever the pair. False."""
        return False

    @classmethod
    def blind_epochs(cls, config: Any, epochs: int) -> int:
        """How many of the recipe's first epochs end with predictions that say nothing yet. 0.

        So it is wherever labels or a teacher train what predicts from the first step on. Stages before the recipe's
        epochs do not count.
        """
        return 0

    @property
    def teacher_in_loss(self) -> bool:
        """By default whether the method needs anything of the teacher."""
        return bool(self.needs_with(self.config))

    @abstractmethod
    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """Named terms, weights applied; their sum is the loss. All features are float32 (or float64)."""

    def predict(self, outputs: Outputs) -> Tensor:
        """The logits [B, K] by which the student is evaluated; by default its own."""
        return outputs.logits

    def predictor(self) -> dict[str, Tensor]:
        """The part of `state_dict` that `predict` uses, which a file of the student's weights must hold. Nothing."""
        return {}

    def per_sample(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """Terms of `loss` by name before the mean over the images, which a plug-in may weight.

        Of the upright images first: [B]; then of the turned ones, if the method has such a term: [3B]. Of the hosts
        of such plug-ins, and never asked of others.
        """
        raise NotImplementedError(f"{type(self).__name__} is no host of a plug-in that weights images.")


class Plugin(Part, ABC):
    """What changes the terms of another method, its host, when it is added to it: `dkd+lskd` in a spec."""

    # The methods that may be hosts, each with the defaults that then differ, the host's and the plug-in's own.
    hosts: ClassVar[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]]

    @abstractmethod
    def change(self, host: Method, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """The terms of the host as this plug-in makes them, and its own."""


def trains_teacher(config: Any) -> bool:
    """Whether a Config has the field `teacher_bn` and it says "train"."""
    return bool(getattr(config, "teacher_bn", "eval") == "train")


def given(value: T | None) -> T:
    """`value`: of the teacher, or in a stage that looks at the student, of the student."""
    assert value is not None, "the method names it in `needs`"
    return value


def first_rows(outputs: Outputs, n: int | None) -> Outputs:
    """The outputs of the first n images; of all for None."""
    logits, pooled, stem, stages, preact, digests = outputs
    return Outputs(
        logits[:n], pooled[:n], stem[:n], tuple(stage[:n] for stage in stages), tuple(stage[:n] for stage in preact),
        {name: values[:n] for name, values in digests.items()},
    )  # fmt: skip
