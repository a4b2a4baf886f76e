"""The report: the numbers of results.json, escaped, in one file that needs no other."""

import base64
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from circuitcut.reports.html import page, table, write_report
from circuitcut.reports.load import load_run
from circuitcut.reports.tables import format_cell
from tests.reports.conftest import (
    curve_results,
    import_results,
    mask_results,
    relearn_results,
)

N_FIGURES = {
    "train_mask": 4,
    "relearn": 4,
    "evaluate": 2,
    "attribute": 1,
    "import_mask": 1,
}


class Page(HTMLParser):
    """Cells, images, links and open tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.cells: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images.append(found["src"])
        self.addresses += [v for k, v in found.items() if k in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


@pytest.fixture(scope="module")
def paths(write_run: Any) -> dict[str, Path]:
    """One run of every kind."""
    results = [
        mask_results(),
        relearn_results(),
        curve_results("evaluate"),
        curve_results("attribute"),
        import_results(),
    ]
    return {found["kind"]: write_run(found) for found in results}


@pytest.fixture(scope="module")
def text(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of all four runs."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(list(paths.values()), out).read_text()


def test_the_page_is_well_formed_and_needs_nothing_from_outside(text: str):
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.images) == sum(N_FIGURES.values())
    assert all(a.startswith("data:image/png;base64,") for a in parsed.addresses)
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", _without_data(text))


def _without_data(text: str) -> str:
    return re.sub(r'src="data:[^"]*"', "", text)


def test_images_in_the_page_are_the_files_in_figures(text: str, paths: dict[str, Path]):
    shown = [base64.b64decode(i.partition(",")[2]) for i in Page(text).images]
    for kind, path in paths.items():
        files = [file.read_bytes() for file in (path / "figures").glob("*.png")]
        assert len(files) == N_FIGURES[kind]
        assert all(data.startswith(b"\x89PNG\r\n") for data in files)
        assert set(files) <= set(shown)


def test_every_number_of_the_tables_is_in_results(text: str):
    cells = Page(text).cells
    results = [mask_results(), relearn_results()]
    for name in ("uncut", "cut"):
        for metric, value in results[0]["scores"][name].items():
            ends = results[0]["intervals"][name].get(metric)
            shown = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
            assert f"{value:.3f}{shown}" in cells
    for scores in results[0]["scores"]["attribution"].values():
        assert f"{scores['concept_f1']:.3f}" in cells
    for scores in results[0]["unseen"].values():
        assert f"{scores['concept_f1']:.3f}" in cells
    for entry in results[1]["recovery"]:
        last = entry["points"][-1]
        low, high = last["ratio_interval"]
        assert f"{last['ratio']:.3f} [{low:.3f}, {high:.3f}]" in cells
    numbers = set(re.findall(r"-?\d[\d,]*\.\d+(?:e-\d+)?", " ".join(cells)))
    assert numbers <= set(map(format_cell, _numbers(results)))


def _numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for item in tree for number in _numbers(item)]
    return [tree] if isinstance(tree, float) else []


def test_findings_are_made_of_the_numbers(text: str):
    assert (
        "With 13 of 9,288 units ablated (0.14%) the concept (concept f1) goes from "
        "0.733 to 0.012, the rest (retain f1) goes from 0.566 to 0.520, on held-out "
        "data."
    ) in text
    assert (
        "Random cuts of the same counts leave the concept at 0.726 and the rest at "
        "0.563."
    ) in text
    assert (
        "Attribution cuts of the same size leave the concept and the rest at: gradient "
        "margin 0.017 and 0.514; probeless 0.293 and 0.552."
    ) in text
    assert "1 example, 60 steps, cut, lasting: the concept is back at 73%" in text
    assert "the rest is at 0.411, in the uncut model at 0.411." in text
    assert "With 200 units ablated, concept (concept_f1): learned 1.6e-10" in text


def test_a_circuit_is_drawn_in_the_page_with_a_title_an_edge(text: str):
    circuit = import_results()["circuit"]
    (drawn,) = re.findall(r'<svg class="circuit".*?</svg>', text, re.DOTALL)
    for name, score in zip(circuit["edges"], circuit["scores"], strict=True):
        title = escape(f"{name}: {format_cell(score)}")
        assert drawn.count(f"<title>{title}</title>") == 1
    assert "The 5 ablated edges of 51; the other 46 are kept." in text
    assert "The mask from graph.json (mib) ablates 5 of 51 units (9.80%)." in text


def test_a_run_whose_circuit_is_too_large_has_no_picture(write_run: Any):
    results = {**import_results(), "circuit": None}
    assert "<svg" not in page([(load_run(write_run(results)), {})])


def test_commands_to_repeat_and_go_on_are_shown(text: str, paths: dict[str, Path]):
    for kind, path in paths.items():
        assert f"python scripts/{kind}.py --config {path}/config.json" in text
    assert "python scripts/relearn.py" in text


def test_text_of_users_is_escaped(write_run: Any):
    evil = "<script>alert(1)</script>"
    results = {**curve_results("attribute"), "model": evil, "next": f"echo {evil} & x"}
    text = page([(load_run(write_run(results)), {})])
    assert evil not in text
    assert "&lt;script&gt;" in text
    assert "<td>&lt;b&gt;</td>" in table([{"a & b": "<b>"}])
    assert "<th>a &amp; b</th>" in table([{"a & b": "<b>"}])


def test_the_same_run_gives_the_same_report(paths: dict[str, Path], tmp_path: Path):
    run = [paths["attribute"]]
    first = write_report(run, tmp_path / "a.html").read_bytes()
    assert write_report(run, tmp_path / "b.html").read_bytes() == first


def test_results_without_the_optional_parts_still_give_a_report(write_run: Any):
    optional = ("intervals", "unseen", "curve", "next")
    bare = {k: v for k, v in mask_results().items() if k not in optional}
    bare["scores"] = {k: bare["scores"][k] for k in ("uncut", "cut")}
    few = {**relearn_results(), "recovery": [], "probe": [], "after": [], "next": None}
    text = page([(load_run(write_run(results)), {}) for results in (bare, few)])
    assert "No recovery: cut and uncut models were not both run." in text
    assert "0.012" in Page(text).cells
