"""Tables of a classification by weights, each as Markdown, CSV and LaTeX."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitcut.reports.table_files import comma_separated, latex, markdown
from circuitcut.reports.weights.tables import (
    Row,
    bin_rows,
    change_rows,
    class_rows,
    count_rows,
    median_rows,
    outside_rows,
    quartile_rows,
    region_rows,
    series_rows,
)
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
    "classes_of_runs": count_rows,
}
"""Name of a file -> its rows."""
WRITERS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "tex": latex,
}
"""Suffix of a file -> the text of its rows."""


def write_tables(
    folder: Path,
    results: Mapping[str, Any],
    tables: Mapping[str, Callable[[Mapping[str, Any]], list[Row]]] = TABLES,
) -> list[Path]:
    """Write every table that has rows three times: .md, .csv and .tex."""
    written = []
    for name, rows_of in tables.items():
        rows = rows_of(results)
        if not rows:
            continue
        for suffix, convert in WRITERS.items():
            written.append(folder / f"{name}.{suffix}")
            write_text(written[-1], convert(rows))
    return written
