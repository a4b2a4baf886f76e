"""A table of the report, with its heading and its note."""

from dataclasses import dataclass, field

from circuitcut.reports.tables import Row


@dataclass(frozen=True)
class Table:
    """A table with its heading and, below it, units, baseline and intervals."""

    title: str
    rows: list[Row]
    note: str = ""
    data: list[Row] = field(default_factory=list)
    """Rows of the CSV file, where it has more than is shown."""
