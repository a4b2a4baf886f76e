"""Tables and sentences of a relearning study in stages: base, pruned, each stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.load import Run
from circuitcut.reports.stages.arms import arms_of, names, stage_name
from circuitcut.reports.tables import Row
from circuitcut.reports.words import (
    condition_name,
    mean,
    metric_name,
    percent,
    plural,
    with_interval,
)

Results = Mapping[str, Any]


def base_score(results: Results, side: str) -> float | None:
    """Mean over seeds of a main score of the base model, held-out."""
    name = results[f"{side}_metric"]["name"]
    return mean([entry["scores"].get(name) for entry in results["seeds"]])


def stage_rows(results: Results, *, intervals: bool = False) -> list[Row]:
    """One row an arm and side: the main score at the base model and at every stage."""
    rows = []
    for arm in arms_of(results["summary"]):
        entries = [row for row in results["summary"] if names(row) == arm]
        for side in ("concept", "retain"):
            row: Row = {
                "share": percent(arm[0], 1)
                if entries[0]["condition"] != "uncut"
                else "",
                "model": condition_name(entries[0]),
                "score": metric_name(results[f"{side}_metric"]),
                "base": base_score(results, side),
            }
            for entry in entries:
                value = entry[side]
                if intervals:
                    value = with_interval(value, entry.get(f"{side}_interval"))
                row[stage_name(entry["stage"])] = value
            rows.append(row)
    return rows


def scan_rows(results: Results) -> list[Row]:
    """One row a share and way of pruning: scores without retraining, over seeds."""
    keys = dict.fromkeys(
        (row["share"], row["condition"], row["holding"]) for row in results["scan"]
    )
    rows = []
    for share, condition, holding in keys:
        same = [
            row
            for row in results["scan"]
            if (row["share"], row["condition"], row["holding"])
            == (share, condition, holding)
        ]
        named = {"condition": condition, "holding": holding}
        row: Row = {"share": percent(share, 1), "model": condition_name(named)}
        row["units pruned"] = same[0]["n_pruned"]
        for side in ("concept", "retain"):
            metric = results[f"{side}_metric"]
            scores = [entry["heldout"].get(metric["name"]) for entry in same]
            row[metric_name(metric)] = mean(scores)
        rows.append(row)
    return rows


def level_rows(results: Results) -> list[Row]:
    """One row a level and arm: its share of the salient units at every stage."""
    measured = [row for row in results["stages"] if row["condition"] != "base"]
    base = {
        row["level"]: row["salient_share"]
        for row in results["stages"]
        if row["condition"] == "base"
    }
    rows: list[Row] = []
    for arm in dict.fromkeys(
        (r["share"], r["condition"], r["holding"]) for r in measured
    ):
        for level in base:
            entries = [
                row
                for row in measured
                if (row["share"], row["condition"], row["holding"]) == arm
                and row["level"] == level
            ]
            rows.append(
                {
                    "share": percent(arm[0], 1) if arm[0] else "",
                    "model": condition_name(entries[0]),
                    "level": level,
                    "base": base[level],
                    **{stage_name(e["stage"]): e["salient_share"] for e in entries},
                }
            )
    return rows


def concept_rows(several: Sequence[Results]) -> list[Row]:
    """One row a study and cut: concepts, models and corpora side by side."""
    rows = []
    for results in several:
        metric = results["concept_metric"]
        cuts = [row for row in results["summary"] if row["condition"] == "cut"]
        for arm in arms_of(cuts):
            entries = [row for row in cuts if names(row) == arm]
            first, last = entries[0], entries[-1]
            base = base_score(results, "concept")
            row: Row = {
                "concept": metric.get("label") or metric["name"],
                "model": results["model"],
                "pruned": percent(arm[0], 1),
                "way": condition_name(first),
                "seeds": len(results["seeds"]),
                "base": base,
                "after pruning": first["concept"],
                "after stage 1": next(
                    (row["concept"] for row in entries if row["stage"] == 1), None
                ),
                "after the last stage": with_interval(
                    last["concept"], last.get("concept_interval")
                ),
                "others, base": base_score(results, "retain"),
                "others after pruning": first["retain"],
            }
            lowest, highest = _salient_ends(results, None), _salient_ends(results, arm)
            for name, before, after in zip(
                ("level 0", "last level"), lowest, highest, strict=True
            ):
                row[f"salient at {name}"] = f"{_share(before)} → {_share(after)}"
            rows.append(row)
    return rows


def _salient_ends(
    results: Results, arm: tuple[Any, ...] | None
) -> tuple[float | None, float | None]:
    """Shares of the salient units at level 0 and at the last level.

    Args:
        arm: After the last stage of this arm; None: of the base model.
    """
    rows = [row for row in results["stages"] if row["condition"] == "base"]
    if arm is not None:
        rows = [row for row in results["stages"] if names(row) == arm]
        rows = [r for r in rows if r["stage"] == max(row["stage"] for row in rows)]
    by_level = sorted(rows, key=lambda row: row["level"])
    return by_level[0]["salient_share"], by_level[-1]["salient_share"]


def _share(value: float | None) -> str:
    return "undefined" if value is None else percent(value, 1)


def stages_opening(run: Run) -> tuple[str, list[str]]:
    """What was pruned, what was left, and what came back."""
    results = run.results
    name = metric_name(results["concept_metric"])
    metric = name[:1].upper() + name[1:]
    choice = results["choice"]
    share = results["retrained"][0] if results["retrained"] else None
    cuts = [row for row in results["summary"] if row["condition"] == "cut"]
    sentences = []
    if cuts:
        first, last = cuts[0], _last_of(cuts, cuts[0])
        base = base_score(results, "concept")
        sentences.append(
            f"{metric}: {_score(base)} of the base model, {_score(first['concept'])} "
            f"right after pruning {percent(first['share'], 1)} of the hidden units, "
            f"{_score(last['concept'])} after {plural(last['stage'], 'stage')} of "
            f"retraining ({condition_name(last)})."
        )
    if choice:
        sentences.append(f"The share was chosen as {choice['reason']}.")
    verdict = (
        f"Relearning in stages: {plural(len(results['seeds']), 'seed')}, "
        f"{percent(share, 1) if share else 'nothing'} of "
        f"{results['n_units']:,} hidden units pruned and retrained."
    )
    if results["warning"]:
        verdict = f"Warning: {results['warning']} {verdict}"
    return verdict, sentences


def _last_of(rows: Sequence[Results], first: Results) -> Results:
    return [row for row in rows if names(row) == names(first)][-1]


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
