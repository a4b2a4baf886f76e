"""Tables as files: CSV with every digit, LaTeX and Markdown as they are shown."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitcut.reports.sections.table import Table
from circuitcut.reports.tables import Row
from circuitcut.reports.words import format_cell
from circuitcut.storage.atomic import write_text

TABLE_FOLDER = "tables"
SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "\u00d7": r"$\times$",
    "‖": r"$\Vert$",
    "≥": r"$\geq$",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
"""Character -> LaTeX; pdflatex prints all others of Latin scripts as they are."""


def write_tables(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write every table as `tables/NAME`, `.csv`, `.tex` and `.md`, in a run's folder.

    The names are the titles. Tables without rows are left out.
    """
    written = []
    for table in tables:
        if not table.rows:
            continue
        path = folder / TABLE_FOLDER / file_name(table.title)
        texts = {
            ".csv": csv_text(table),
            ".tex": latex_text(table),
            ".md": markdown(table.rows),
        }
        for suffix, text in texts.items():
            write_text(path.with_suffix(suffix), text)
            written.append(path.with_suffix(suffix))
    return written


def file_name(title: str) -> str:
    """`scores_at_every_stage` of `Scores at every stage`."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def csv_text(table: Table) -> str:
    """The table's data, or its rows where it has none beside them, with a header."""
    return comma_separated(table.data or table.rows)


def latex_text(table: Table) -> str:
    """A `table` environment; title and note are its caption."""
    title = table.title if table.title.endswith(".") else f"{table.title}."
    caption = escaped(f"{title} {table.note}".strip())
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
        f"{latex(table.rows)}\\end{{table}}\n"
    )


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table of GitHub's Markdown; numbers as in reports."""
    columns = columns_of(rows)
    lines = [columns, ["---"] * len(columns), *_cells(rows)]
    safe = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in safe)


def comma_separated(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header; numbers in full."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns_of(rows), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def latex(rows: Sequence[Row]) -> str:
    """Rows as a `tabular` with the rules of the package booktabs."""
    columns = columns_of(rows)
    kinds = "".join("r" if _is_numeric(rows, c) else "l" for c in columns)
    head, *body = [
        " & ".join(map(escaped, line)) + r" \\" for line in [columns, *_cells(rows)]
    ]
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """Text whose characters LaTeX prints."""
    return "".join(SPECIAL.get(character, character) for character in text)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The keys of all rows, in order."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    columns = columns_of(rows)
    return [[format_cell(row.get(c)) for c in columns] for row in rows]


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    values: list[Any] = [row.get(column) for row in rows]
    return all(isinstance(value, int | float | None) for value in values)
