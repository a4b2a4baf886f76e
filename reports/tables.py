"""Small tables of results, as text for the terminal and as cells for HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.words import (
    FURTHER,
    METRICS,
    OF_A_GUESS,
    condition_name,
    format_cell,
    limit_name,
    mean,
    mean_and_range,
    method_name,
    metric_name,
    percent,
    ranking_name,
    score_name,
    with_interval,
)

Row = dict[str, Any]
KL = ("kl_concept", "kl_retain")
"""Mean KL(uncut ‖ cut) in nats per position, in the scores of a cut model."""
RATIO, NORMALISED = "recovery: cut / uncut", "recovery: regained / removed"
AREA = "mean regained / removed"
RECOVERY_NOTE = (
    "Cut / uncut: score of the cut model divided by that of the equally fine-tuned "
    "uncut model. Regained / removed: score regained since the cut, divided by the "
    "distance from the fresh cut to that uncut model; its mean is over the steps of "
    "the run (area under the curve). 1 is full recovery. Undefined: the cut broke "
    "nothing, or the denominator is too small."
)
"""What the columns of the recovery table are."""


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text: names left, numbers right, an empty cell for None.

    Args:
        rows: One mapping a line; a missing key is an empty cell.
        columns: Keys in order, which are also the headings.
    """
    cells = [[format_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [
        all(isinstance(row.get(column), int | float | None) for row in rows)
        for column in columns
    ]
    widths = [
        max([len(column), *(len(line[k]) for line in cells)])
        for k, column in enumerate(columns)
    ]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(columns), rule, *map(line, cells)])


def score_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a model of a run: its scores with intervals; the last row is chance."""
    intervals = dict(named_scores(results.get("intervals", {})))
    rows = [
        {"model": name} | _main_scores(results, scores, intervals.get(name, {}))
        for name, scores in named_scores(results["scores"])
    ]
    return [*rows, *_chance_row(results)]


def all_score_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a score, one column a model: everything that was measured."""
    models = named_scores(results["scores"])
    names = dict.fromkeys(name for _, scores in models for name in scores)
    return [
        {"score": score_name(results, name)}
        | {model: scores.get(name) for model, scores in models}
        for name in names
    ]


def _chance_row(results: Mapping[str, Any]) -> list[Row]:
    """What a guess scores, where a main score is not 0 at chance."""
    metrics = [results[f"{side}_metric"] for side in ("concept", "retain")]
    guesses = {m["name"]: m["chance"] for m in metrics if m.get("chance")}
    if not guesses:
        return []
    scores = results["scores"].get("uncut", {})
    guesses |= {key: value for key, value in OF_A_GUESS.items() if key in scores}
    return [{"model": "chance (a guess)"} | _main_scores(results, guesses, {})]


def site_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a layer: units ablated of every kind, and how many there are."""
    rows: dict[int, Row] = {}
    for site in sorted(results["per_site"], key=lambda site: site["layer"]):
        layer, kind = site["layer"], site["kind"]
        name = site.get("level", "embeddings" if layer < 0 else str(layer))
        row = rows.setdefault(layer, {"layer": name})
        for key, column in (
            ("n_ablated", f"{kind} ablated"),
            ("n_units", f"{kind} in total"),
        ):
            row[column] = row.get(column, 0) + site[key]
    return list(rows.values())


def curve_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a method and number of ablated units."""
    return [
        {
            "method": method_name(entry["method"]),
            "units ablated": entry["n_ablated"],
            **_main_scores(results, entry["scores"], entry.get("intervals", {})),
        }
        for entry in results.get("curve", [])
    ]


def faithfulness_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a ranking and share kept: mean over seeds.

    The complement is the model with the circuit ablated and everything else kept.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for entry in results["curve"]:
        key = ranking_name(entry), entry["fraction"]
        groups.setdefault(key, []).append(entry)
    metric = results["concept_metric"]["name"]
    return [
        {
            "ranking": ranking,
            "kept": f"{100 * fraction:g} %",
            "units kept": round(mean([e["n_kept"] for e in same]) or 0),
            "units on a path": round(mean([e["n_connected"] for e in same]) or 0),
            "faithfulness": mean([entry["faithfulness"] for entry in same]),
            "concept score": mean([entry["scores"].get(metric) for entry in same]),
            **_further_means(same),
            "KL (nats)": mean([entry["scores"].get("kl_concept") for entry in same]),
            "complement: faithfulness": mean(
                [complement.get("faithfulness") for complement in without]
            ),
            "complement: concept score": mean(
                [complement.get("scores", {}).get(metric) for complement in without]
            ),
        }
        for (ranking, fraction), same in groups.items()
        for without in [[entry["without"] or {} for entry in same]]
    ]


def _further_means(entries: Sequence[Mapping[str, Any]]) -> Row:
    """Means of margin, top-1 and the like, where the entries have them."""
    means = {
        METRICS[key]: mean([entry["scores"].get(key) for entry in entries])
        for key in FURTHER
    }
    return {name: value for name, value in means.items() if value is not None}


def area_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a ranking: areas under its faithfulness, mean and range over seeds.

    The MIB benchmark takes CPR from signed scores and CMD from absolute ones.
    """
    rows, metric = [], metric_name(results["concept_metric"])
    for ranking in dict.fromkeys(map(ranking_name, results["areas"])):
        areas = [e for e in results["areas"] if ranking_name(e) == ranking]
        rows.append(
            {
                "ranking": ranking,
                "CPR (higher is better)": mean_and_range([e["cpr"] for e in areas]),
                "CMD (0 is best)": mean_and_range([e["cmd"] for e in areas]),
                f"area under {metric}": mean_and_range(
                    [e.get("score_area") for e in areas]
                ),
                "seeds": len({entry["seed"] for entry in areas}),
            }
        )
    return rows


def stability_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a pair of masks, one for the mean over pairs, and one a site."""
    masks, mean_of_pairs = results["masks"], results["mean"]
    rows = [
        _overlap_row(
            f"{_mask_name(masks[pair['first']])} and "
            f"{_mask_name(masks[pair['second']])}",
            [masks[pair[which]]["n_chosen"] for which in ("first", "second")],
            pair,
            pair["n_shared"],
        )
        for pair in results["pairs"]
    ]
    n_chosen = [mask["n_chosen"] for mask in masks]
    rows.append(_overlap_row("mean over pairs", n_chosen, mean_of_pairs))
    rows += [
        _overlap_row(f"at {site['site']}", site["n_chosen"], site)
        for site in results["per_site"]
        if site["jaccard"] is not None
    ]
    return rows


def _overlap_row(
    name: str,
    n_chosen: Sequence[int],
    entry: Mapping[str, Any],
    n_shared: int | None = None,
) -> Row:
    few, most = min(n_chosen), max(n_chosen)
    per_site = entry.get("random_per_site")
    return {
        "masks": name,
        "units": str(few) if few == most else f"{few} to {most}",
        "shared": n_shared,
        "Jaccard": entry["jaccard"],
        "random": _with_chance(entry["random"]),
        "random, same number a site": _with_chance(per_site),
    }


def _with_chance(random: Mapping[str, Any] | None) -> str | None:
    if random is None:
        return None
    return with_interval(random["mean"], random["interval"])


def _mask_name(mask: Mapping[str, Any]) -> str:
    """The seed, or the folder of a mask without one."""
    seed, folder = mask["seed"], mask["mask"].rstrip("/").split("/")[-1]
    return folder if seed is None else f"seed {seed}"


def published_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a class of heads of the published circuit: which of them the mask has."""
    overlap = results.get("published_circuit") or {"classes": []}
    return [
        {
            "class of heads": entry["class"],
            "published": ", ".join(entry["heads"]),
            "in the mask": ", ".join(entry["found"]) or "none",
        }
        for entry in overlap["classes"]
    ]


def relearning_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a condition and number of examples: first and last scores of the run."""
    rows = []
    for first, last in first_and_last(results["summary"]):
        row: Row = {
            "condition": condition_name(last),
            "concept examples": limit_name(last["limit"]),
            "steps": last["step"],
        }
        for side in ("concept", "retain"):
            name = metric_name(results[f"{side}_metric"])
            for moment, entry in (("step 0", first), ("last step", last)):
                interval = entry.get(f"{side}_interval")
                row[f"{name}, {moment}"] = with_interval(entry[side], interval)
        rows.append(row)
    return rows


def further_relearning_rows(results: Mapping[str, Any]) -> list[Row]:
    """Logit difference, top-1 and the like before and after: means over seeds."""
    rows = []
    for first, last in first_and_last(results["summary"]):
        row: Row = {
            "condition": condition_name(last),
            "concept examples": limit_name(last["limit"]),
        }
        for key in FURTHER:
            for moment, entry in (("step 0", first), ("last step", last)):
                value = _mean_of_seeds(results["rows"], entry, key)
                if value is not None:
                    row[f"{METRICS[key]}, {moment}"] = value
        rows.append(row)
    return rows if any(len(row) > 2 for row in rows) else []


def _mean_of_seeds(
    rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], score: str
) -> float | None:
    """Mean over seeds of a score, at the condition and step of an entry."""
    keys = ("condition", "holding", "limit", "step")
    same = [row for row in rows if all(row[key] == entry[key] for key in keys)]
    return mean([row["scores"].get(score) for row in same])


def recovery_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a condition and number of examples: recovery at the end and its speed."""
    rows = []
    for entry in results["recovery"]:
        last = entry["points"][-1]
        rows.append(
            {
                "condition": condition_name(entry),
                "concept examples": limit_name(entry["limit"]),
                "seeds": entry["n_seeds"],
                RATIO: _or_undefined(last, "ratio"),
                NORMALISED: _or_undefined(last, "normalised"),
                **{
                    f"steps to {percent(reached['fraction'])}": _steps(
                        reached["step"], last["ratio"]
                    )
                    for reached in entry["reached"]["ratio"]
                },
                AREA: _or_undefined(entry, "area"),
            }
        )
    return rows


def named_scores(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Scores by the name of their model, random and attribution cuts one by one."""
    named: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in tree.items():
        if key == "random":
            several = value if isinstance(value, list) else [value]
            named += [(f"random cut {i}", entry) for i, entry in enumerate(several, 1)]
        elif key == "attribution":
            named += [
                (f"attribution cut: {method_name(method)}", entry)
                for method, entry in value.items()
            ]
        else:
            named.append((MODELS.get(key, key.replace("_", " ")), value))
    return named


MODELS = {
    "uncut": "uncut",
    "cut": "learned cut",
    "cut_before_rounding": "learned gates before rounding",
}
"""Key of `scores` in results.json -> name of the model."""


def first_and_last(summary: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    """The first and the last measured step of every condition and limit."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for entry in summary:
        key = entry["condition"], entry["holding"], entry["limit"]
        groups.setdefault(key, []).append(entry)
    ordered = [
        sorted(group, key=lambda entry: entry["step"]) for group in groups.values()
    ]
    return [(group[0], group[-1]) for group in ordered]


def _main_scores(
    results: Mapping[str, Any], scores: Mapping[str, Any], intervals: Mapping[str, Any]
) -> Row:
    """Concept, what else says how well it is known, rest, and KL to the uncut model."""
    concept, retain = (results[f"{side}_metric"] for side in ("concept", "retain"))
    columns = {concept["name"]: metric_name(concept)}
    columns |= {key: METRICS[key] for key in FURTHER if key in scores}
    columns[retain["name"]] = metric_name(retain)
    columns |= {key: METRICS[key] for key in KL if key in scores}
    return {
        column: with_interval(scores.get(key), intervals.get(key))
        for key, column in columns.items()
    }


def _or_undefined(entry: Mapping[str, Any], key: str) -> str:
    return with_interval(entry[key], entry.get(f"{key}_interval")) or "undefined"


def _steps(step: int | None, ratio: float | None) -> str:
    if step is None:
        return "undefined" if ratio is None else "never"
    return format_cell(step)
