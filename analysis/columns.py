"""Where a trial stands: the data set that a table is of, and the column in it."""

from dataclasses import dataclass
from typing import Any

from analysis.load import Row
from analysis.names import ONTO, natural_order


@dataclass(frozen=True, kw_only=True)
class Column:
    """A pair and the fraction of the training images that the student saw."""

    teacher: str | None
    student: str
    fraction: float

    def order(self) -> tuple[Any, ...]:
        """Sort key."""
        return (natural_order(self.teacher or ""), natural_order(self.student), self.fraction)


def shown(row: Row) -> str:
    """What a trial's table is of: its data set; of a probe also that on which its network was trained."""
    return row["dataset"] if row["source_id"] is None else f"{row['source_dataset']}{ONTO}{row['dataset']}"


def is_paired(row: Row) -> bool:
    """Whether a trial's teacher is that of a pair."""
    return row["teacher"] is not None and not row["self_taught"]
