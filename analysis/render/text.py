"""Table -> plain text for a terminal, cut into blocks of columns that fit its width."""

from analysis.render import cells
from analysis.tables import Cell, Mark, Table

_GAP = "  "
_SUFFIX = {Mark.BEST: " *", Mark.SECOND: " +", Mark.NONE: ""}
_ANSI = {Mark.BEST: "\x1b[1m", Mark.SECOND: "\x1b[4m"}
_RESET = "\x1b[0m"


def render(tables: list[Table], width: int = 120, ansi: bool = False) -> str:
    """The tables below each other. With `ansi`, bold and underline are the terminal's own."""
    return "\n".join(_render(table, width, ansi) for table in tables)


def _render(table: Table, width: int, ansi: bool) -> str:
    lines = [_clean(cells.caption(table))]
    for block in _blocks(table, width, ansi):
        lines += ["", *block]
    if table.rows:
        lines += ["", "bold: best, underlined: second" if ansi else "* best, + second"]
    lines += [_clean(line) for line in cells.chosen(table)]
    lines += [f"[{cells.letter(table, note)}] {_clean(note)}" for note in table.notes]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _blocks(table: Table, width: int, ansi: bool) -> list[list[str]]:
    stub = [["", ""], *([_clean(row.name)] for row in table.rows)]
    columns = [_column(table, index, ansi) for index in range(len(table.columns))]
    blocks: list[list[list[list[str]]]] = []
    used = width + 1
    for column in columns:
        size = len(_GAP) + _width(column)
        if used + size > width:
            blocks.append([stub])
            used = _width(stub)
        blocks[-1].append(column)
        used += size
    starts = [0]
    for block in blocks:
        starts.append(starts[-1] + len(block) - 1)
    return [_lines(table, block, start, ansi) for block, start in zip(blocks, starts[:-1], strict=True)]


def _column(table: Table, index: int, ansi: bool) -> list[list[str]]:
    """Heading and cells of a column, each a list of lines."""
    column = table.columns[index]
    heading = [_clean(cells.pair(column)), cells.fraction(table, column)]
    return [heading, *(_cell(table, row.cells[index], ansi) for row in table.rows)]


def _cell(table: Table, cell: Cell, ansi: bool) -> list[str]:
    suffix = "" if ansi else _SUFFIX[cell.mark]
    lines = [f"{cells.value(cell, table.metric)} {cells.details(cell)}".rstrip() + suffix]
    for number in cell.published:
        note = f" [{cells.letter(table, number.note)}]" if number.note else ""
        lines.append(cells.printed(number) + note)
    return lines


def _lines(table: Table, block: list[list[list[str]]], start: int, ansi: bool) -> list[str]:
    widths = [_width(column) for column in block]
    lines: list[str] = []
    for index, entries in enumerate(zip(*block, strict=True)):
        for depth in range(max(map(len, entries))):
            texts = [entry[depth] if depth < len(entry) else "" for entry in entries]
            padded = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
            if ansi and index and depth == 0:
                styled = table.rows[index - 1].cells[start : start + len(block) - 1]
                padded[1:] = [_styled(table, cell, text) for cell, text in zip(styled, padded[1:], strict=True)]
            if any(texts):
                lines.append(_GAP.join(padded))
        if index == 0:
            lines.append(_GAP.join("─" * width for width in widths))
    return lines


def _styled(table: Table, cell: Cell, text: str) -> str:
    if cell.mark is Mark.NONE:
        return text
    value = cells.value(cell, table.metric)
    return f"{_ANSI[cell.mark]}{value}{_RESET}{text.removeprefix(value)}"


def _width(column: list[list[str]]) -> int:
    return max(len(line) for entry in column for line in entry)


def _clean(text: str) -> str:
    """Data may not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
