"""Where the concept is: tables and figures."""

import pytest

from circuitcut.reports.load import Run
from circuitcut.reports.whereabouts import (
    location_rows,
    probe_by_layer,
    probe_rows,
    redistribution_by_layer,
    word_rows,
)
from tests.reports.conftest import relearn_results


def test_probe_and_location_rows():
    probes = probe_rows(relearn_results())
    assert len(probes) == 3 * 7
    assert probes[0]["level"] == "embeddings"
    assert probes[0]["AUC, shuffled labels"] == 0.51
    located = location_rows(relearn_results())
    assert [row["seed"] for row in located] == [0, 1]
    assert located[0]["overlap of both masks"] == 0.123
    assert located[0]["units ablated by a new mask"] == 15
    assert location_rows({"after": [{"condition": "cut"}]}) == []


def test_words_are_those_of_the_cut_relearned_from_most_examples():
    results = relearn_results()
    results["after"].insert(0, results["after"][1] | {"limit": 4})
    before, after = word_rows(results)
    assert before == {
        "unit": "layer 1, neurons 37",
        "top unit": "before the cut",
        "ablated": "yes",
        "words before the cut": "Paris (1.250), Rome (1.250)",
        "words after relearning": "none: constant",
    }
    assert after["words after relearning"] == "<Oslo0> (1.250)"
    results["after"][1]["words"].append(
        results["after"][1]["words"][0] | {"top": "after"}
    )
    both, _ = word_rows(results)
    assert both["top unit"] == "before the cut and after relearning"
    left_out = {"after": [entry | {"words": None} for entry in results["after"]]}
    assert word_rows(left_out) == []


def test_redistribution_bars_are_the_shares_in_percent(relearn_run: Run):
    (axes,) = redistribution_by_layer(relearn_run).axes
    heights = {
        bars.get_label(): [b.get_height() for b in bars] for bars in axes.containers
    }
    after = heights["top units after relearning"]
    assert after == pytest.approx([40, 25, 15, 10, 5, 5])
    assert len(heights) == 4


def test_probes_have_a_solid_and_a_dotted_line_a_condition(relearn_run: Run):
    (axes,) = probe_by_layer(relearn_run).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", ":"] * 3 + [":"]
    assert axes.get_xticklabels()[0].get_text() == "emb."
