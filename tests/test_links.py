"""Every relative link of a Markdown file leads to a file and a heading that exist."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,  # outside git there is nothing to list
).stdout.splitlines()
PAGES = [name for name in LISTED if (ROOT / name).is_file()]


@cache
def _text(path: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@cache
def _anchors(path: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ +(.*)$", _text(path), flags=re.MULTILINE)
    plain = [
        re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings
    ]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name: str):
    page = ROOT / name
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        if re.match(r"[a-z]+:", target):
            continue  # other sites are not asked
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert not broken


def test_there_are_pages():
    assert not LISTED or {"README.md", "docs/schema.md"} <= set(PAGES)
