"""What every model returns, and the base that all models share."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """One forward pass. B batch, K classes, D pooled features, C channels, H x W space."""

    logits: Tensor  # [B, K]
    pooled: Tensor  # [B, D], the input of the last linear layer
    stem: Tensor  # [B, C0, H0, W0]
    stages: tuple[Tensor, ...]  # [B, C, H, W] each, shallow to deep
    preact: tuple[Tensor, ...]  # of each stage before its last ReLU: of its shape, what `preact_norms` give or end in


class Model(nn.Module, ABC):
    """An image classifier that shows its features."""

    @abstractmethod
    def forward(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""

    @property
    @abstractmethod
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of the stem, then those of each stage; what comes after the last stage is in none."""

    @property
    @abstractmethod
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The last BatchNorm before the ReLU that `Outputs.preact` precedes, of each stage."""
