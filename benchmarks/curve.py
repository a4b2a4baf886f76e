"""Finished measurements of a benchmark, a JSON object a line: a killed run goes on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """Finished lines of curve.jsonl."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Every line so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def has(self, **key: Any) -> bool:
        """Whether a line with these values is there."""
        return any(key.items() <= row.items() for row in self.rows())

    def add(self, row: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
