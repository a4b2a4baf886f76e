"""How classes of neurons are relearned: one table of several relearn runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.tables import first_and_last
from circuitcut.reports.words import metric_name, percent, with_interval
from circuitcut.storage.errors import UserError

Row = dict[str, Any]
_CONTROLS = {
    "none": "",
    "layer": ", control by layer",
    "frequency": ", control by layer and frequency",
}


def relearned_class_rows(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a run and holding of the cut model: fastest relearned first.

    Speed is the normalised recovery's area under the curve where it is defined, else
    the recovery ratio after the last step.

    Args:
        runs: results.json of relearn runs; those whose mask is no class are left out.
    """
    ranked = [
        (_speed(entry), _row(results, entry))
        for results in runs
        if results.get("selection")
        for entry in results["recovery"]
        if entry["condition"] == "cut"
    ]
    return [row for _, row in sorted(ranked, key=lambda pair: -pair[0])]


def _speed(entry: Mapping[str, Any]) -> float:
    last = entry["points"][-1]["ratio"]
    known = [value for value in (entry["area"], last) if value is not None]
    return float(known[0]) if known else float("-inf")


def _row(results: Mapping[str, Any], entry: Mapping[str, Any]) -> Row:
    selection, last = results["selection"], entry["points"][-1]
    metric = metric_name(results["concept_metric"])
    group = entry["condition"], entry["holding"], entry["limit"]
    before, after = next(
        pair for pair in first_and_last(results["summary"]) if _group(pair[0]) == group
    )
    uncut, _ = next(
        pair
        for pair in first_and_last(results["summary"])
        if pair[0]["condition"] == "uncut"
    )
    return {
        "neurons": " and ".join(selection["classes"]) + _CONTROLS[selection["control"]],
        "ablated": results["n_ablated"],
        "mask": {"lasting": "held", "one_shot": "written once"}.get(
            entry["holding"], entry["holding"]
        ),
        "concept examples": "all" if entry["limit"] is None else entry["limit"],
        "seeds": entry["n_seeds"],
        f"{metric}, uncut": uncut["concept"],
        "cut": before["concept"],
        f"after {after['step']:,} steps": with_interval(
            after["concept"], after.get("concept_interval")
        ),
        "recovery (cut / uncut)": _value(last, "ratio"),
        "normalised recovery": _value(last, "normalised"),
        **{
            f"steps to {percent(reached['fraction'])}": _steps(reached["step"])
            for reached in entry["reached"]["ratio"]
        },
        "area": _value(entry, "area"),
    }


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["condition"], row["holding"], row["limit"]


def _value(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry[name]
    return (
        None if value is None else with_interval(value, entry.get(f"{name}_interval"))
    )


def _steps(step: int | None) -> int | str:
    return "not reached" if step is None else step


def check_comparable(runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs of different tasks or models in one table.

    Raises:
        UserError: Naming both.
    """
    kinds = {f"task {r['task']} on {r['model']}" for r in runs if r.get("selection")}
    if len(kinds) > 1:
        found = " and ".join(sorted(kinds))
        raise UserError(
            f"relearned classes are compared on one task and model, got {found}; "
            "report them apart"
        )
