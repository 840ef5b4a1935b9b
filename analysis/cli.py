"""kd-report: the tables and the report of the sweeps in a results folder."""

import gc
import os
import shutil
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from analysis.errors import ReportError
from analysis.load import load, resolve
from analysis.metrics import METRICS, metric_named
from analysis.render import latex, long_csv, markdown, text
from analysis.tables import Table, build_tables, needed
from sweeps.store import StoreError

app = typer.Typer(
    help="Tables and reports of the sweeps in a results folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Results = Annotated[
    str,
    typer.Argument(
        help="The folder of a sweep, such as results/demo, or of several, such as results. URIs such as s3:// too."
    ),
]


class Format(StrEnum):
    """The forms of a table."""

    TEXT = "text"
    MD = "md"
    LATEX = "latex"
    CSV = "csv"


_RENDERERS: dict[Format, Callable[[list[Table]], str]] = {
    Format.MD: markdown.render,
    Format.LATEX: latex.render,
    Format.CSV: long_csv.render,
}
_SUFFIXES = {".txt": Format.TEXT, ".md": Format.MD, ".tex": Format.LATEX, ".csv": Format.CSV}


@app.command(epilog="Example: kd-report table results/demo --metric test_ece -o demo.tex")
def table(
    results: Results,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file; without it, the terminal.")] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Without it, the form that the file's suffix names, else text.")
    ] = None,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "test_top1",
) -> None:
    """Print mean ± sample standard deviation (n) of each method, pair and fraction."""
    gc.disable()  # a table keeps what it makes until it ends; looking for garbage would take an eighth of the time
    chosen = form or _form_of(output)
    column = metric_named(metric)
    folder, names = resolve(results)
    tables = [each for name in names for each in build_tables(load(folder, name, needed(column)), column)]
    if chosen is not Format.TEXT:
        _write(_RENDERERS[chosen](tables), output)
    elif output is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        _write(text.render(tables, width, ansi="NO_COLOR" not in os.environ), output)
    else:
        _write(text.render(tables), output)


@app.command(epilog="Example: kd-report html results/demo -o demo.html")
def html(
    results: Results,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file; without it, report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML file with leaderboard, tables, plots and provenance that opens without a network."""
    from analysis.html import render  # plotly takes a second to import

    folder, names = resolve(results)
    _write(render(folder, names), _page(results, output, "report.html"))


@app.command(epilog="Example: kd-report search results/cid_search -o search.html")
def search(
    results: Results,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; without it, search.html in the folder.")
    ] = None,
) -> None:
    """Print the studies of a search, and write one HTML file with plots of each and of methods at equal budgets."""
    from analysis import search_page  # Optuna and plotly take seconds to import
    from analysis.search import load_searches, render

    folder, names = resolve(results)
    page, found = _page(results, output, "search.html"), load_searches(folder, names)
    typer.echo(render(found), nl=False)
    _write(search_page.render(found), page)


def _page(results: str, output: Path | None, name: str) -> Path:
    if output is None and "://" in results:
        raise ReportError(f"-o FILE is needed where the results are at a URI, but got only {results}.")
    return output or Path(results).expanduser() / name


def _form_of(output: Path | None) -> Format:
    if output is None:
        return Format.TEXT
    if output.suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise ReportError(f"the suffix of -o must be one of {known} without --format, but got {output}.")
    return _SUFFIXES[output.suffix]


def _write(content: str, output: Path | None) -> None:
    if output is None:
        typer.echo(content, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(content, encoding="utf-8")
    typer.echo(f"wrote {output}", err=True)


def main() -> None:
    """The command `kd-report`. What a user can put right is one line on stderr and status 2."""
    try:
        app()
    except (ReportError, StoreError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
