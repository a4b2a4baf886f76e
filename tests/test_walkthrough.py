"""What docs/walkthrough.md and docs/schema.md quote is what the code says."""

import re
from pathlib import Path

import pytest

from circuitcut.storage.results_schema import ENTRIES, HEADER

ROOT = Path(__file__).resolve().parents[1]
QUOTES = re.findall(
    r"<!-- from (\S+) -->\n```python\n(.*?)```",
    (ROOT / "docs" / "walkthrough.md").read_text(),
    flags=re.DOTALL,
)


def test_all_six_stops_quote_their_file():
    assert len({path for path, _ in QUOTES}) == 6


@pytest.mark.parametrize(("path", "quote"), QUOTES)
def test_a_quote_is_in_its_file_line_by_line(path: str, quote: str):
    source = (ROOT / path).read_text()
    at = 0
    for piece in quote.split("...\n"):  # `...` stands for lines that are left out
        at = source.find(piece, at)
        assert at >= 0, f"{path} has no lines\n{piece}"


def test_every_entry_of_results_is_explained():
    page = (ROOT / "docs" / "schema.md").read_text()
    names = HEADER.union(*ENTRIES.values())
    assert not [name for name in sorted(names) if f"`{name}`" not in page]
