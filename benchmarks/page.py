"""Tables of benchmarks as plain data, for the terminal and for the last part of a page of docs/."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import rich.table
from rich.markup import escape

DOCS = Path(__file__).parents[1] / "docs"
TITLE = "## Measurements\n"  # what follows it is written anew


@dataclass(frozen=True)
class Shown:
    """A table with what is to be known to read it."""

    title: str
    about: str  # what, n and spread; one paragraph
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(title=f"{escape(self.title)}\n{escape(self.about)}", title_justify="left")
        for i, header in enumerate(self.headers):
            table.add_column(escape(header), justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """For the page."""
        lines = [self.headers, ["---", *["---:"] * (len(self.headers) - 1)], *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{self.about}\n\n{body}\n"


def write(path: Path, command: str, machine: str, tables: Iterable[Shown]) -> None:
    """Write the measurements after the guide that the page has before them. `command`: what writes them."""
    guide = path.read_text(encoding="utf-8").partition(TITLE)[0]
    head = f"{guide}{TITLE}\n    {command}; writes this part\n\n{machine}.\n\n"
    path.write_text(head + "\n".join(map(Shown.markdown, tables)), encoding="utf-8")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median [first quartile, third quartile]; `-` for what is infinite."""
    return "{1} [{0}, {2}]".format(*(number(value, digits) for value in _quartiles(values)))


def number(value: float, digits: int = 2) -> str:
    """A number, `-` for none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def percent(value: float, digits: int = 0) -> str:
    """A share; `-` for none."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "-"


def middle(values: Sequence[float]) -> float:
    """The value that half of all values are at most: no mean of two, of which one may be infinite."""
    return sorted(values)[(len(values) - 1) // 2]


def _quartiles(values: Sequence[float]) -> Sequence[float]:
    if all(map(math.isfinite, values)):
        return quantiles(values, n=4, method="inclusive")
    found = sorted(values)
    return [found[min(len(found) - 1, math.ceil(share * len(found)) - 1)] for share in (0.25, 0.5, 0.75)]
