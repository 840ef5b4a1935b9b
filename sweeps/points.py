"""What the rows of a search say: its points with their scores, and the best of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sweeps.schema import OBJECTIVES, Status

Row = Mapping[str, Any]
Point = dict[str, Any]
COLUMNS = [
    "trial_id", "phase", "study", "space", "point", "number", "origin", "seed", "status", "student", "val_acc",
    "epochs_done", "student_params", "student_macs", "latency_ms",
]  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A point of a study and the rows of its trials by seed."""

    number: int
    point: Point
    origin: str
    rows: dict[int, Row] = field(default_factory=dict)

    def ended(self, seeds: Sequence[int]) -> bool:
        """Whether its trials with all of these seeds have ended."""
        return all(seed in self.rows for seed in seeds)

    def status(self, seeds: Sequence[int]) -> Status | None:
        """How a point ended: as the worst of its trials. None while some are missing and none of the others is bad."""
        found = {self.rows[seed]["status"] for seed in seeds if seed in self.rows}
        worst = next((status for status in _WORST_FIRST if status in found), None)
        return worst if self.ended(seeds) or worst != Status.COMPLETED else None

    def values(self, seeds: Sequence[int], objectives: Sequence[str]) -> list[float] | None:
        """Its value for each objective, the mean over its trials; None unless all of them completed."""
        if self.status(seeds) != Status.COMPLETED:
            return None
        columns = [[self.rows[seed][OBJECTIVES[name][0]] for seed in seeds] for name in objectives]
        if any(value is None for values in columns for value in values):  # it was not weighed then
            return None
        return [fmean(values) for values in columns]


_WORST_FIRST = (Status.FAILED, Status.DIVERGED, Status.STOPPED, Status.COMPLETED)


def tried(rows: Iterable[Row]) -> list[Tried]:
    """The points of the rows of one study, in the order of asking. A row without a status has not ended."""
    found: dict[tuple[int, str], Tried] = {}
    for row in rows:
        fresh = Tried(row["number"], json.loads(row["point"]), row["origin"])
        each = found.setdefault((row["number"], row["point"]), fresh)
        if row["status"] is not None:
            each.rows[row["seed"]] = row
    return sorted(found.values(), key=lambda each: each.number)


def best(found: Iterable[Tried], seeds: Sequence[int], objectives: Sequence[str], top: int) -> list[Tried]:
    """The `top` best points; of several objectives those of the Pareto front. The most accurate, then the first, lead.

    A point is of the front unless another one is at least as good in all objectives and better in one.
    """
    signs = [1 if OBJECTIVES[name][1] == "maximize" else -1 for name in objectives]
    scored = [
        (each, [sign * value for sign, value in zip(signs, values, strict=True)])
        for each in found
        if (values := each.values(seeds, objectives)) is not None
    ]
    if len(objectives) > 1:
        scored = [(each, mine) for each, mine in scored if not any(_dominates(other, mine) for _, other in scored)]
    place = list(objectives).index("val_acc")
    return [each for each, _ in sorted(scored, key=lambda item: (-item[1][place], item[0].number))][:top]


def _dominates(other: Sequence[float], mine: Sequence[float]) -> bool:
    return other != mine and all(a >= b for a, b in zip(other, mine, strict=True))
