"""kd-sweep study: searches as Optuna studies."""

from typing import Annotated

import typer

app = typer.Typer(help="Searches as Optuna studies.", no_args_is_help=True)


@app.command("export")
def export_command(
    results: Annotated[
        str, typer.Argument(help="The folder of a sweep, such as results/demo, or of several, such as results.")
    ],
    storage: Annotated[
        str, typer.Option("--storage", metavar="URL", help="Optuna's database, created if need be: sqlite:///study.db.")
    ],
) -> None:
    """Write the searches of RESULTS where optuna-dashboard reads them. Run it again and it adds what is new.

    Example: kd-sweep study export results/demo --storage sqlite:///study.db
    """
    from sweeps.export_studies import export, told  # imports Optuna and SQLAlchemy, which takes a second

    written = export(results, storage)
    for each in written:
        name = _clean(each.name)
        typer.echo(f"{name}: {each.trials} trials, {each.new} of them new")
        if each.changed:
            typer.echo(
                f"{name}: {each.changed} have ended differently since they were written, which Optuna cannot "
                "rewrite; export to another database to have them as they are."
            )
    typer.echo(f"look at them: optuna-dashboard {told(storage)}")


def _clean(text: str) -> str:
    """Data may not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
