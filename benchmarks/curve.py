"""Finished measurements of a benchmark in a file with one JSON object per line.

An interrupted run continues after the last line.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """The lines of curve.jsonl."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """All lines written so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def has(self, **key: Any) -> bool:
        """Whether the file has a line with these values."""
        return any(key.items() <= row.items() for row in self.rows())

    def add(self, row: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
