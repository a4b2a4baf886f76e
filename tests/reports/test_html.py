"""The report: the numbers of results.json, escaped, in one file that needs no other."""

import base64
import re
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from circuitcut.reports.html import page, table_html, write_report
from circuitcut.reports.load import load_run
from circuitcut.reports.sections.table import Table
from circuitcut.reports.tables import format_cell
from circuitcut.reports.verdict import effect_warning
from circuitcut.storage.errors import UserError
from tests.reports.conftest import (
    curve_results,
    import_results,
    mask_results,
    relearn_results,
)

N_FIGURES = {
    "train_mask": 5,
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
        self.anchors: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images.append(found["src"])
        self.anchors += [f"#{v}" for k, v in attrs if k == "id"]
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
    assert all(
        a.startswith("data:image/png;base64,") or a in parsed.anchors
        for a in parsed.addresses
    )
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
    results = [mask_results(), relearn_results(), import_results()]
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


def test_the_report_opens_with_one_paragraph_of_numbers(write_run: Any):
    runs = [load_run(write_run(r)) for r in (mask_results(), relearn_results())]
    text = page([(run, {}) for run in runs])
    opening = re.findall(r'<div class="opening">(.*?)</div>', text, re.DOTALL)
    assert len(opening) == 1
    assert opening[0].count("<p>") == 1
    assert text.index("opening") < text.index("<table>")
    assert text.index("How to read this report") < text.index("<table>")
    plain = re.sub("<[^>]*>", "", opening[0])
    assert (
        "The cut is selective: the concept is lost, the rest is kept. 13 of 9,288 "
        "neurons and heads (0.1 %) of minilm are ablated; ablation value: mean; seed "
        "3. On held-out data, F1 of the concept (span F1) is 0.733 uncut and 0.012 "
        "cut; F1 of other types (span F1) is 0.566 uncut and 0.520 cut. Two random "
        "cuts with the same counts at every site give on average (range) 0.726 (0.722 "
        "to 0.730) for the concept and 0.563 (0.561 to 0.566) for the rest."
    ) in plain
    assert (
        "After 60 steps of fine-tuning on 1 concept example (3 seeds, mask held), "
        in plain
    )


def test_further_findings_stand_in_the_section(text: str):
    assert (
        "Attribution cuts of the same size (no mask trained) give for the concept and "
        "the rest: gradient \u00d7 activation of the margin 0.017 and 0.514; probeless "
        "(mean difference) 0.293 and 0.552."
    ) in text


def test_every_table_scrolls_and_every_figure_has_a_caption(text: str):
    assert text.count("<table>") == text.count('<div class="scroll"><table>')
    assert text.count("<figure>") == text.count("<figcaption>")


def test_a_circuit_is_drawn_in_the_page_with_a_title_an_edge(text: str):
    circuit = import_results()["circuit"]
    (drawn,) = re.findall(r'<svg class="circuit".*?</svg>', text, re.DOTALL)
    for name, score in zip(circuit["edges"], circuit["scores"], strict=True):
        title = escape(f"{name}: {format_cell(score)}")
        assert drawn.count(f"<title>{title}</title>") == 1
    assert "The 5 ablated edges of 51; the other 46 are kept." in text
    assert (
        "The mask from graph.json (format mib) ablates 5 of 51 units (9.8 %)." in text
    )


def test_a_run_whose_circuit_is_too_large_has_no_picture(write_run: Any):
    results = {**import_results(), "circuit": None}
    assert "<svg" not in page([(load_run(write_run(results)), {})])


def test_commands_to_repeat_and_go_on_are_shown(text: str, paths: dict[str, Path]):
    for kind, path in paths.items():
        assert f"python scripts/{kind}.py --config {path}/config.json" in text
    assert "python scripts/relearn.py" in text


def test_the_command_to_repeat_names_the_python_that_wrote_the_report(
    write_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(sys, "argv", ["scripts/report.py"])
    run = load_run(write_run({**curve_results("attribute"), "next": None}))
    again = f".venv/bin/python scripts/attribute.py --config {run.path}/config.json"
    assert f"<pre>{again}</pre>" in page([(run, {})])


def test_a_mask_and_its_relearning_give_their_warning_once(write_run: Any):
    warning = "the cut broke nothing: f1 is 0.79, which is 99 % of the ability."
    both = [
        load_run(write_run({**results, "warning": warning}))
        for results in (mask_results(), relearn_results())
    ]
    assert page([(both[1], {})]).count(warning) == 1
    both[0].results["scores"]["cut"] = both[0].results["scores"]["uncut"]
    said = effect_warning(both[0].results)
    for run in both:
        run.results["warning"] = said
    assert page([(run, {}) for run in both]).count(f"Warning: {said}") == 1


def test_a_report_does_not_tell_its_reader_to_write_a_report(write_run: Any):
    following = "python scripts/report.py --runs runs/a"
    texts = [
        page([(load_run(write_run({**curve_results("attribute"), "next": n})), {})])
        for n in (following, "python scripts/relearn.py --mask report.py")
    ]
    assert following not in texts[0]
    assert "<h3>Command: repeat this run</h3>" in texts[0]
    assert "relearn.py --mask report.py" in texts[1]


def test_text_of_users_is_escaped(write_run: Any):
    evil = "<script>alert(1)</script>"
    results = {**curve_results("attribute"), "model": evil, "next": f"echo {evil} & x"}
    text = page([(load_run(write_run(results)), {})])
    assert evil not in text
    assert "&lt;script&gt;" in text
    assert "<td>&lt;b&gt;</td>" in table_html(Table("", [{"a & b": "<b>"}]))
    assert '<th scope="col">a &amp; b</th>' in table_html(Table("", [{"a & b": "<b>"}]))


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
    assert "No recovery: cut and uncut models were not both fine-tuned." in text
    assert "0.012" in Page(text).cells


def test_a_report_replaces_an_earlier_report_and_no_other_file(
    paths: dict[str, Path], tmp_path: Path
):
    out = tmp_path / "report.html"
    write_report([paths["attribute"]], out)
    write_report([paths["import_mask"]], out)
    assert "graph.json" in out.read_text()
    for text in ("<html><title>My page</title></html>", "", "{}"):
        out.write_text(text)
        run = paths["attribute"]
        drawn = sorted(run.rglob("*"))
        with pytest.raises(UserError, match="--out must be a new file or an earlier"):
            write_report([run], out)
        assert out.read_text() == text
        assert sorted(run.rglob("*")) == drawn


def test_runs_of_one_kind_are_kept_apart_by_their_names(write_run: Any):
    runs = [load_run(write_run(mask_results())) for _ in range(2)]
    text = page([(run, {}) for run in runs])
    opening = re.findall(r'<div class="opening">(.*?)</div>', text, re.DOTALL)[0]
    assert opening.count("<p>") == 2
    for number, run in enumerate(runs, 1):
        assert f'<a href="#run-{number}">{run.name}</a>: <strong>' in opening
        assert f"<small>run {run.name}</small>" in text


def test_further_scores_and_chance_have_columns_and_notes(write_run: Any):
    results = mask_results()
    results["concept_metric"] = {**results["concept_metric"], "chance": 0.25}
    for name in ("uncut", "cut"):
        results["scores"][name] |= {"logit_difference": 3.25, "top1": 0.75}
    text = page([(load_run(write_run(results)), {})])
    for column in ("logit difference (nats)", "top-1 accuracy", "KL to uncut, rest"):
        assert f'<th scope="col">{column}' in text
    chance = "<td>chance (a guess)</td><td>0.250</td><td>0.000</td>"
    assert chance in text
    assert "higher means more ability; chance: 0.250." in text
    assert "in nats; 0 at chance." in text
    without = page([(load_run(write_run(mask_results())), {})])
    assert "chance (a guess)" not in without


def test_a_relearning_says_the_logit_difference_and_warns_of_its_cut(write_run: Any):
    results = relearn_results() | {"warning": "the cut broke nothing: a reason."}
    for row in results["rows"]:
        row["scores"]["logit_difference"] = row["step"] + 0.5 + 3 * row["seed"]
    text = page([(load_run(write_run(results)), {})])
    assert "<strong>Warning: the cut broke nothing: a reason." in text
    at = text.index("Further scores before and after relearning")
    row = text[at:].split("<tr>")[2]
    assert "3.500" in row  # mean of seeds 0, 1 and 2
    assert "63.500" in row
