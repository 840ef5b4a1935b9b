"""What every model returns, and the base that all models share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from kdtrain.config import ConfigError


class Outputs(NamedTuple):
    """One forward pass. B batch, K classes, D pooled features, C channels, H x W space."""

    logits: Tensor  # [B, K]
    pooled: Tensor  # [B, D], the input of the last linear layer
    stem: Tensor  # [B, C0, H0, W0]
    stages: tuple[Tensor, ...]  # [B, C, H, W] each, shallow to deep
    preact: tuple[Tensor, ...]  # of each stage before its last ReLU: of its shape, what `preact_norms` give or end in
    digests: Mapping[str, Tensor] = MappingProxyType({})  # of a teacher: [B, ...] each, see `Part.digests`


class Model(nn.Module, ABC):
    """An image classifier that shows its features."""

    multiple: ClassVar[int] = 4  # rows and columns of the images must be multiples of this ...
    least: ClassVar[int] = 8  # ... and at least this many
    hint: ClassVar[str] = ""  # what to take instead, a sentence after a space

    def forward(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised. ConfigError if the network cannot work with images of this size."""
        height, width = x.shape[2:]
        if height % self.multiple or width % self.multiple or min(height, width) < self.least:
            raise ConfigError(
                f"{type(self).__name__} needs images whose rows and columns are multiples of {self.multiple} and at "
                f"least {self.least}, but got {height} x {width}.{self.hint}"
            )
        return self.outputs(x)

    @abstractmethod
    def outputs(self, x: Tensor) -> Outputs:
        """What `forward` returns, for images of a size that fits."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""

    @property
    @abstractmethod
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage; what comes after the last stage is in none.

        Nothing for a network that shows no maps.
        """

    @property
    @abstractmethod
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm before the ReLU that `Outputs.preact` precedes, of each stage.

        ConfigError for a network where a single BatchNorm does not cover all channels.
        """
