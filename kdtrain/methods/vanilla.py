"""Vanilla: the student alone, cross-entropy to the labels."""

import torch.nn.functional as F
from torch import Tensor

from kdtrain.methods.base import Batch, Method
from kdtrain.models.outputs import Outputs


class Vanilla(Method):
    """L = CE(z_s, y). Trains teachers and the plain students that methods are compared with."""

    def loss(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> dict[str, Tensor]:
        """{ce}."""
        return {"ce": F.cross_entropy(student.logits, batch.labels)}
