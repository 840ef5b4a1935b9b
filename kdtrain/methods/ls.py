"""LS: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., CVPR 2016, arXiv:1512.00567)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdtrain.config import Frozen
from kdtrain.methods.base import Batch, Method, Paper, Range, Space
from kdtrain.models.outputs import Outputs


class LS(Method):
    """L = CE to (1 - epsilon) onehot(y) + epsilon / K for K classes. Also trains teachers."""

    class Config(Frozen):
        """The paper's value, which PS-KD's and IPWD's rows have, too."""

        epsilon: float = Field(0.1, ge=0, lt=1)  # probability spread over all classes, the true one included

    paper = Paper("Rethinking the Inception Architecture for Computer Vision", "Szegedy et al.", "CVPR", 2016)
    search_space: ClassVar[Space] = {"epsilon": Range(0.01, 0.5)}

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce}."""
        return {"ce": F.cross_entropy(student.logits, batch.labels, label_smoothing=self.config.epsilon)}
