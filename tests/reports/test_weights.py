"""Tables and sentences of a classification by weights, against numbers set by hand."""

from typing import Any

from circuitcut.reports.findings import FINDINGS
from circuitcut.reports.load import load_run
from circuitcut.reports.opening import OPENINGS
from circuitcut.reports.table_files import comma_separated, latex, markdown
from circuitcut.reports.weights.tables import (
    class_rows,
    median_rows,
    outside_rows,
    quartile_rows,
    total_rows,
    vocabulary_text,
)
from tests.reports.weighed import select_results, weight_results


def test_counts_have_a_row_a_layer_and_one_for_all():
    rows = class_rows(weight_results())
    assert [row["layer"] for row in rows] == [0, 1, "all"]
    assert [row["weakening"] for row in rows] == [1, 2, 3]
    coarse = class_rows(weight_results(), "coarse")[-1]
    assert coarse == {
        "layer": "all",
        "neurons": 20,
        "strengthening": 0,
        "neither": 17,
        "weakening": 3,
    }
    shares = {row["class"]: row["share"] for row in total_rows(weight_results())}
    assert shares["weakening"] == "15.0 %"
    assert median_rows(weight_results())[0]["cos(w_in, w_out)"] == 0.1
    assert quartile_rows(weight_results())[0]["upper quartile"] == 0.2
    assert outside_rows(weight_results())[1]["cos(w_in, w_out), beta region"] == 0.2


def test_a_table_is_written_for_three_readers():
    rows = [{"layer": 0, "a|b & c_d": 0.5}, {"layer": "all", "a|b & c_d": 1234}]
    assert markdown(rows) == (
        "| layer | a\\|b & c_d |\n| --- | --- |\n| 0 | 0.500 |\n| all | 1,234 |\n"
    )
    assert comma_separated(rows) == "layer,a|b & c_d\n0,0.5\nall,1234\n"
    assert latex(rows) == (
        "\\begin{tabular}{lr}\n\\toprule\nlayer & a\\textbar{}b \\& c\\_d \\\\\n"
        "\\midrule\n0 & 0.500 \\\\\nall & 1,234 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_words_keep_their_blanks_in_quotes():
    text = vocabulary_text(weight_results())
    assert text == "neuron 1.3 (layer.number)\n    out  ' Paris|' (2.50)\n"


def test_what_a_classification_says_in_words(write_run: Any):
    run = load_run(write_run(weight_results()))
    verdict, _ = OPENINGS["weight_classes"](run)
    assert verdict == (
        "0.0 % of 20 gated neurons strengthen and 15.0 % weaken what they read."
    )
    said = " ".join(FINDINGS["weight_classes"](run))
    assert "There are no strengthening neurons." in said
    assert "Most weakening neurons are in layer 1: 2 of 3." in said
    assert "median cosine of 0.250." in said
    assert "15.0 % of the neurons lie outside" in said


def test_what_a_selection_says_in_words(write_run: Any):
    _, (said,) = OPENINGS["select_mask"](load_run(write_run(select_results())))
    assert said == (
        "The mask ablates 2 of 20 neurons (10.0 %): of the class weakening, which has "
        "3 (tau 0.5, weights folded)."
    )
