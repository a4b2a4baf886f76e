"""Tables: numbers as written, aligned text, one row a model, method or condition."""

import math

import pytest

from circuitcut.reports.tables import (
    area_rows,
    curve_rows,
    faithfulness_rows,
    format_cell,
    format_table,
    location_rows,
    probe_rows,
    recovery_rows,
    relearning_rows,
    score_rows,
    site_rows,
    with_interval,
    word_rows,
)
from tests.reports.conftest import (
    curve_results,
    faithfulness_results,
    mask_results,
    relearn_results,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (math.nan, ""),
        (0, "0"),
        (0.0, "0.000"),
        (9216, "9,216"),
        (0.73312, "0.733"),
        (-0.02, "-0.020"),
        (0.00004, "4.0e-05"),
        (123456.7, "123,457"),
        (True, "True"),
        ("cut", "cut"),
    ],
)
def test_values_are_short_and_never_rounded_to_a_false_zero(value: object, text: str):
    assert format_cell(value) == text


def test_an_interval_stands_behind_its_value_only_when_both_ends_are_known():
    assert with_interval(0.5, [0.4, 0.6]) == "0.500 [0.400, 0.600]"
    assert with_interval(0.5, [None, 0.6]) == with_interval(0.5, None) == "0.500"
    assert with_interval(None, [0.4, 0.6]) == ""


def test_text_tables_align_names_left_and_numbers_right():
    rows = [{"model": "uncut", "f1": 0.7}, {"model": "cut", "f1": None, "more": 1}]
    assert format_table(rows, ["model", "f1"]) == (
        "model     f1\n-----  -----\nuncut  0.700\ncut"
    )


def test_a_table_without_rows_is_its_heading():
    assert format_table([], ["a", "bc"]) == "a  bc\n-  --"


def test_every_model_of_a_mask_run_has_a_row():
    rows = score_rows(mask_results())
    assert [row["model"] for row in rows] == [
        "uncut",
        "cut",
        "cut before rounding",
        "random cut 1",
        "random cut 2",
        "attribution: gradient margin",
        "attribution: probeless",
    ]
    assert rows[1]["concept: concept_f1"] == "0.012 [-0.009, 0.046]"
    assert rows[3]["concept: concept_f1"] == "0.722"


def test_layers_have_one_row_with_every_kind():
    rows = site_rows(mask_results())
    assert rows[3] == {
        "layer": "3",
        "neurons ablated": 1,
        "of neurons": 1536,
        "heads ablated": 1,
        "of heads": 12,
    }
    assert len(rows) == 6


def test_weights_of_one_layer_are_added_up_and_the_embedding_level_has_its_name():
    sites = [
        {"layer": 0, "kind": "weights", "n_units": 10, "n_ablated": 2},
        {"layer": 0, "kind": "weights", "n_units": 20, "n_ablated": 3},
        {"layer": -1, "kind": "hidden", "n_units": 4, "n_ablated": 1},
    ]
    first, second = site_rows({"per_site": sites})
    assert (first["layer"], first["hidden ablated"]) == ("embeddings", 1)
    assert (second["weights ablated"], second["of weights"]) == (5, 30)


def test_curves_have_one_row_a_method_and_size():
    rows = curve_rows(curve_results("attribute"))
    assert len(rows) == 18
    assert {row["method"] for row in rows} == {"learned", "gradient margin", "random"}


def test_relearning_rows_hold_the_first_and_the_last_moment():
    rows = relearning_rows(relearn_results())
    assert len(rows) == 16
    assert rows[0]["condition"] == "cut, lasting"
    assert rows[0]["concept at 0"].startswith("0.012")
    assert rows[1]["condition"] == "cut, one shot"
    assert rows[2]["condition"] == "uncut"
    assert {row["steps"] for row in rows} == {60}
    assert rows[-1]["examples"] == "all"


def test_recovery_says_never_and_undefined():
    cut, random, *_ = recovery_rows(relearn_results())
    assert (cut["steps to 50%"], cut["steps to 95%"]) == ("8", "never")
    assert cut["area"] == "0.432 [0.390, 0.470]"
    assert random["normalised"] == "undefined"


def test_probe_and_location_rows():
    probes = probe_rows(relearn_results())
    assert len(probes) == 3 * 7
    assert probes[0]["layer"] == "embeddings"
    assert probes[0]["with shuffled labels"] == 0.51
    located = location_rows(relearn_results())
    assert [row["seed"] for row in located] == [0, 1]
    assert located[0]["its overlap with the mask"] == 0.123
    assert located[0]["fresh mask ablates"] == 15
    assert location_rows({"after": [{"condition": "cut"}]}) == []


def test_words_are_those_of_the_cut_relearned_from_most_examples():
    results = relearn_results()
    results["after"].insert(0, results["after"][1] | {"limit": 4})
    before, after = word_rows(results)
    assert before == {
        "unit": "layer 1, neurons 37",
        "at the top": "before the cut",
        "ablated": "yes",
        "words before the cut": "Paris (1.250), Rome (1.250)",
        "words after relearning": "none: constant",
    }
    assert after["words after relearning"] == "<Oslo0> (1.250)"
    results["after"][1]["words"].append(
        results["after"][1]["words"][0] | {"top": "after"}
    )
    both, _ = word_rows(results)
    assert both["at the top"] == "before the cut and after relearning"
    left_out = {"after": [entry | {"words": None} for entry in results["after"]]}
    assert word_rows(left_out) == []


def test_faithfulness_means_are_over_known_seeds():
    results = faithfulness_results()
    rows = {(row["ranking"], row["kept"]): row for row in faithfulness_rows(results)}
    assert rows["random", "1 %"]["faithfulness"] == pytest.approx(0.1)
    assert rows["random", "10 %"]["faithfulness"] == pytest.approx(0.1)
    assert rows["topk", "10 %"]["units"] == 100
    assert rows["topk", "10 %"]["connected"] == 90
    learned, random = area_rows(results)
    assert learned["CPR (more is better)"] == "0.900"
    assert learned["CMD (0 is best)"] == "0.050"
    assert random["CPR (more is better)"] == "0.500"
    assert (learned["seeds"], random["seeds"]) == (1, 2)
