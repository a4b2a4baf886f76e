"""First paragraphs of every kind of run."""

from typing import Any

import pytest

from circuitcut.reports.findings import faithfulness_findings, relearning_findings
from circuitcut.reports.load import Run, load_run
from circuitcut.reports.opening import (
    OPENINGS,
    attribution_opening,
    faithfulness_opening,
    relearning_opening,
)
from tests.reports.conftest import (
    curve_results,
    faithfulness_results,
    import_results,
    mask_results,
    relearn_results,
    stability_results,
    trace_results,
)
from tests.reports.weighed import select_results, weight_results

RESULTS = [
    mask_results(),
    relearn_results(),
    curve_results("evaluate"),
    curve_results("attribute"),
    import_results(),
    faithfulness_results(),
    stability_results(),
    trace_results(),
    select_results(),
    weight_results(),
]


@pytest.mark.parametrize("results", RESULTS, ids=lambda results: results["kind"])
def test_every_kind_of_run_opens_with_sentences(
    results: dict[str, Any], write_run: Any
):
    verdict, sentences = OPENINGS[results["kind"]](load_run(write_run(results)))
    assert verdict.endswith(".")
    assert all(text.endswith(".") and "  " not in text for text in sentences)


def test_a_circuit_says_how_many_units_are_kept(write_run: Any):
    results = {**mask_results(), "direction": "isolate", "n_ablated": 9000}
    _, sentences = OPENINGS["train_mask"](load_run(write_run(results)))
    assert sentences[0].startswith("288 of 9,288 neurons and heads (3.1 %) of minilm ")
    assert "are kept and all others ablated" in sentences[0]


def test_recoveries_of_fewest_and_most_examples_open_the_rest_follow(relearn_run: Run):
    verdict, sentences = relearning_opening(relearn_run)
    assert verdict.startswith("The concept comes back after fine-tuning on all")
    assert sentences[0].startswith("After 60 steps of fine-tuning on 1 concept exa")
    assert sentences[1].startswith("After 60 steps of fine-tuning on all concept")
    assert "73 % [69, 78] of the uncut model's score" in sentences[0]
    assert "F1 of other types is 0.411 (uncut model: 0.411)" in (sentences[0])
    further = " ".join(relearning_findings(relearn_run))
    assert "on 4 concept examples" in further
    assert "on 1 concept example (" not in further
    assert "Random cut, 1 concept example: F1 of the concept is 0.722 at s" in further


@pytest.mark.parametrize(
    ("ratio", "normalised", "said"),
    [
        (None, None, "The recovery is undefined (a reason)."),
        (0.9, 0.96, "The concept comes back"),
        (0.9, 0.6, "Most of the concept comes back"),
        (0.9, 0.3, "A part of the concept comes back"),
        (0.9, 0.02, "The concept does not come back"),
    ],
)
def test_a_recovery_is_called_what_it_is(
    ratio: float | None, normalised: float | None, said: str, relearn_run: Run
):
    for entry in relearn_run.results["recovery"]:
        for point in (entry["points"][0], entry["points"][-1]):
            point |= {"ratio": ratio, "normalised": normalised, "reason": "a reason"}
    verdict, _ = relearning_opening(relearn_run)
    assert verdict.startswith(said)


def test_a_cut_that_broke_nothing_left_nothing_to_relearn(relearn_run: Run):
    for entry in relearn_run.results["summary"]:
        if (entry["condition"], entry["step"]) == ("cut", 0):
            entry["concept"] = 0.7
    said, _ = relearning_opening(relearn_run)
    assert said.startswith("The recovery is undefined: the cut had left the concept")


def test_attribution_lists_every_method_at_the_largest_size(write_run: Any):
    run = load_run(write_run(curve_results("attribute")))
    _, sentences = attribution_opening(run)
    assert sentences[0] == "F1 of the concept of the uncut model: 0.733."
    assert sentences[1].startswith("With 200 units ablated: learned mask 1.6e-10, ")


def test_the_smallest_faithful_circuit_is_named(write_run: Any):
    run = load_run(write_run(faithfulness_results()))
    verdict, _ = faithfulness_opening(run)
    assert verdict == (
        "The smallest faithful circuit has 10.0 % of 1,000 edges (ranking: soft top-k "
        "(learned))."
    )
    said = faithfulness_findings(run)
    assert said[0] == (
        "soft top-k (learned): 10.0 % of 1,000 edges keep at least 95 % of the "
        "concept's margin."
    )
    assert said[1] == "random: no circuit measured keeps 95 % of the margin."
