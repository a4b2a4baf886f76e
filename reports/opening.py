"""The first paragraph of a report: what was done and what came out, in numbers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from circuitcut.reports.knowledge import knowledge_opening
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.stages.tables import stages_opening
from circuitcut.reports.tables import first_and_last
from circuitcut.reports.verdict import KEPT, LOST, share_left, verdict
from circuitcut.reports.weights.opening import (
    effects_opening,
    selection_opening,
    weight_opening,
)
from circuitcut.reports.words import (
    HOLDINGS,
    count_of,
    examples,
    format_cell,
    mean,
    mean_and_range,
    method_name,
    metric_name,
    metric_unit,
    number_word,
    percent,
    percent_with_interval,
    plural,
    ranking_name,
)

Results = Mapping[str, Any]
Opening = tuple[str, list[str]]
"""The verdict, and the sentences with its numbers."""
BACK, MOSTLY = 0.95, 0.5
"""Share of what the cut removed from which the concept is back, or mostly back."""
FAITHFUL = 0.95
"""Share of the concept's margin from which a circuit counts as faithful."""
FEW_LIMITS = 2
"""So many numbers of examples stand in the paragraph: the smallest and the largest."""


def mask_opening(run: Run) -> Opening:
    """A train_mask run: the mask, the scores before and after, the random control."""
    results = run.results
    kinds = " and ".join(results.get("units", ["units"]))
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    value = results.get("ablation")
    how = f"; ablation value: {value}" if value else ""
    seed = run.config.get("seed")
    how += "" if seed is None else f"; seed {seed}"
    if results.get("direction") == "isolate":
        n_kept = n_units - n_ablated
        done = (
            f"{count_of(n_kept, n_units)} {kinds} ({percent(n_kept / n_units, 1)}) of "
            f"{results['model']} are kept and all others ablated{how}."
        )
    else:
        done = (
            f"{count_of(n_ablated, n_units)} {kinds} "
            f"({percent(n_ablated / n_units, 1)}) of {results['model']} are "
            f"ablated{how}."
        )
    return verdict(results), [done, *_scores(results), *_random(results)]


def _scores(results: Results) -> list[str]:
    """Concept and rest, uncut and cut, on held-out data."""
    uncut, cut = (results["scores"][name] for name in ("uncut", "cut"))
    said = []
    for side in SIDES:
        metric = results[f"{side}_metric"]
        before, after = (format_cell(s.get(metric["name"])) for s in (uncut, cut))
        unit = f" ({metric_unit(metric)})" if metric_unit(metric) else ""
        said.append(f"{metric_name(metric)}{unit} is {before} uncut and {after} cut")
    return [f"On held-out data, {'; '.join(said)}."]


def _random(results: Results) -> list[str]:
    controls = results["scores"].get("random") or []
    if not controls:
        return []
    said = []
    for side, name in (("concept", "the concept"), ("retain", "the rest")):
        values = [s.get(results[f"{side}_metric"]["name"]) for s in controls]
        said.append(f"{mean_and_range(values)} for {name}")
    n = len(controls)
    cuts = "random cut" if n == 1 else "random cuts"
    verb = "gives" if n == 1 else "give on average (range)"
    return [
        f"{number_word(n)} {cuts} with the same counts at every site {verb} "
        f"{' and '.join(said)}."
    ]


def relearning_opening(run: Run) -> Opening:
    """A relearn run: recovery of the cut at the end, for few and many examples."""
    shown = first_recoveries(run.results)
    if not shown:
        return "No recovery: cut and uncut models were not both fine-tuned.", []
    said = [recovery_sentence(run.results, entry) for entry in shown]
    over = "seeds and documents" if shown[0]["n_seeds"] > 1 else "documents"
    said.append(f"Brackets: 95 % bootstrap intervals over {over}, in percent.")
    verdict_said = _recovered(run.results, shown[-1])
    if warning := run.results.get("warning"):
        verdict_said = f"Warning: {warning} {verdict_said}"
    return verdict_said, said


def first_recoveries(results: Results) -> list[Results]:
    """Of the cut's first holding, with the fewest and with the most examples."""
    cuts = [entry for entry in results["recovery"] if entry["condition"] == "cut"]
    held = [entry for entry in cuts if entry["holding"] == cuts[0]["holding"]]
    held.sort(key=lambda e: math.inf if e["limit"] is None else e["limit"])
    return held if len(held) <= FEW_LIMITS else [held[0], held[-1]]


def broke_nothing(results: Results, entry: Results) -> bool:
    """Whether the cut of a recovery left the concept as it was, by the first scores."""
    start: Any = [
        next(
            first["concept"]
            for first, _ in first_and_last(results["summary"])
            if (first["condition"], first["holding"], first["limit"]) == key
        )
        for key in (
            ("uncut", None, entry["uncut_limit"]),
            tuple(entry[name] for name in ("condition", "holding", "limit")),
        )
    ]
    share = share_left(results["concept_metric"], *start)
    return share is not None and share >= KEPT


def _recovered(results: Results, entry: Results) -> str:
    """How much of the concept is back, by what was removed or else by the ratio."""
    last = entry["points"][-1]
    if broke_nothing(results, entry):
        return (
            "The recovery is undefined: the cut had left the concept as it was, so "
            "there was nothing to relearn."
        )
    share = last["normalised"] if last["normalised"] is not None else last["ratio"]
    if share is None:
        return f"The recovery is undefined ({last['reason']})."
    trained = f"after fine-tuning on {examples(entry['limit'])}."
    if share >= BACK:
        return f"The concept comes back {trained}"
    if share >= MOSTLY:
        return f"Most of the concept comes back {trained}"
    if share > LOST:
        return f"A part of the concept comes back {trained}"
    return f"The concept does not come back {trained}"


def recovery_sentence(results: Results, entry: Results) -> str:
    """Scores of the cut and the uncut model at the end, and both recoveries."""
    last = entry["points"][-1]
    wholes = {
        "ratio": "of the uncut model's score",
        "normalised": "of what the cut removed",
    }
    shares = [
        f"{percent_with_interval(last[kind], last.get(f'{kind}_interval'))} {whole}"
        for kind, whole in wholes.items()
        if last[kind] is not None
    ]
    cut = last_entry(results, "cut", entry["holding"], entry["limit"])
    uncut = last_entry(results, "uncut", None, entry["uncut_limit"])
    (concept, concept_uncut), (rest, rest_uncut) = (
        [format_cell(entry[side]) for entry in (cut, uncut)] for side in SIDES
    )
    names = [metric_name(results[f"{side}_metric"]) for side in SIDES]
    share = (
        f"which is {' and '.join(shares)}" if shares else "the recovery is undefined"
    )
    return (
        f"After {plural(last['step'], 'step')} of fine-tuning on "
        f"{examples(entry['limit'])} ({plural(entry['n_seeds'], 'seed')}, "
        f"{HOLDINGS[entry['holding']]}), {names[0]} is {concept} (uncut model after "
        f"the same fine-tuning: {concept_uncut}), {share}; {names[1]} is {rest} (uncut "
        f"model: {rest_uncut})."
    )


def last_entry(
    results: Results, condition: str, holding: str | None, limit: int | None
) -> Results:
    """The last measured step of a condition."""
    key = condition, holding, limit
    return next(
        last
        for _, last in first_and_last(results["summary"])
        if (last["condition"], last["holding"], last["limit"]) == key
    )


def evaluation_opening(run: Run) -> Opening:
    """An evaluate run: the scores of the mask that was measured again."""
    if "cut" not in run.results["scores"]:
        return attribution_opening(run)
    return verdict(run.results), _scores(run.results)


def attribution_opening(run: Run) -> Opening:
    """An attribute run: every method at the largest size."""
    results = run.results
    metric, curve = results["concept_metric"], results["curve"]
    uncut = format_cell(results["scores"].get("uncut", {}).get(metric["name"]))
    said = [f"{metric_name(metric)} of the uncut model: {uncut}."] if uncut else []
    if curve:
        largest = max(entry["n_ablated"] for entry in curve)
        methods = dict.fromkeys(entry["method"] for entry in curve)
        scores = [
            f"{method_name(method)} {format_cell(_at(curve, method, largest, metric))}"
            for method in methods
        ]
        said += [f"With {largest:,} units ablated: {', '.join(scores)}."]
    return "Units were ranked without training a mask.", said


def _at(
    curve: list[Results], method: str, n_ablated: int, metric: Results
) -> float | None:
    """Mean score over seeds of a method at a size."""
    same = [e for e in curve if (e["method"], e["n_ablated"]) == (method, n_ablated)]
    return mean([entry["scores"].get(metric["name"]) for entry in same])


def import_opening(run: Run) -> Opening:
    """An import_mask run: what the file's mask ablates."""
    results = run.results
    n_ablated, n_units = results["n_ablated"], results["n_units"]
    return "A mask was imported; its effect was not measured.", [
        f"The mask from {results['file']} (format {results['format']}) ablates "
        f"{count_of(n_ablated, n_units)} units ({percent(n_ablated / n_units, 1)})."
    ]


def faithfulness_opening(run: Run) -> Opening:
    """A faithfulness run: the smallest faithful circuit of every ranking."""
    results = run.results
    kinds, smallest = " and ".join(results["units"]), faithful_shares(results)
    known = {name: share for name, share in smallest.items() if share is not None}
    if not known:
        headline = f"No circuit measured keeps {percent(FAITHFUL)} of the margin."
    else:
        best = min(known, key=known.__getitem__)
        headline = (
            f"The smallest faithful circuit has {percent(known[best], 1)} of "
            f"{results['n_units']:,} {kinds} (ranking: {best})."
        )
    return headline, [
        "A circuit counts as faithful if it and all larger ones of its ranking keep "
        f"at least {percent(FAITHFUL)} of the concept's margin on every seed."
    ]


def stability_opening(run: Run) -> Opening:
    """A stability run: the mean overlap beside that of random masks."""
    results, of_pairs = run.results, run.results["mean"]
    kinds, n_masks = " and ".join(results["units"]), len(results["masks"])
    if of_pairs["jaccard"] is None:
        return f"The masks have no {results['chosen']} units.", []
    in_all, chosen = results["by_number_of_masks"][n_masks], results["chosen"]
    shared, random = of_pairs["jaccard"], of_pairs["random"]["mean"]
    return (
        f"Two masks share {percent(shared)} of the {kinds} that either has {chosen} "
        f"(random masks: {percent(random, 1)}).",
        [
            f"Mean over {plural(of_pairs['n_pairs'], 'pair')} of {n_masks} masks. "
            f"{count_of(in_all['n_units'], results['n_units'])} units are {chosen} in "
            f"all masks; of random masks {format_cell(in_all['expected'])} would be."
        ],
    )


def faithful_shares(results: Results) -> dict[str, float | None]:
    """Ranking -> smallest share of the units that keeps nearly all of the margin."""
    smallest: dict[str, float | None] = {}
    for name in dict.fromkeys(map(ranking_name, results["curve"])):
        rows = [entry for entry in results["curve"] if ranking_name(entry) == name]
        shares = sorted({e["fraction"] for e in rows if e["fraction"] < 1})
        smallest[name] = next((s for s in shares if _all_faithful(rows, s)), None)
    return smallest


def _all_faithful(rows: list[Results], share: float) -> bool:
    """At this share and every larger one, on every seed."""
    values = [row["faithfulness"] for row in rows if row["fraction"] >= share]
    return all(value is not None and value >= FAITHFUL for value in values)


OPENINGS: dict[str, Callable[[Run], Opening]] = {
    "train_mask": mask_opening,
    "relearn": relearning_opening,
    "evaluate": evaluation_opening,
    "attribute": attribution_opening,
    "import_mask": import_opening,
    "select_mask": selection_opening,
    "knowledge": knowledge_opening,
    "faithfulness": faithfulness_opening,
    "stability": stability_opening,
    "weight_classes": weight_opening,
    "class_effects": effects_opening,
    "relearn_stages": stages_opening,
}
"""Kind of run -> its first sentences."""
