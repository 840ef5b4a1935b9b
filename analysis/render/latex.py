r"""Table -> LaTeX with booktabs, complete from \begin{table} to \end{table}."""

from itertools import groupby

from analysis.render import cells
from analysis.tables import Cell, Mark, Table

_PREAMBLE = "% Needs \\usepackage{booktabs}.\n"
_MARKUP = {Mark.BEST: r"\textbf{%s}", Mark.SECOND: r"\underline{%s}", Mark.NONE: "%s"}
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{char: "\\" + char for char in "&%$#_{}"},
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\rightarrow$",
        "–": "--",
    }
)


def render(tables: list[Table]) -> str:
    """The tables below each other."""
    return _PREAMBLE + "\n".join(_render(table) for table in tables)


def _render(table: Table) -> str:
    if not table.rows:
        return f"% {' '.join(cells.caption(table).split())}\n"
    legend = f"{_escape(cells.caption(table))} {_MARKUP[Mark.BEST] % 'Best'}, {_MARKUP[Mark.SECOND] % 'second'}."
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{legend}}}",
        rf"\begin{{tabular}}{{@{{}}l{'c' * len(table.columns)}@{{}}}}",
        r"\toprule",
        *_heading(table),
        r"\midrule",
        *(line for row in table.rows for line in _row(table, row.name, row.cells)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    for line in cells.chosen(table):
        lines += [r"\par\smallskip", rf"{{\footnotesize {_escape(line)}}}"]
    for note in table.notes:
        superscript = rf"\textsuperscript{{{cells.letter(table, note)}}}"
        lines += [r"\par\smallskip", rf"{{\footnotesize {superscript} {_escape(note)}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _heading(table: Table) -> list[str]:
    """The pairs, and below them the fractions if there are any to tell."""
    fractions = [cells.fraction(table, column) for column in table.columns]
    pairs, rules, start = [], [], 2
    for pair, same in groupby(table.columns, cells.pair):
        size = len(list(same))
        pairs.append(rf"\multicolumn{{{size}}}{{c}}{{{_escape(pair)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
        start += size
    lines = [_line(["Method", *pairs])]
    if any(fractions):
        lines += ["".join(rules), _line(["", *(_escape(text) for text in fractions)])]
    return lines


def _row(table: Table, name: str, row: tuple[Cell, ...]) -> list[str]:
    """The line of our numbers, and lines of printed numbers below it."""
    lines = [_line([_escape(name), *(_cell(table, cell) for cell in row)])]
    depths = range(max(len(cell.published) for cell in row))
    return lines + [_line(["", *(_printed(table, cell, depth) for cell in row)]) for depth in depths]


def _cell(table: Table, cell: Cell) -> str:
    value = _MARKUP[cell.mark] % _escape(cells.value(cell, table.metric))
    return f"{value} {_escape(cells.details(cell))}".rstrip()


def _printed(table: Table, cell: Cell, depth: int) -> str:
    if depth >= len(cell.published):
        return ""
    number = cell.published[depth]
    note = rf"\textsuperscript{{{cells.letter(table, number.note)}}}" if number.note else ""
    return rf"{{\footnotesize {_escape(cells.printed(number))}{note}}}"


def _line(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"


def _escape(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPES)
