"""What a run says: sentences made of its numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.tables import (
    condition_name,
    format_cell,
    limit_name,
    mean,
    ranking_name,
)

FAITHFUL = 0.95
"""Share of the concept's margin from which a circuit counts as faithful."""


def mask_finding(run: Run) -> list[str]:
    """A train_mask run: what the cut does to the concept and to the rest."""
    results, scores = run.results, run.results["scores"]
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    said = [
        f"With {n_ablated:,} of {n_units:,} units ablated ({n_ablated / n_units:.2%}) "
        f"the concept {_change(results, 'concept')}, the rest "
        f"{_change(results, 'retain')}, on held-out data."
    ]
    concept, retain = (results[f"{side}_metric"]["name"] for side in SIDES)
    controls = scores.get("random") or []
    left = [mean([entry.get(name) for entry in controls]) for name in (concept, retain)]
    if left[0] is not None:
        said += [
            f"Random cuts of the same counts leave the concept at "
            f"{format_cell(left[0])} and the rest at {format_cell(left[1])}."
        ]
    baselines = [
        f"{method.replace('_', ' ')} {format_cell(values.get(concept))} and "
        f"{format_cell(values.get(retain))}"
        for method, values in (scores.get("attribution") or {}).items()
    ]
    if baselines:
        said += [
            "Attribution cuts of the same size leave the concept and the rest at: "
            f"{'; '.join(baselines)}."
        ]
    return said + _published(results)


def _published(results: Mapping[str, Any]) -> list[str]:
    """Agreement with the circuit of Wang et al. (2022), where it was looked at."""
    found = results.get("published_circuit")
    if not found:
        return []
    return [
        f"{found['n_shared']} of its {found['n_heads']} heads are among the "
        f"{found['n_published']} of the published circuit (Wang et al. 2022); as many "
        f"random heads would share {found['expected']:.1f}."
    ]


def _change(results: Mapping[str, Any], side: str) -> str:
    metric = results[f"{side}_metric"]["name"]
    before, after = (
        format_cell(results["scores"][name].get(metric)) for name in ("uncut", "cut")
    )
    return f"({metric.replace('_', ' ')}) goes from {before} to {after}"


def relearning_finding(run: Run) -> list[str]:
    """A relearn run: recovery at the end, for every number of examples; controls."""
    said = []
    for entry in run.results["recovery"]:
        if entry["condition"] in CONTROLS:
            said.append(_control(run.results, entry))
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
        recovered = ", ".join(shares) or f"an undefined share ({last['reason']})"
        plural = "" if entry["limit"] == 1 else "s"
        rest, uncut = (
            _last_retain(run.results, name, holding, entry["limit"])
            for name, holding in (("cut", entry["holding"]), ("uncut", None))
        )
        said.append(
            f"{limit_name(entry['limit'])} example{plural}, {last['step']} steps, "
            f"{condition_name(entry)}: the concept is back at {recovered}; the rest is "
            f"at {rest}, in the uncut model at {uncut}."
        )
    if note := run.results.get("words_note"):
        said.append(note)
    return said or ["No recovery: cut and uncut models were not both run."]


CONTROLS = {
    "retain_only": "Fine-tuned without any example of the concept, the cut model "
    "({holding}) goes",
    "never_learned": "{limit} example{plural}: a model that never learned the concept "
    "goes",
}


def _control(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Concept score of a control at both ends of the run."""
    limit, holding = entry["limit"], (entry["holding"] or "").replace("_", " ")
    opening = CONTROLS[entry["condition"]].format(
        limit=limit_name(limit).capitalize(),
        plural="" if limit == 1 else "s",
        holding=holding,
    )
    scores = [
        e["concept"]
        for e in sorted(results["summary"], key=lambda e: e["step"])
        if all(e[key] == entry[key] for key in ("condition", "holding", "limit"))
    ]
    first, last = format_cell(scores[0]), format_cell(scores[-1])
    metric = results["concept_metric"]["name"].replace("_", " ")
    return f"{opening} from {first} to {last} ({metric})."


def _last_retain(
    results: Mapping[str, Any], name: str, holding: str | None, limit: int | None
) -> str:
    """Retain score at the end of a condition."""
    key = name, holding, limit
    entries = [
        entry
        for entry in results["summary"]
        if (entry["condition"], entry["holding"], entry["limit"]) == key
    ]
    return format_cell(max(entries, key=lambda entry: entry["step"])["retain"])


def curve_finding(run: Run) -> list[str]:
    """An evaluate or attribute run: the scores, or every method at the largest size."""
    results = run.results
    metric, curve = results["concept_metric"]["name"], results["curve"]
    published = _published(results)
    if curve:
        largest = max(entry["n_ablated"] for entry in curve)
        listed = ", ".join(
            f"{entry['method'].replace('_', ' ')} "
            f"{format_cell(entry['scores'].get(metric))}"
            for entry in curve
            if entry["n_ablated"] == largest
        )
        said = f"With {largest:,} units ablated, concept ({metric}): {listed}."
        return [said, *published]
    listed = ", ".join(
        f"{name} {format_cell(values.get(metric))}"
        for name, values in results["scores"].items()
    )
    return [f"Concept ({metric}): {listed}.", *published]


def import_finding(run: Run) -> list[str]:
    """An import_mask run: what the file's mask cuts."""
    results = run.results
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    return [
        f"The mask from {results['file']} ({results['format'].replace('_', ' ')}) "
        f"ablates {n_ablated:,} of {n_units:,} units ({n_ablated / n_units:.2%})."
    ]


def faithfulness_finding(run: Run) -> list[str]:
    """The smallest circuit of each ranking that keeps nearly all of the concept."""
    results = run.results
    said = []
    for name in dict.fromkeys(map(ranking_name, results["curve"])):
        rows = [entry for entry in results["curve"] if ranking_name(entry) == name]
        shares = sorted({e["fraction"] for e in rows if e["fraction"] < 1})
        small = next((s for s in shares if _all_faithful(rows, s)), None)
        if small is None:
            said.append(f"{name}: no circuit measured keeps {FAITHFUL:.0%}.")
        else:
            said.append(
                f"{name}: {small:.1%} of {results['n_units']:,} "
                f"{' and '.join(results['units'])} keep at least {FAITHFUL:.0%} of the "
                "concept's margin."
            )
    return said


def _all_faithful(rows: Sequence[Mapping[str, Any]], share: float) -> bool:
    """At this share and every larger one, on every seed."""
    found = [row["faithfulness"] for row in rows if row["fraction"] >= share]
    return all(value is not None and value >= FAITHFUL for value in found)


FINDINGS: dict[str, Callable[[Run], list[str]]] = {
    "train_mask": mask_finding,
    "relearn": relearning_finding,
    "evaluate": curve_finding,
    "attribute": curve_finding,
    "import_mask": import_finding,
    "faithfulness": faithfulness_finding,
}
"""Kind of run -> what it says."""
