"""Tables and sentences of a classification by weights, against numbers set by hand."""

from typing import Any

import pytest

from circuitcut.reports.findings import FINDINGS
from circuitcut.reports.load import load_run
from circuitcut.reports.opening import OPENINGS
from circuitcut.reports.sections.registry import TABLES
from circuitcut.reports.table_files import comma_separated, latex, markdown
from circuitcut.reports.weights.effect_tables import (
    attribute_rows,
    changed_rows,
    continued_rows,
    layer_rows,
    lens_rows,
    reader_rows,
    summary_rows,
)
from circuitcut.reports.weights.published import (
    PUBLISHED,
    Published,
    check_rows,
    published_of,
)
from circuitcut.reports.weights.tables import (
    class_rows,
    count_rows,
    median_rows,
    outside_rows,
    quartile_rows,
    total_rows,
    vocabulary_text,
)
from circuitcut.storage.errors import UserError
from tests.reports.weighed import effect_results, select_results, weight_results


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


def test_neurons_of_other_runs_stand_beside_chance():
    (row,) = count_rows(weight_results())
    assert (row["neurons of"], row["set"], row["chosen"]) == (
        "runs/ioi",
        "4 ablated",
        2,
    )
    assert (row["by chance"], row["in the same layers"]) == ("0.6 [0, 2]", "0.5 [0, 1]")


def test_tables_and_sentences_of_effects_have_their_numbers(write_run: Any):
    results = effect_results()
    rows = summary_rows(results)
    assert [row["neurons"] for row in rows] == ["the class", "control by layer"]
    assert rows[0]["entropy"] == "0.500 [0.400, 0.600]"
    assert rows[1]["entropy"] == "0.010 [-0.090, 0.110]"
    assert rows[1]["draws"] == 2
    assert layer_rows(results)[0]["r(on, cos in_out)"] == -0.9
    assert changed_rows(results)[0]["promoted"] == "' a' +0.250"
    assert changed_rows(results)[0]["suppressed"] == "' b' -0.500"
    (reading,) = lens_rows(results)
    assert reading["behind"] == "MLP"
    assert (reading["clean"], reading["ablated"]) == ("' b' 0.750", "' a' 0.500")
    assert continued_rows(results)[0]["ablated"] == " was"
    assert attribute_rows(results) == [
        {
            "ablated at": "all",
            "layer": 0,
            "clean": "25.000 [20.000, 30.000]",
            "the class": "15.000",
            "the class, minus clean": "-10.000 [-12.000, -8.000]",
        }
    ]
    logits, reader = reader_rows(results)
    assert (logits["reader"], logits["effect"]) == ("logits", 0.5)
    assert (reader["reader"], reader["share of the logits'"]) == ("m1", 0.5)
    results["changed"].append({**results["changed"][0], "text": 3})
    assert len(lens_rows(results)) == 2
    assert lens_rows(results, most_changed_only=True) == [reading]
    assert all(table.rows for table in TABLES["class_effects"](results))
    verdict, said = OPENINGS["class_effects"](load_run(write_run(results)))
    assert "2 of 20 neurons of the class weakening" in verdict
    assert "900 tokens" in verdict
    assert "the class: entropy +0.500 [0.400, 0.600], loss 0.000 " in said[0]
    assert said[1].startswith("control by layer (2 draws): entropy +0.010")


def test_a_selection_by_rule_and_frequency_says_so(write_run: Any):
    results = select_results()
    results["selection"] |= {
        "control": "frequency",
        "tolerance": 0.05,
        "when": "gate-/post+",
    }
    _, (said,) = OPENINGS["select_mask"](load_run(write_run(results)))
    assert "on about as often (within 0.05), at tokens with gate-/post+" in said


def test_published_numbers_add_up_and_are_compared_one_by_one():
    """Layers times neurons a layer: 12 of 3,072, 16 of 8,192 and 12 of 3,072."""
    sums = {name: sum(p.total.values()) for name, p in PUBLISHED.items()}
    assert sums["gpt2"] == 12 * 3072
    assert sums["pythia-1b"] == 16 * 8192
    assert sum(PUBLISHED["bert-base-cased"].bins) == 12 * 3072
    for layer in PUBLISHED["gpt2"].by_layer.values():
        assert sum(layer.values()) == 3072
    assert sums["olmo-7b-hf"] < 352_256
    assert published_of("openai-community/GPT2") is PUBLISHED["gpt2"]
    with pytest.raises(UserError, match="no numbers of the model 'smollm2'"):
        published_of("smollm2")
    given = Published({"weakening": 5}, {1: {"weakening": 2}}, (3, 17))
    rows = check_rows(weight_results(), given)
    assert [row["difference"] for row in rows] == [-2, 0, 0, 0]
    assert rows[3]["neurons"] == "cos(w_in, w_out) from 0.0 to 1.0"
