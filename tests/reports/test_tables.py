"""Tables: numbers as written, aligned text, one row a model, method or condition."""

import math

import pytest

from circuitcut.reports.tables import (
    all_score_rows,
    area_rows,
    curve_rows,
    faithfulness_rows,
    format_cell,
    format_table,
    recovery_rows,
    relearning_rows,
    score_rows,
    site_rows,
    stability_rows,
    with_interval,
)
from tests.reports.conftest import (
    curve_results,
    faithfulness_results,
    mask_results,
    relearn_results,
    stability_results,
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
        (6_920_060_322_375.0, "6.9e+12"),
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
        "learned cut",
        "learned gates before rounding",
        "random cut 1",
        "random cut 2",
        "attribution cut: gradient \u00d7 activation of the margin",
        "attribution cut: probeless (mean difference)",
    ]
    assert rows[1]["F1 of the concept"] == "0.012 [-0.009, 0.046]"
    assert rows[3]["F1 of the concept"] == "0.722"


def test_layers_have_one_row_with_every_kind():
    rows = site_rows(mask_results())
    assert rows[3] == {
        "layer": "3",
        "neurons ablated": 1,
        "neurons in total": 1536,
        "heads ablated": 1,
        "heads in total": 12,
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
    assert (second["weights ablated"], second["weights in total"]) == (5, 30)


def test_curves_have_one_row_a_method_and_size():
    rows = curve_rows(curve_results("attribute"))
    assert len(rows) == 18
    assert {row["method"] for row in rows} == {
        "learned mask",
        "gradient \u00d7 activation of the margin",
        "random",
    }


def test_relearning_rows_hold_the_first_and_the_last_moment():
    rows = relearning_rows(relearn_results())
    assert len(rows) == 16
    assert rows[0]["condition"] == "cut, mask held"
    assert rows[0]["F1 of the concept, step 0"].startswith("0.012")
    assert rows[1]["condition"] == "cut, written once"
    assert rows[2]["condition"] == "uncut"
    assert {row["steps"] for row in rows} == {60}
    assert rows[-1]["concept examples"] == "all"


def test_recovery_says_never_and_undefined():
    cut, random, *_ = recovery_rows(relearn_results())
    assert (cut["steps to 50 %"], cut["steps to 95 %"]) == ("8", "never")
    assert cut["mean regained / removed"] == "0.432 [0.390, 0.470]"
    assert random["recovery: regained / removed"] == "undefined"


def test_faithfulness_means_are_over_known_seeds():
    results = faithfulness_results()
    rows = {(row["ranking"], row["kept"]): row for row in faithfulness_rows(results)}
    assert rows["random", "1 %"]["faithfulness"] == pytest.approx(0.1)
    assert rows["random", "10 %"]["faithfulness"] == pytest.approx(0.1)
    assert rows["soft top-k (learned)", "10 %"]["units kept"] == 100
    assert rows["soft top-k (learned)", "10 %"]["units on a path"] == 90
    learned, random = area_rows(results)
    assert learned["CPR (higher is better)"] == "0.900"
    assert learned["CMD (0 is best)"] == "0.050"
    assert random["CPR (higher is better)"] == "0.500"
    assert (learned["seeds"], random["seeds"]) == (1, 2)
    assert (
        learned["area under F1 of the concept"] == "undefined"
    )  # a run before this area


def test_stability_has_a_row_a_pair_one_for_the_mean_and_one_a_site():
    pair, mean, site = stability_rows(stability_results())
    assert pair["masks"] == "seed 0 and seed 1"
    assert (pair["units"], pair["shared"]) == ("5", 3)
    assert [row["Jaccard"] for row in (pair, mean, site)] == [3 / 7] * 3
    assert pair["random"] == "0.003 [0.000, 0.111]"
    assert site["masks"] == "at h.0:heads"
    assert site["random, same number a site"] is None


def test_rankings_without_complements_leave_their_cells_empty():
    results = faithfulness_results()
    for entry in results["curve"]:
        entry["without"] = None
    for entry in results["areas"]:
        entry["score_area"] = 0.25
    for row in faithfulness_rows(results):
        assert row["complement: faithfulness"] is None
        assert row["complement: concept score"] is None
    assert {row["area under F1 of the concept"] for row in area_rows(results)[:1]} == {
        "0.250"
    }


def test_scores_have_the_names_that_people_use_and_older_runs_those_of_their_keys():
    results = mask_results()
    results["concept_metric"] = {**results["concept_metric"], "label": "LOC span F1"}
    row = score_rows(results)[0]
    assert list(row)[:3] == ["model", "LOC span F1", "F1 of other types"]
    names = [row["score"] for row in all_score_rows(results)]
    assert names[:2] == ["LOC span F1", "F1 of other types"]
