"""The table of relearned classes, from runs of known recovery."""

from typing import Any

import pytest

from circuitcut.reports.html import write_report
from circuitcut.reports.weights.relearned import relearned_class_rows
from circuitcut.storage.errors import UserError
from tests.reports.conftest import STEPS, relearn_results

SELECTION = {
    "classes": ["weakening"],
    "n_of_classes": 30,
    "control": "none",
    "tau": 0.5,
    "convention": "folded",
}


def relearned(control: str, area: float) -> dict[str, Any]:
    results = relearn_results()
    for entry in results["recovery"]:
        entry["area"] = area
    return results | {"selection": SELECTION | {"control": control}}


def test_classes_stand_beside_each_other_the_fastest_first():
    slow, fast = relearned("none", 0.25), relearned("frequency", 0.75)
    rows = relearned_class_rows([slow, relearn_results(), fast])
    half = len(rows) // 2
    names = [row["neurons"] for row in rows]
    assert names[:half] == ["weakening, control by layer and frequency"] * half
    assert names[half:] == ["weakening"] * half
    first = rows[0]
    of_cut = [
        row
        for row in fast["summary"]
        if (row["condition"], row["limit"]) == ("cut", fast["recovery"][0]["limit"])
    ]
    assert first["cut"] == of_cut[0]["concept"]
    assert f"after {STEPS[-1]} steps" in first
    assert (first["ablated"], first["mask"]) == (25, "held")


@pytest.mark.usefixtures("without_figures")
def test_a_report_of_several_classes_has_the_table(write_run: Any, tmp_path: Any):
    runs = [write_run(relearned("none", 0.25)), write_run(relearned("layer", 0.75))]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Classes relearned" in page
    assert "weakening, control by layer" in page
    assert (runs[-1] / "tables" / "classes_relearned.csv").exists()
    other = write_run(relearned("layer", 0.75) | {"model": "smollm2"})
    with pytest.raises(UserError, match="on minilm and task locations on smollm2"):
        write_report([runs[0], other], tmp_path / "report.html")
