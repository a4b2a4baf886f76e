"""The how-to pages: their Python runs, and their commands have real flags."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from circuitcut.scripts.command_line import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.stem
)
def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in blocks(page, "python"):
            exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_have_these_flags(page: Path):
    for line in "".join(blocks(page, "bash")).splitlines():
        verb = re.search(r"scripts/(\w+)\.py", line)
        assert verb, line
        assert (ROOT / "scripts" / f"{verb[1]}.py").is_file(), line
        module, config = VERBS[verb[1].replace("_", "-")]
        fields = dataclasses.fields(getattr(import_module(module), config))
        flags = re.findall(r" --(\w+)", line[verb.end() :])
        known = {field.name for field in fields} | {"config"}
        assert set(flags) <= known, line


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    assert len(PAGES) >= 6
    assert all(f"howto/{page.stem}" in index for page in PAGES)
