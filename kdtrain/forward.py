"""A forward pass in a trial's precision."""

from collections.abc import Set

import torch
from torch import Tensor

from kdtrain.models.outputs import Model, Outputs


def forward(model: Model, images: Tensor, maps: Set[str], precision: str) -> Outputs:
    """Outputs in float32, computed in `precision` ("fp32", "bf16"); of the maps those that `maps` names."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs: Outputs = model(images)
    pooled = outputs.pooled.float()
    # The head in float32: losses compare logits, and logits rounded to bfloat16 tie.
    logits = outputs.logits if outputs.logits.dtype == torch.float32 else model.head(pooled)
    stages = tuple(stage.float() for stage in outputs.stages) if "stages" in maps else ()
    preact = tuple(stage.float() for stage in outputs.preact) if "preact" in maps else ()
    stem = outputs.stem.float() if "stages" in maps else outputs.stem[:0]
    return Outputs(logits, pooled, stem, stages, preact)
