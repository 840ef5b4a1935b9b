"""The linear probes of a sweep: trials that take the frozen student, or teacher, of another trial."""

from collections.abc import Iterable, Iterator
from typing import Any

from kdtrain.config import ConfigError, DataConfig, MethodRef, Probe, Recipe, TrialConfig, parse
from kdtrain.data import info_of, named
from sweeps.published import Published
from sweeps.spec import where
from sweeps.tables import ProbeTable, Spec

Axes = dict[str, Any]
Probed = tuple[Axes, str, TrialConfig]  # the axes, the id and the trial of a network


def probes(spec: Spec, networks: Iterable[Probed]) -> Iterator[tuple[Axes, TrialConfig]]:
    """The probes of trained networks, table by table, each with its axes."""
    networks = list(networks)
    for table in spec.probe:
        for axes, key, trial in networks:
            yield {**axes, "probe": label(table)}, _probe(spec, table, key, trial)


def of_teacher(key: str, trial: TrialConfig) -> Probed:
    """A teacher as a network to be probed."""
    axes = {
        "pair": trial.student, "method": trial.method.name, "fraction": trial.data.fraction, **trial.method.params,
        "seed": trial.seed,
    }  # fmt: skip
    return axes, key, trial


def of_published(teacher: Published) -> Probed:
    """A teacher whose weights were trained elsewhere, as a network to be probed."""
    trial = TrialConfig(data=teacher.data, student=teacher.ref.model, method=MethodRef(name="vanilla"))
    return of_teacher(teacher.ref.id, trial)


def label(table: ProbeTable) -> str:
    """What a probe is called in a plan: its data set, and what differs from the default."""
    size = "" if table.image_size is None else f" at {table.image_size} pixels"
    return table.dataset + size + ("" if table.fraction == 1 else f" fraction {table.fraction:g}")


def _probe(spec: Spec, table: ProbeTable, key: str, trial: TrialConfig) -> TrialConfig:
    source = info_of(trial.data)
    images = {**named(table.dataset, where(spec)), "channels": source.in_channels}
    images["image_size"] = table.image_size or source.image_size
    if table.normalise == "source":
        if not source.mean:
            raise ConfigError(
                "probe.normalise must be 'target', or data.mean and data.std be given: those of a folder's images are "
                "known only when it is opened."
            )
        images |= {"mean": source.mean, "std": source.std}
    elif source.in_channels == 1 and info_of(parse(DataConfig, images | {"channels": None})).in_channels == 3:
        raise ConfigError(f"probe.normalise must be 'source' for grey students, but got 'target' of {table.dataset}.")
    recipe = table.model_dump(include=set(Recipe.model_fields) - {"lr"})
    return trial.model_copy(
        update={
            "data": parse(DataConfig, {**images, "fraction": table.fraction, "subset_seed": spec.data.subset_seed}),
            "train": parse(Recipe, {**recipe, "nesterov": False, "augment": False}),
            "view_seed": None,
            "probe": Probe(
                source=key,
                dataset=trial.data.dataset,
                num_classes=source.num_classes,
                lrs=tuple(sorted(table.lr)),
                holdout=table.holdout,
            ),
        }
    )
