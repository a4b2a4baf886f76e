"""What a run says, in sentences made of its numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from reports.load import Run
from reports.tables import condition_name, format_cell, limit_name


def mask_finding(run: Run) -> str:
    """A train_mask run: what the cut does to the concept and to the rest."""
    results, scores = run.results, run.results["scores"]
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    text = (
        f"With {n_ablated:,} of {n_units:,} units ablated ({n_ablated / n_units:.2%}), "
        f"{_change(results, 'concept')} and {_change(results, 'retain')} on held-out data."
    )
    concept = results["concept_metric"]["name"]
    controls = [entry.get(concept) for entry in scores.get("random") or []]
    known = [value for value in controls if value is not None]
    if known:
        mean = format_cell(sum(known) / len(known))
        text += f" Random cuts of the same counts leave the concept at {mean}."
    baselines = [
        f"{method.replace('_', ' ')} {format_cell(values.get(concept))}"
        for method, values in (scores.get("attribution") or {}).items()
    ]
    if baselines:
        text += f" Attribution cuts of the same size: {', '.join(baselines)}."
    return text


def _change(results: Mapping[str, Any], side: str) -> str:
    metric = results[f"{side}_metric"]["name"]
    before, after = (
        format_cell(results["scores"][name].get(metric)) for name in ("uncut", "cut")
    )
    named = {"concept": "the concept's", "retain": "the rest's"}[side]
    return f"{named} {metric.replace('_', ' ')} goes from {before} to {after}"


def relearning_finding(run: Run) -> str:
    """A relearn run: recovery at the end, for every number of examples."""
    sentences = []
    for entry in run.results["recovery"]:
        if entry["condition"] != "cut":
            continue
        last = entry["points"][-1]
        shares = [
            f"{last[kind]:.0%} {words}"
            for kind, words in (
                ("ratio", "of the uncut model under the same fine-tuning"),
                ("normalised", "normalised"),
            )
            if last[kind] is not None
        ]
        said = " and ".join(shares) or f"an undefined share ({last['reason']})"
        plural = "" if entry["limit"] == 1 else "s"
        sentences.append(
            f"After {last['step']} steps on {limit_name(entry['limit'])} example{plural} "
            f"the concept score of the {condition_name(entry)} model is back at {said}."
        )
    return " ".join(sentences) or "No recovery: cut and uncut models were not both run."


def curve_finding(run: Run) -> str:
    """An evaluate or attribute run: the scores, or every method at the largest size."""
    results = run.results
    metric, curve = results["concept_metric"]["name"], results["curve"]
    if curve:
        largest = max(entry["n_ablated"] for entry in curve)
        listed = ", ".join(
            f"{entry['method'].replace('_', ' ')} "
            f"{format_cell(entry['scores'].get(metric))}"
            for entry in curve
            if entry["n_ablated"] == largest
        )
        return f"With {largest:,} units ablated the concept's {metric} is: {listed}."
    listed = ", ".join(
        f"{name} {format_cell(values.get(metric))}"
        for name, values in results["scores"].items()
    )
    return f"The concept's {metric}: {listed}."


FINDINGS: dict[str, Callable[[Run], str]] = {
    "train_mask": mask_finding,
    "relearn": relearning_finding,
    "evaluate": curve_finding,
    "attribute": curve_finding,
}
"""Kind of run -> what it says."""
