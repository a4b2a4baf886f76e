"""Tables as files that other programs read: Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitcut.reports.weights.tables import (
    Row,
    bin_rows,
    change_rows,
    class_rows,
    median_rows,
    outside_rows,
    quartile_rows,
    region_rows,
    series_rows,
)
from circuitcut.reports.words import format_cell
from circuitcut.storage.atomic import write_text

TABLES: dict[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "classes_by_layer": class_rows,
    "half_coarse_by_layer": lambda results: class_rows(results, "half_coarse"),
    "coarse_by_layer": lambda results: class_rows(results, "coarse"),
    "quartiles_by_layer": quartile_rows,
    "medians_by_layer": median_rows,
    "bins": bin_rows,
    "outside_by_layer": outside_rows,
    "regions_by_layer": region_rows,
    "classes_by_revision": series_rows,
    "change_by_layer": change_rows,
}
"""Name of a file -> its rows."""
_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
}


def write_tables(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write every table that has rows three times: .md, .csv and .tex."""
    written = []
    for name, rows_of in TABLES.items():
        rows = rows_of(results)
        if not rows:
            continue
        for suffix, convert in WRITERS.items():
            written.append(folder / f"{name}.{suffix}")
            write_text(written[-1], convert(rows))
    return written


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table of GitHub's Markdown; numbers as in reports."""
    lines = [_columns(rows), ["---"] * len(_columns(rows)), *_cells(rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def comma_separated(rows: Sequence[Row]) -> str:
    """Rows as CSV; numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(rows: Sequence[Row]) -> str:
    """Rows as a `tabular` with the rules of the package booktabs."""
    columns = _columns(rows)
    is_number = [
        all(isinstance(row.get(c), int | float) for row in rows) for c in columns
    ]
    places = "".join("r" if number else "l" for number in is_number)
    head, *body = [
        " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in line) + r" \\"
        for line in [columns, *_cells(rows)]
    ]
    lines = [rf"\begin{{tabular}}{{{places}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "tex": latex,
}
"""Suffix of a file -> the text of its rows."""


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[format_cell(row.get(c)) for c in _columns(rows)] for row in rows]
