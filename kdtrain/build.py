"""From a TrialConfig to its networks and its method; also the complete check of a trial before it starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from kdtrain import data, methods, models
from kdtrain.config import ConfigError, DataConfig, MethodRef, TeacherRef, TrialConfig, canonical, digest
from kdtrain.data.dataset import Info
from kdtrain.methods.base import Method, Setting
from kdtrain.models.outputs import Model, Outputs
from kdtrain.models.unfilled import shapes, unfilled

LoadTeacher = Callable[[Model, TeacherRef], None]


def trial_id(trial: TrialConfig) -> str:
    """16 hex digits that name everything that determines the trial's result.

    Fields that are None are left out, so that a field added later with the default None changes no id.
    """
    config = trial.model_dump(mode="json", exclude_none=True)
    config["view_seed"] = trial.views
    config["data"] = images_of(trial.data)
    if trial.probe is not None:
        del config["probe"]["dataset"]  # which follows from the source
    config["train"] |= {"lr_milestones": trial.train.milestones, "nesterov": nesterov(trial)}
    config["method"] = {
        "name": trial.method.name,
        "params": methods.params(trial.method),
        "version": methods.version(trial.method),
    }
    return digest(config)


def images_of(config: DataConfig) -> dict[str, Any]:
    """What determines the images: of a folder not where it lies, of another set not what it has anyway."""
    given = config.model_dump(mode="json", exclude_none=True)
    if config.folder is not None:
        own: dict[str, Any] = {"channels": 3}
        given["dataset"] = "folder"
    else:
        info = data.info_of(DataConfig(dataset=config.dataset))
        own = {"image_size": info.image_size, "channels": info.in_channels, "mean": info.mean, "std": info.std}
    return {key: value for key, value in given.items() if key not in own or own[key] != getattr(config, key)}


def nesterov(trial: TrialConfig) -> bool:
    """Whether the trial trains with Nesterov momentum; where the recipe leaves it open, as the method's authors."""
    recipe = trial.train
    wanted = methods.nesterov(trial.method) if recipe.nesterov is None else recipe.nesterov
    return wanted and recipe.momentum > 0


def networks(trial: TrialConfig, device: torch.device, load_teacher: LoadTeacher) -> tuple[Setting, Method]:
    """Student, teachers (if the method needs any) and method, seeded by the trial.

    The student is drawn first, so that all methods start from the same student at one seed.
    `load_teacher` fills a teacher's weights.
    """
    info = data.info_of(trial.data)
    # Drawn on the CPU whatever the device, so that a seed gives the same weights everywhere.
    with torch.device("cpu"):
        torch.manual_seed(trial.seed)
        student = models.build(trial.student, info.num_classes, info.in_channels)
        image = torch.zeros(1, info.in_channels, info.image_size, info.image_size)
        refs = [trial.teacher] if trial.teacher is not None else []
        teachers = [_teacher(ref, info, load_teacher) for ref in (*refs, *(trial.assistants or ()))]
        teacher = teachers[0] if refs else None
        teacher_shapes = None if teacher is None else _shapes(teacher, image)
        setting = Setting(
            student, _shapes(student, image), teacher, teacher_shapes, info.num_classes, trial.train.epochs,
            tuple(teachers[len(refs):]),
        )  # fmt: skip
        method = methods.build(trial.method, setting)
    for module in (student, *teachers, method):
        module.to(device)
    return setting, method


def _teacher(ref: TeacherRef, info: Info, load: LoadTeacher) -> Model:
    """A teacher or assistant with its weights, in eval mode, without gradients."""
    with torch.random.fork_rng(devices=[]):
        model = models.build(ref.model, info.num_classes, info.in_channels)
    load(model, ref)
    model.requires_grad_(False)
    return model.eval()


def _shapes(model: Model, image: torch.Tensor) -> Outputs:
    model.eval()
    with torch.no_grad():
        outputs: Outputs = model(image)
    return outputs


def network_for(name: str, info: Info) -> tuple[Model, Outputs]:
    """A network for these images without weights, and the shapes of its outputs."""
    network = unfilled(name, info.num_classes, info.in_channels)
    return network, shapes(name, info.num_classes, info.image_size, info.in_channels)


def _check_maps(trial: TrialConfig, *shapes: Outputs | None) -> None:
    """Raise ConfigError if the method looks at maps of a network that shows none."""
    of_student, of_teacher = methods.maps(trial.method), methods.needs(trial.method) - {"logits", "pooled"}
    networks = (trial.student, of_student), (trial.teacher and trial.teacher.model, of_teacher)
    for (name, looks), outputs in zip(networks, shapes, strict=True):
        if looks and outputs is not None and not outputs.stages:
            raise ConfigError(
                f"method {trial.method.name!r} looks at feature maps, and {name} shows only logits and pooled features."
            )


_checked: dict[str, dict[str, int]] = {}  # what `teacher_numbers` returns


def check(trial: TrialConfig) -> None:
    """Raise ConfigError unless the trial can start: names known, parameters right, networks that fit.

    Builds the method on the meta device, once for each combination that matters. Of a linear probe, whether the images
    suit the network.
    """
    info = data.info_of(trial.data)
    if trial.probe is not None:
        network_for(trial.student, replace(info, num_classes=trial.probe.num_classes))
        return
    models.check(trial.student, "student")
    _check_teachers(trial)
    _check_recipe(trial, info)
    if trial.train.batch_size < (least := methods.min_batch(trial.method)):
        raise ConfigError(
            f"train.batch_size must be at least {least} for method {trial.method.name!r}, which compares the images of "
            f"a batch, but got {trial.train.batch_size}."
        )
    _on_meta(trial, info)


def teacher_numbers(trial: TrialConfig) -> dict[str, int]:
    """How many numbers an image a method looks at of its teacher, by name: "logits", "pooled" and digests.

    Of a trial with a teacher that `check` accepts; whole maps are not among them.
    """
    return _on_meta(trial, data.info_of(trial.data))


def _on_meta(trial: TrialConfig, info: Info) -> dict[str, int]:
    """Build the networks and the method without weights; see `teacher_numbers`. ConfigError if they do not fit."""
    configs = methods.resolve(trial.method)
    key = canonical([
        (info.num_classes, info.in_channels, info.image_size), trial.student, trial.teacher and trial.teacher.model,
        trial.train.epochs, trial.method.name,
        {name: config.model_dump(mode="json") for name, config in configs.items()},
    ])  # fmt: skip
    if key not in _checked:
        with torch.device("meta"):
            student, student_shapes = network_for(trial.student, info)
            teacher, teacher_shapes = network_for(trial.teacher.model, info) if trial.teacher else (None, None)
            others = tuple(network_for(ref.model, info)[0] for ref in trial.assistants or ())
            _check_maps(trial, student_shapes, teacher_shapes)
            setting = Setting(
                student, student_shapes, teacher, teacher_shapes, info.num_classes, trial.train.epochs, others
            )
            method = methods.build(trial.method, setting)
            _checked[key] = _numbers(trial.method, method, teacher_shapes)
    return _checked[key]


def _numbers(ref: MethodRef, method: Method, teacher: Outputs | None) -> dict[str, int]:
    if teacher is None:
        return {}
    digests = methods.digested(method.digests(), teacher).digests
    values = {"logits": teacher.logits, "pooled": teacher.pooled}
    looked_at = {name: values[name] for name in methods.needs(ref) & values.keys()}
    return {name: value[0].numel() for name, value in {**looked_at, **digests}.items()}


def _check_recipe(trial: TrialConfig, info: Info) -> None:
    """Raise ConfigError if the epochs are too few for the warm-up, or the images for a whole batch."""
    recipe = trial.train
    if recipe.warmup_epochs is not None and recipe.warmup_epochs > recipe.epochs:
        raise ConfigError(
            f"train.warmup_epochs must be at most train.epochs, {recipe.epochs}, but got {recipe.warmup_epochs}."
        )
    if recipe.drop_last and info.train_images is not None:
        images = round(trial.data.fraction * (info.train_images - trial.data.val_size))
        if images < recipe.batch_size:
            raise ConfigError(
                f"train.drop_last needs a whole batch of {recipe.batch_size} images, but got about {images}."
            )


def _check_teachers(trial: TrialConfig) -> None:
    """Raise ConfigError unless the trial has the teachers that its method asks for."""
    name, needed = trial.method.name, methods.needs(trial.method)
    if needed and trial.teacher is None:
        raise ConfigError(f"method {name!r} needs a teacher (its {' and '.join(sorted(needed))}), but got none.")
    if trial.teacher is not None:
        models.check(trial.teacher.model, "teacher")
        if methods.self_taught(trial.method) and trial.teacher.model != trial.student:
            raise ConfigError(
                f"method {name!r} needs a teacher of the student's architecture, {trial.student}, "
                f"but got {trial.teacher.model}."
            )
    wanted, got = methods.assistants(trial.method), tuple(ref.model for ref in trial.assistants or ())
    for model in wanted:
        models.check(model, f"{name}.assistants")
    if wanted != got:
        raise ConfigError(
            f"method {name!r} needs the assistants {', '.join(wanted) or 'none'}, but got {', '.join(got) or 'none'}."
        )
