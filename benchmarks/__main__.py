"""python -m benchmarks [steps|trials|share|store|methods|search]: what kdsweep costs, measured here in one run.

Nothing here is a test: times differ between machines. What is held to are ratios of times of one run.
"""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import machine, methods, search, share, steps, store, trials


class Name(StrEnum):
    """The benchmarks."""

    STEPS = "steps"
    TRIALS = "trials"
    SHARE = "share"
    STORE = "store"
    METHODS = "methods"
    SEARCH = "search"


BENCHMARKS = {
    Name.STEPS: steps.measure,
    Name.TRIALS: trials.measure,
    Name.SHARE: share.measure,
    Name.STORE: store.measure,
    Name.SEARCH: search.measure,
}
LONG = (Name.METHODS, Name.SEARCH)  # minutes to hours; only if they are named


def main(
    names: Annotated[
        list[Name] | None, typer.Argument(help="Which ones; without it all but methods and search, which take longest.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Of methods, measure these alone.")] = None,
) -> None:
    """Measure and print tables.

    Example: python -m benchmarks steps
    """
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(machine.facts(), highlight=False, soft_wrap=True)
    for name in names or [name for name in Name if name not in LONG]:
        for table in methods.measure(only) if name == Name.METHODS else BENCHMARKS[name]():
            console.print()
            console.print(table)


if __name__ == "__main__":
    typer.run(main)
