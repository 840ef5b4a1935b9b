"""kd-sweep compact: the small files of ended trials become few large ones. Any reader takes both."""

from dataclasses import dataclass

from kdtrain.config import ConfigError
from sweeps.store import Store, stores


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """Of how many trials of a sweep files were merged."""

    sweep: str
    trials: int
    epochs: int


def compact(results: str) -> list[Compacted]:
    """Merge the small files of a sweep's folder, or of all sweeps and the teachers in a folder.

    ConfigError if no trial has ended there. Trials under way are left alone.
    """
    found = [store for store in stores(results) if store.ids("trials")]
    if not found:
        raise ConfigError(f"RESULTS must be the folder of a sweep or of several, but no trial has ended in {results}.")
    return [_compact(store) for store in found]


def _compact(store: Store) -> Compacted:
    over = store.ids("trials") - store.ids("checkpoints")  # one that failed may be under way again
    merged = {kind: store.merge(kind, over) for kind in ("trials", "epochs")}
    return Compacted(sweep=store.sweep, **merged)
