"""Statements of the paper and tables of changes, from made-up results."""

from circuitcut.reports.stages.change_tables import (
    level_change_rows,
    polysemantic_change_rows,
    relearned_rows,
    signed,
)
from circuitcut.reports.stages.statements import statement_rows
from tests.reports.staged import stages_results


def verdicts() -> dict[str, tuple[str, str]]:
    rows = statement_rows(stages_results())
    return {
        str(row["statement"]): (str(row["here"]), str(row["verdict"])) for row in rows
    }


def test_an_interval_on_the_statements_side_confirms_it():
    found = verdicts()
    recovered = "The concept's score is at least 95% of the base model's after stage 1"
    assert found[recovered] == ("0.990 [0.960, 1.020]", "confirmed")
    first = "More of the salient units are at level 0"
    assert found[first] == ("+25.00 [+12.50, +37.50] points", "confirmed")
    last = "Fewer of the salient units are at the last level"
    assert found[last] == ("-25.00 [-37.50, -12.50] points", "confirmed")


def test_an_interval_on_both_sides_does_not_confirm():
    found = verdicts()
    for further in (
        ", beyond the random cut",
        ", among the units that were not pruned",
    ):
        for statement in (
            "More of the salient units are at level 0",
            "Fewer of the salient units are at the last level",
        ):
            assert found[statement + further][1] == "not confirmed"


def test_without_an_interval_nothing_is_confirmed_or_denied():
    found = verdicts()
    both = "More units respond to the concept and other words as well"
    assert found[both] == ("+12.50 points", "not testable here")
    slower = next(name for name in found if name.startswith("After random pruning"))
    assert found[slower] == ("", "not testable here")


def test_the_mean_level_is_in_levels_and_shares_are_in_percentage_points():
    rows = level_change_rows(stages_results())
    assert [row["level"] for row in rows] == [0, 1, "mean level"]
    assert rows[0]["base"] == "25.0 %"  # .5 minus the change
    assert rows[0]["cut, stage 1"] == "50.0 %"
    assert rows[0]["change"] == "+25.00 [+12.50, +37.50]"
    assert rows[0]["change among units not pruned"] == "+2.00 [-12.50, +16.50]"
    assert rows[2]["base"] == 0.75
    assert rows[2]["change"] == "-0.25 [-0.38, -0.12]"


def test_shares_of_the_base_models_scores_stand_under_their_stage():
    rows = relearned_rows(stages_results())
    assert [row["model"] for row in rows] == ["cut, mask held, 10.0 % pruned", "uncut"]
    assert rows[0]["stage 1"] == "0.990 [0.960, 1.020]"
    assert {row["score"] for row in rows} == {"concept"}  # the others' is a loss


def test_polysemantic_units_have_a_column_a_stage():
    [row] = polysemantic_change_rows(stages_results())
    assert (row["base"], row["stage 1"], row["change"]) == (
        "12.5 %",
        "25.0 %",
        "+12.50",
    )


def test_a_run_without_these_entries_has_no_such_tables():
    results = stages_results()
    del results["relearned"], results["changes"]
    assert statement_rows(results) == relearned_rows(results) == []
    assert level_change_rows(results) == polysemantic_change_rows(results) == []


def test_a_number_shows_its_sign_and_its_interval():
    assert signed(1.5, [0.25, 2.75]) == "+1.50 [+0.25, +2.75]"
    assert signed(-1.5, [None, None]) == "-1.50"
    assert signed(None, [None, None]) == ""
