"""How good a teacher is, before anything is learned from it."""

import torch

from kdtrain import checkpoint, data, metrics, models
from kdtrain.batches import eval_chunks
from kdtrain.config import ConfigError, DataConfig, TeacherRef, Where
from kdtrain.device import set_up

ROUNDING = 1e-6  # percent: 72.44 is within 0.1 of 72.34, though not in binary


def evaluate(ref: TeacherRef, config: DataConfig, path: str, where: Where) -> metrics.Metrics:
    """The metrics on the test images of a data set of the teacher whose weights are in the file `path`.

    ConfigError if the file is missing or damaged, does not fit or has another id than `ref`.
    """
    device = set_up(where)
    info = data.info_of(config)
    with torch.random.fork_rng(devices=[]):
        model = models.build(ref.model, info.num_classes, info.in_channels)
    checkpoint.load_teacher(model, path, ref.id, ref.model)
    model.eval().to(device).to(memory_format=torch.channels_last)
    test = data.load(config, where, device).test
    places = eval_chunks(torch.arange(len(test.labels), device=device), info.image_size)
    with torch.inference_mode():
        logits = torch.cat([model(images).logits for images in test.plain(places)])
    if not torch.isfinite(logits).all():
        raise ConfigError(f"the teacher {ref.model} must give finite logits, but {path} gives NaN or infinite ones.")
    return metrics.evaluate(logits, test.labels)


def expect(top1: float, wanted: float, within: float, what: str) -> None:
    """Raise ConfigError unless |top1 - wanted| <= within, all in percent. `what` names teacher and data set."""
    if not abs(top1 - wanted) <= within + ROUNDING:
        raise ConfigError(f"{what} must have a top-1 of {wanted:g} ± {within:g}, but has {top1:g} in float32.")
