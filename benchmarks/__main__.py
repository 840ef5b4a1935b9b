"""python -m benchmarks [NAME ...]: what kdsweep costs, measured on this machine.

Nothing here is a test: times differ between machines. What is held to are ratios of times of one run.
"""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import arithmetic, driver, efficiency, machine, methods, page, results, search, sharing, steps, store

# In the order of docs/performance.md. Each has `measure`, whose rows are stored, and `shown`, which makes tables of it.
PERFORMANCE = {
    "steps": steps,
    "sharing": sharing,
    "arithmetic": arithmetic,
    "efficiency": efficiency,
    "driver": driver,
    "store": store,
}
COMMAND = "make bench    # python -m benchmarks, of single tables python -m benchmarks NAME"


class Name(StrEnum):
    """The benchmarks."""

    STEPS = "steps"
    SHARING = "sharing"
    ARITHMETIC = "arithmetic"
    EFFICIENCY = "efficiency"
    DRIVER = "driver"
    STORE = "store"
    METHODS = "methods"
    SEARCH = "search"


def main(
    names: Annotated[
        list[Name] | None,
        typer.Argument(help="Which ones; without it those of docs/performance.md: all but methods and search."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Of methods, measure these alone.")] = None,
) -> None:
    """Measure, print tables, and write them into their page of docs.

    Example: python -m benchmarks steps
    """
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for name in names or [Name(name) for name in PERFORMANCE]:
        facts = machine.facts()
        console.print(facts, highlight=False, soft_wrap=True)
        if name in PERFORMANCE:
            module = PERFORMANCE[name]
            results.save(name, module.measure(), facts)
            tables = [table.rich() for table in _tables(name)]
            _write_page()
        else:
            tables = methods.measure(only) if name == Name.METHODS else search.measure()
        for table in tables:
            console.print()
            console.print(table)


def _tables(name: str) -> list[page.Shown]:
    """The tables of what was measured last; none if nothing was."""
    found = results.load(name)
    return [] if found is None else PERFORMANCE[name].shown(found.rows)


def _write_page() -> None:
    """Make the measurements of docs/performance.md anew of all results."""
    known = {name: found for name in PERFORMANCE if (found := results.load(name)) is not None}
    machines = "\n".join(f"- {name}: {' '.join(found.machine.split())}" for name, found in known.items())
    page.write(page.DOCS / "performance.md", COMMAND, machines, [table for name in known for table in _tables(name)])


if __name__ == "__main__":
    typer.run(main)
