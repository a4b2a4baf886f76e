"""What docs/walkthrough.md and docs/schema.md quote is what the code says."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.mask_files import MaskHeader
from circuitcut.storage.results_schema import ENTRIES, HEADER

ROOT = Path(__file__).resolve().parents[1]
WALKTHROUGH = (ROOT / "docs" / "walkthrough.md").read_text()
SCHEMA = (ROOT / "docs" / "schema.md").read_text()
QUOTES = re.findall(
    r"^<!-- from (\S+) -->\n```python\n(.*?)^```$",
    WALKTHROUGH,
    flags=re.DOTALL | re.MULTILINE,
)
STOPS = re.findall(r"^## \d\. `(\S+)`", WALKTHROUGH, flags=re.MULTILINE)


def pieces_of(quote: str) -> list[list[str]]:
    """The runs of consecutive lines; a line `...` stands for left-out lines."""
    return [
        piece.splitlines()
        for piece in re.split(r"^\.\.\.\n", quote, flags=re.MULTILINE)
    ]


def position(piece: list[str], lines: list[str], start: int) -> int | None:
    """Where the lines of `piece` stand one after the other, from `start` on."""
    for at in range(start, len(lines) - len(piece) + 1):
        if lines[at : at + len(piece)] == piece:
            return at
    return None


def test_each_of_six_stops_quotes_its_file():
    assert len(set(STOPS)) == 6
    assert set(STOPS) <= {path for path, _ in QUOTES}


def test_every_block_of_code_names_its_file():
    assert len(QUOTES) == WALKTHROUGH.count("```python")


@pytest.mark.parametrize(("path", "quote"), QUOTES)
def test_a_quote_is_in_its_file_line_by_line(path: str, quote: str):
    lines = (ROOT / path).read_text().splitlines()
    start = 0
    for piece in pieces_of(quote):
        at = position(piece, lines, start)
        assert piece, f"a piece quoted from {path} is empty"
        assert at is not None, f"{path} lacks, in this order,\n" + "\n".join(piece)
        start = at + len(piece)


def test_a_changed_or_moved_line_is_noticed():
    lines = ["a = 1", "b = 2", "c = 3"]
    assert position(["b = 2", "c = 3"], lines, 0) == 1
    assert position(["a = 1", "c = 3"], lines, 0) is None
    assert position(["a = 1"], lines, 1) is None
    assert position(["= 1"], lines, 0) is None


@pytest.mark.parametrize("kind", ["every kind", *ENTRIES])
def test_every_entry_of_results_is_explained(kind: str):
    names = ENTRIES.get(kind, HEADER)
    assert not [name for name in sorted(names) if f"`{name}`" not in SCHEMA]


@pytest.mark.parametrize("holder", [MaskSettings, MaskHeader])
def test_every_field_of_settings_and_mask_is_explained(holder: type):
    names = [field.name for field in fields(holder)]
    assert not [name for name in names if f"`{name}`" not in SCHEMA]
