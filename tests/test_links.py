"""Every relative link of a Markdown file leads to a file and a heading that exist.

Anchors follow GitHub: lower case, without punctuation, blanks as hyphens; the second
heading of the same text ends in `-1`.
"""

import re
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

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
INLINE = r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"
DEFINITION = r"^ {0,3}\[[^]^]+\]:\s*<?([^\s>]+)"
TAG = r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\""


def prose_of(text: str) -> str:
    """The page without its fenced blocks of code."""
    return re.sub(
        r"^ *(```+|~~~+).*?^ *\1[`~]*$", "", text, flags=re.DOTALL | re.MULTILINE
    )


def anchors_of(text: str) -> set[str]:
    """GitHub's anchors of the headings, and anchors set by hand."""
    prose, seen, anchors = prose_of(text), Counter[str](), set[str]()
    for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)?$", prose, flags=re.MULTILINE):
        plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", prose))


def targets_of(text: str) -> list[str]:
    """Where inline links, definitions and HTML tags lead; code holds no links."""
    prose = re.sub(r"(`+)[^`]+\1", "`code`", prose_of(text))
    return [
        target
        for pattern in (INLINE, DEFINITION, TAG)
        for target in re.findall(pattern, prose, flags=re.MULTILINE)
    ]


def has_anchor(file: Path, anchor: str) -> bool:
    """Whether a Markdown file has the anchor; those of other files are not checked."""
    if file.suffix != ".md":
        return True
    return anchor in anchors_of(file.read_text(encoding="utf-8"))


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    broken = []
    for target in targets_of(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # other sites are not asked
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and not has_anchor(file, anchor)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name: str):
    assert not broken_links(ROOT / name)


def test_there_are_pages():
    assert not LISTED or {"README.md", "docs/schema.md"} <= set(PAGES)


def test_anchors_are_those_of_github():
    page = "# A `b.c`, d_e!\n## [Two](x.md) words\n## Two words\n```\n# code\n```\n"
    assert anchors_of(page) == {"a-bc-d_e", "two-words", "two-words-1"}


def test_broken_links_are_found(tmp_path: Path):
    (tmp_path / "there.md").write_text("# Head\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Own\n[a](there.md#head) [b](#own) [c](https://example.org/none)\n"
        '[d](gone.md) [e](there.md#tail) [f](#none "title") `[g](code.md)`\n'
        '<img src="gone.svg">\n\n[h]: gone.txt\n\n```\n[i](code.md)\n```\n'
    )
    broken = ["gone.md", "there.md#tail", "#none", "gone.txt", "gone.svg"]
    assert broken_links(page) == broken
