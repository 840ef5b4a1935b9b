"""The student's passes as CUDA graphs: recorded once, replayed with one launch in place of hundreds."""

from collections.abc import Callable, Set
from typing import cast

import torch
from torch import Tensor, nn

from kdtrain.forward import forward
from kdtrain.models.outputs import Model, Outputs


class Graphed:
    """The forward and backward pass of a student in train mode, for batches of the size of `images`.

    Recording runs the student a few times; what that does to the running statistics of BatchNorm is undone.
    """

    def __init__(self, student: Model, images: Tensor, maps: Set[str], precision: str) -> None:
        self.shape = images.shape
        self.passes = _Pass(student, maps, precision)
        before = [buffer.clone() for buffer in student.buffers()]
        # Of some methods' stages a part of the student gets no gradient.
        recorded = torch.cuda.make_graphed_callables(self.passes, (images.clone(),), allow_unused_input=True)
        self.graph = cast(Callable[[Tensor], tuple[Tensor, ...]], recorded)
        for buffer, value in zip(student.buffers(), before, strict=True):
            buffer.copy_(value)

    def fits(self, images: Tensor) -> bool:
        """Whether a batch is of the size recorded: the last of an epoch may be smaller."""
        return images.shape == self.shape

    def __call__(self, images: Tensor) -> Outputs:
        """What `forward` gives."""
        logits, pooled, stem, *maps = self.graph(images)
        stages, preact = maps[: self.passes.n_stages], maps[self.passes.n_stages :]
        return Outputs(logits, pooled, stem, tuple(stages), tuple(preact))


class _Pass(nn.Module):
    """A forward pass with a flat tuple of tensors, as graphs need it."""

    def __init__(self, student: Model, maps: Set[str], precision: str) -> None:
        super().__init__()
        self.student, self.maps, self.precision = student, maps, precision
        self.n_stages = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images`: as `Model.forward`."""
        outputs = forward(self.student, images, self.maps, self.precision)
        self.n_stages = len(outputs.stages)
        return (outputs.logits, outputs.pooled, outputs.stem, *outputs.stages, *outputs.preact)
