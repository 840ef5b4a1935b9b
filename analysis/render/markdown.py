"""Table -> Markdown (GitHub's pipe tables)."""

import re

from analysis.render import cells
from analysis.tables import Cell, Mark, Table

_MARKUP = {Mark.BEST: ("**", "**"), Mark.SECOND: ("<u>", "</u>"), Mark.NONE: ("", "")}


def render(tables: list[Table]) -> str:
    """The tables below each other."""
    return "\n".join(_render(table) for table in tables)


def _render(table: Table) -> str:
    if not table.rows:
        return f"{_escape(cells.caption(table))}\n"
    headings = ["Method"]
    for column in table.columns:
        fraction = cells.fraction(table, column)
        headings.append(_escape(cells.pair(column)) + (f"<br>{fraction}" if fraction else ""))
    lines = [_escape(cells.caption(table)), "", _line(headings), _line([":--"] + ["--:"] * len(table.columns))]
    lines += [_line([_escape(row.name), *(_cell(table, cell) for cell in row.cells)]) for row in table.rows]
    notes = [f"<sup>{cells.letter(table, note)}</sup> {_escape(note)}" for note in table.notes]
    chosen = [_escape(line) for line in cells.chosen(table)]
    lines += ["", "  \n".join(["**Best**, <u>second</u>.", *chosen, *notes])]
    return "\n".join(lines) + "\n"


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _cell(table: Table, cell: Cell) -> str:
    before, after = _MARKUP[cell.mark]
    parts = [f"{before}{cells.value(cell, table.metric)}{after} {cells.details(cell)}".rstrip()]
    for number in cell.published:
        note = f"<sup>{cells.letter(table, number.note)}</sup>" if number.note else ""
        parts.append(cells.printed(number) + note)
    return "<br>".join(parts)


def _escape(text: str) -> str:
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]#~])", r"\\\1", flat)
