"""CID: Comprehensive Knowledge Distillation with Causal Intervention (Deng and Zhang, NeurIPS 2021).

Where the paper and the authors' code differ, this is the code, which produced the published rows:
the context is not divided by the number of classes, its weights carry no gradient, the class term
looks at the classes with two samples or more in the batch, and the first epochs have no cross-entropy.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from kdtrain.config import ConfigError, Epochs, Frozen, part_of
from kdtrain.methods.base import Batch, Groups, Method, Paper, Range, Setting, Space, given
from kdtrain.methods.kd import kd_loss
from kdtrain.models.outputs import Outputs


def nm_mse(a: Tensor, b: Tensor) -> Tensor:
    """Norm-aware MSE: the mean over the batch of ||a - b||^2 / ||b||^2; both [B, D], b without zero rows."""
    return ((a - b).square().sum(1) / b.square().sum(1)).mean()


def class_relation_loss(v_s: Tensor, v_t: Tensor, labels: Tensor) -> Tensor:
    """The mean over classes k with n_k >= 2 samples of ||C_k^s - C_k^t||_F^2 / n_k^2; 0 without such a class.

    C_k holds the cosines between the pooled vectors of class k, the diagonal included.
    v_s: [B, D_s], v_t: [B, D_t], labels: [B]. Without unit.
    """
    n_s, n_t = F.normalize(v_s, dim=1), F.normalize(v_t, dim=1)
    same = labels[:, None] == labels[None, :]
    count = same.sum(1)  # n of each sample's class
    # Row i belongs to class y_i alone, so a row's weight 1/n^2 sums to the class's term.
    difference = ((n_s @ n_s.T - n_t @ n_t.T).square() * same).sum(1) / count.square()
    several = count >= 2
    classes = (several / count).sum()
    return (difference * several).sum() / classes.clamp(min=1)


def weighted_sums(v: Tensor, z: Tensor, labels: Tensor, tau: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """What one batch adds to the class centres: sum of w_i v_i, and of w_i, for each class.

    w_i = softmax(z_i / tau)[y_i]. v: [B, D], z: [B, K]. Returns [K, D] and [K].
    """
    w = F.softmax(z / tau, dim=1).gather(1, labels[:, None])
    sums = v.new_zeros(num_classes, v.shape[1]).index_add_(0, labels, w * v)
    return sums, v.new_zeros(num_classes).index_add_(0, labels, w[:, 0])


def centres_of(sums: Tensor, weights: Tensor) -> Tensor:
    """M_k = sum w_i v_i / sum w_i: [K, D], [K] -> [K, D]; zero for a class without weight."""
    return torch.where(weights[:, None] > 0, sums / weights[:, None], 0.0)


def context(z: Tensor, centres: Tensor, tau: float) -> Tensor:
    """J = softmax(z / tau) M without gradient to z: [B, K], [K, D] -> [B, D]."""
    return F.softmax(z.detach() / tau, dim=1) @ centres


def _different_stages(value: object) -> object:
    """The value of `layers`: a list of stages becomes an ascending tuple."""
    if isinstance(value, list | tuple):
        if value and all(type(stage) is int and stage >= 1 for stage in value) and len(set(value)) == len(value):
            return tuple(sorted(value))
    elif value in ("pooled", "all"):
        return value
    raise ValueError("must be 'pooled', 'all' or a list of different stages, of which 1 is the first")


Layers = Annotated[Literal["pooled", "all"] | tuple[int, ...], BeforeValidator(_different_stages)]


class CID(Method):
    """L = CE(fc([v_s; J]), y) + KL_tau(z_s, z_t) + alpha SR + beta CR; no CE in the first epochs.

    SR = nm_mse(R(v_s), v_t) with a linear R, CR = class_relation_loss(v_s, v_t). J is the sample's
    class context over the centres M that the last epoch built. Prediction is by fc, the context
    classifier, so accuracy means nothing in the initial epochs, which do not train it. Of other layers
    SR compares the channels' means over the map, with an R for each layer, and is the mean over the layers.
    """

    class Config(Frozen):
        """The weights of the authors' resnet56 -> resnet20; their other pairs stand in the specs."""

        alpha: float = Field(10.0, ge=0)  # weight of the sample representation (the code's b)
        beta: float = Field(1.0, ge=0)  # weight of the class representation (the code's c)
        tau: float = Field(4.0, gt=0)
        # Epochs without cross-entropy, or their share of all epochs: 20 of 240. None: 0 without `inv`, else that.
        init_epochs: Epochs | None = None
        centre_momentum: float = Field(0.0, ge=0, lt=1)  # M <- u M + (1 - u) M_new
        # Ablations (CID Figures 6 and 7)
        sr: bool = True
        cr: bool = True
        inv: bool = True  # False: cross-entropy on the student's own classifier
        # "mse": squared error divided by the mean ||v_t||^2 of the training images, the same scale on average
        sr_loss: Literal["nm_mse", "mse"] = "nm_mse"
        layers: Layers = "pooled"  # what SR compares: the pooled vectors, the maps of all stages, or of those listed

    paper = Paper("Comprehensive Knowledge Distillation with Causal Intervention", "Deng and Zhang", "NeurIPS", 2021)
    needs = frozenset({"logits", "pooled"})
    nesterov = True
    search_space: ClassVar[Space] = {"alpha": Range(1, 100), "beta": Range(0.1, 10), "tau": Range(1, 20)}

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        d_s = setting.student_shapes.pooled.shape[1]
        self.init_epochs = _init_epochs(config, setting.epochs)
        if self.init_epochs >= setting.epochs:
            raise ConfigError(
                f"cid needs an epoch after its {self.init_epochs} of init_epochs, but got epochs = {setting.epochs}."
            )
        self.stages = _stages(config, setting)  # 0-based; empty for the pooled vectors
        widths = zip(self._compared(setting.student_shapes), self._compared(given(setting.teacher_shapes)), strict=True)
        self.regressors = nn.ModuleList(nn.Linear(s.shape[1], t.shape[1]) for s, t in widths)
        self.classifier = nn.Linear(2 * d_s, setting.num_classes) if config.inv else None
        self.centres: Tensor  # M, used by the epoch under way
        self.register_buffer("centres", torch.zeros(setting.num_classes, d_s))
        self.sums: Tensor  # sum of w_i v_i of the epoch under way
        self.register_buffer("sums", torch.zeros(setting.num_classes, d_s))
        self.weights: Tensor  # sum of w_i
        self.register_buffer("weights", torch.zeros(setting.num_classes))
        self.mean_squares: Tensor  # of each layer, the mean of ||v_t||^2 over the training images, for "mse"
        self.register_buffer("mean_squares", torch.ones(len(self.regressors)))

    @classmethod
    def needs_with(cls, config: Any) -> frozenset[str]:
        """Also the means of the maps if SR looks at them."""
        return cls.needs | {"digest"} if cls.maps(config) else cls.needs

    @classmethod
    def maps(cls, config: Any) -> frozenset[str]:
        """The stages if SR looks at them."""
        return frozenset({"stages"}) if config.sr and config.layers != "pooled" else frozenset()

    @classmethod
    def blind_epochs(cls, config: Any, epochs: int) -> int:
        """The initial epochs, which do not train the context classifier; 0 without `inv`.

        Then the student's own classifier predicts, which the teacher trains in these epochs, too.
        """
        return _init_epochs(config, epochs) if config.inv else 0

    def digests(self) -> tuple[str, ...]:
        """The channels' means of the teacher's maps that SR looks at: `cid:STAGE`."""
        return tuple(f"cid:{i}" for i in self.stages)

    @classmethod
    def digest(cls, name: str, teacher: Outputs) -> Tensor:
        """The means [B, C] of a map."""
        return teacher.stages[int(name.partition(":")[2])].mean((2, 3))

    def param_groups(self) -> Groups:
        """The context classifier with the student's settings, R without weight decay."""
        groups: Groups = []
        if self.classifier is not None:
            groups.append({"params": list(self.classifier.parameters())})
        if self.regressors:
            groups.append({"params": list(self.regressors.parameters()), "weight_decay": 0.0})
        return groups

    def prepare(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Measure the mean ||v_t||^2 if the plain squared error needs it."""
        if self.config.sr and self.config.sr_loss == "mse":
            squares = [torch.stack([v.square().sum(1) for v in self._taught(given(t))]) for _, t in batches]
            self.mean_squares.copy_(torch.cat(squares, dim=1).mean(1))

    def start_epoch(self, epoch: int) -> None:
        """Take over the centres that the last epoch built; in the initial epochs there are none."""
        first = max(self.init_epochs, 1) + 1  # the first epoch that has centres
        if epoch >= first:
            built = centres_of(self.sums, self.weights)
            u = self.config.centre_momentum if epoch > first else 0.0
            self.centres.copy_(u * self.centres + (1 - u) * built)
        self.sums.zero_()
        self.weights.zero_()

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{kl, sr, cr} in the initial epochs, then {ce, kl, sr, cr}."""
        config, teacher = self.config, given(teacher)
        terms = {"kl": kd_loss(student.logits, teacher.logits, config.tau)}
        if config.sr:
            terms["sr"] = config.alpha * self._sample_representation(student, teacher)
        if config.cr:
            terms["cr"] = config.beta * class_relation_loss(student.pooled, teacher.pooled, batch.labels)
        if batch.epoch > self.init_epochs:
            terms["ce"] = F.cross_entropy(self.predict(student), batch.labels)
        if config.inv:
            with torch.no_grad():
                size = len(self.weights)
                sums, weights = weighted_sums(student.pooled, teacher.logits, batch.labels, config.tau, size)
                self.sums += sums
                self.weights += weights
        return terms

    def predict(self, outputs: Outputs) -> Tensor:
        """The context classifier's logits; without `inv` the student's own."""
        if self.classifier is None:
            return outputs.logits
        j = context(outputs.logits, self.centres, self.config.tau)
        logits: Tensor = self.classifier(torch.cat([outputs.pooled, j], dim=1))
        return logits

    def predictor(self) -> dict[str, Tensor]:
        """The context classifier and the centres; nothing without `inv`."""
        used = ("classifier", "centres") if self.config.inv else ()
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(used)}

    def _compared(self, outputs: Outputs) -> list[Tensor]:
        """The vectors that SR compares, [B, D] of each layer; none without `sr`."""
        if not self.config.sr:
            return []
        return [self.digest(name, outputs) for name in self.digests()] or [outputs.pooled]

    def _taught(self, teacher: Outputs) -> list[Tensor]:
        """The same of the teacher, of whose maps the means alone are known."""
        if not self.config.sr:
            return []
        return [teacher.digests[name] for name in self.digests()] or [teacher.pooled]

    def _sample_representation(self, student: Outputs, teacher: Outputs) -> Tensor:
        layers = zip(self.regressors, self._compared(student), self._taught(teacher), strict=True)
        pairs = [(regressor(v_s), v_t) for regressor, v_s, v_t in layers]
        if self.config.sr_loss == "nm_mse":
            return torch.stack([nm_mse(v_s, v_t) for v_s, v_t in pairs]).mean()
        errors = torch.stack([(v_s - v_t).square().sum(1).mean() for v_s, v_t in pairs])
        return (errors / self.mean_squares).mean()


def _init_epochs(config: CID.Config, epochs: int) -> int:
    """How many epochs have no cross-entropy."""
    share = config.init_epochs if config.init_epochs is not None else (20 / 240 if config.inv else 0)
    return part_of(share, epochs)


def _stages(config: CID.Config, setting: Setting) -> list[int]:
    """The stages whose maps SR compares, 0-based; ConfigError if one of the networks lacks one."""
    n_s, n_t = len(setting.student_shapes.stages), len(given(setting.teacher_shapes).stages)
    if not config.sr or config.layers == "pooled":
        return []
    if config.layers == "all":
        if n_s != n_t:
            raise ConfigError(f"cid.layers = 'all' needs networks with equally many stages, but got {n_s} and {n_t}.")
        return list(range(n_s))
    if config.layers[-1] > min(n_s, n_t):
        raise ConfigError(
            f"cid.layers must be stages of both networks, but got {config.layers[-1]} of {min(n_s, n_t)}."
        )
    return [stage - 1 for stage in config.layers]
