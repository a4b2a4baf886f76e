"""Small tables of results, as text for the terminal and as cells for HTML."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Interval = Sequence[float | None]


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


def format_cell(value: Any) -> str:
    """A value in few characters: three significant decimals, thousands grouped."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return ""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def with_interval(value: float | None, interval: Interval | None) -> str:
    """`0.123 [0.100, 0.150]`, without brackets where no interval is known."""
    text = format_cell(value)
    if value is None or interval is None or None in interval:
        return text
    low, high = map(format_cell, interval)
    return f"{text} [{low}, {high}]"


def score_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a model of a train_mask run: concept and retain scores with intervals."""
    intervals = results.get("intervals", {})
    rows = []
    for name, scores in named_scores(results["scores"]):
        known = dict(named_scores(intervals)).get(name, {})
        rows.append({"model": name, **_both_metrics(results, scores, known)})
    return rows


def site_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a layer: units ablated of every kind, and how many there are."""
    rows: dict[int, Row] = {}
    for site in sorted(results["per_site"], key=lambda site: site["layer"]):
        layer, kind = site["layer"], site["kind"]
        name = site.get("level", "embeddings" if layer < 0 else str(layer))
        row = rows.setdefault(layer, {"layer": name})
        for key, column in (
            ("n_ablated", f"{kind} ablated"),
            ("n_units", f"of {kind}"),
        ):
            row[column] = row.get(column, 0) + site[key]
    return list(rows.values())


def curve_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a method and number of ablated units."""
    return [
        {
            "method": entry["method"].replace("_", " "),
            "ablated": entry["n_ablated"],
            **_both_metrics(results, entry["scores"], entry.get("intervals", {})),
        }
        for entry in results.get("curve", [])
    ]


def faithfulness_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a ranking and share kept: with the circuit and without, over seeds."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for entry in results["curve"]:
        key = ranking_name(entry), entry["fraction"]
        groups.setdefault(key, []).append(entry)
    name = results["concept_metric"]["name"]
    return [
        {
            "ranking": method,
            "kept": f"{100 * fraction:g} %",
            "units": same[0]["n_kept"],
            "connected": round(mean([entry["n_connected"] for entry in same]) or 0),
            "faithfulness": mean([entry["faithfulness"] for entry in same]),
            name: mean([entry["scores"].get(name) for entry in same]),
            "kl_concept": mean([entry["scores"].get("kl_concept") for entry in same]),
            "f without it": mean([e["without"]["faithfulness"] for e in same]),
            f"{name} without it": mean(
                [entry["without"]["scores"].get(name) for entry in same]
            ),
        }
        for (method, fraction), same in groups.items()
    ]


def area_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a ranking: areas under its faithfulness, over seeds.

    The MIB benchmark takes CPR from signed scores and CMD from absolute ones.
    """
    rows = []
    for name in dict.fromkeys(map(ranking_name, results["areas"])):
        own = [entry for entry in results["areas"] if ranking_name(entry) == name]
        rows.append(
            {
                "ranking": name,
                "CPR (more is better)": _mean_and_range([e["cpr"] for e in own]),
                "CMD (0 is best)": _mean_and_range([e["cmd"] for e in own]),
                "seeds": len({entry["seed"] for entry in own}),
            }
        )
    return rows


def ranking_name(entry: Mapping[str, Any]) -> str:
    """`eap`, or `eap, absolute` where its scores' signs were left out."""
    name = entry["method"].replace("_", " ")
    return f"{name}, absolute" if entry["order"] == "absolute" else name


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mean_and_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    ends = [min(known), max(known)] if len(known) > 1 else None
    return with_interval(mean(known), ends) or "undefined"


def published_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a class of heads of the published circuit: which of them the mask has."""
    found = results.get("published_circuit") or {"classes": []}
    return [
        {
            "class of heads": entry["class"],
            "published": ", ".join(entry["heads"]),
            "in the mask": ", ".join(entry["found"]) or "none",
        }
        for entry in found["classes"]
    ]


def relearning_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a condition and number of examples: first and last scores of the run."""
    rows = []
    for first, last in _ends(results["summary"]):
        rows.append(
            {
                "condition": condition_name(last),
                "examples": limit_name(last["limit"]),
                "steps": last["step"],
                "concept at 0": with_interval(
                    first["concept"], first.get("concept_interval")
                ),
                "concept after": with_interval(
                    last["concept"], last.get("concept_interval")
                ),
                "retain at 0": with_interval(
                    first["retain"], first.get("retain_interval")
                ),
                "retain after": with_interval(
                    last["retain"], last.get("retain_interval")
                ),
            }
        )
    return rows


def recovery_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a condition and number of examples: recovery at the end and its speed."""
    rows = []
    for entry in results["recovery"]:
        last = entry["points"][-1]
        rows.append(
            {
                "condition": condition_name(entry),
                "examples": limit_name(entry["limit"]),
                "ratio": _or_undefined(last, "ratio"),
                "normalised": _or_undefined(last, "normalised"),
                **{
                    f"steps to {reached['fraction']:.0%}": _reached(reached)
                    for reached in entry["reached"]["ratio"]
                },
                "area": _or_undefined(entry, "area"),
            }
        )
    return rows


def probe_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a condition and level: how well a linear probe finds the concept."""
    return [
        {
            "condition": entry["condition"],
            "seed": entry.get("seed"),
            "layer": "embeddings" if level["layer"] < 0 else level["layer"],
            "area under ROC": level["auc"],
            "with shuffled labels": level["control_auc"],
            "F1": level["f1"],
            "balanced accuracy": level["accuracy"],
        }
        for entry in results.get("probe") or []
        for level in entry["levels"]
    ]


def location_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a relearned model: overlaps of its top units with those before."""
    rows = []
    for entry in results.get("after") or []:
        found = entry.get("redistribution")
        if found is None:
            continue
        row = {
            "condition": condition_name(entry),
            "examples": limit_name(entry["limit"]),
            "seed": entry["seed"],
            "units compared": found["n_compared"],
            "overlap before and after": found["overlap"],
            "overlap with the mask": found["overlap_with_mask"],
        }
        if "fresh_n" in found:
            row["fresh mask ablates"] = found["fresh_n"]
            row["its overlap with the mask"] = found["fresh_overlap"]
        rows.append(row)
    return rows


def word_rows(results: Mapping[str, Any]) -> list[Row]:
    """One row a top unit before the cut or after relearning, with its top words.

    Of the cut that was relearned from most examples, and of its first seed.
    """
    found = [entry for entry in results.get("after") or [] if entry.get("words")]
    if not found:
        return []
    most = max(
        found, key=lambda entry: math.inf if entry["limit"] is None else entry["limit"]
    )
    moments = {"before": "before the cut", "after": "after relearning"}
    tops: dict[tuple[str, int], list[Any]] = {}
    for unit in most["words"]:
        tops.setdefault((unit["site"], unit["unit"]), []).append(unit)
    return [
        {
            "unit": f"{_layer(unit['layer'])}, {unit['kind']} {unit['unit']}",
            "at the top": " and ".join(moments[entry["top"]] for entry in same),
            "ablated": "yes" if unit["ablated"] else "no",
            **{
                f"words {words}": _words(unit["words"][moment])
                for moment, words in moments.items()
            },
        }
        for same in tops.values()
        for unit in same[:1]
    ]


def _layer(layer: int) -> str:
    return "embeddings" if layer < 0 else f"layer {layer}"


def _words(entries: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{e['word']} ({format_cell(e['activation'])})" for e in entries]
    return ", ".join(shown) or "none: constant"


def condition_name(entry: Mapping[str, Any]) -> str:
    """`cut, lasting`; the uncut model has no holding."""
    parts = [entry["condition"], entry.get("holding")]
    return ", ".join(part.replace("_", " ") for part in parts if part)


def limit_name(limit: int | None) -> str:
    """Number of training examples in words."""
    return "all" if limit is None else f"{limit:,}"


def _or_undefined(entry: Mapping[str, Any], key: str) -> str:
    shown = with_interval(entry[key], entry.get(f"{key}_interval"))
    return shown or "undefined"


def _reached(reached: Mapping[str, Any]) -> str:
    return "never" if reached["step"] is None else format_cell(reached["step"])


def named_scores(tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Scores by the name of their model, random and attribution cuts one by one."""
    named = []
    for name, value in tree.items():
        label = name.replace("_", " ")
        if name == "random":
            several = value if isinstance(value, list) else [value]
            named += [(f"random cut {i}", entry) for i, entry in enumerate(several, 1)]
        elif name == "attribution":
            named += [
                (f"attribution: {key.replace('_', ' ')}", entry)
                for key, entry in value.items()
            ]
        else:
            named.append((label, value))
    return named


def _both_metrics(
    results: Mapping[str, Any], scores: Mapping[str, Any], intervals: Mapping[str, Any]
) -> Row:
    row = {}
    for side in ("concept", "retain"):
        name = results[f"{side}_metric"]["name"]
        row[f"{side}: {name}"] = with_interval(scores.get(name), intervals.get(name))
    for name in ("kl_concept", "kl_retain"):
        if name in scores:
            row[name] = with_interval(scores[name], intervals.get(name))
    return row


def _ends(summary: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for entry in summary:
        key = entry["condition"], entry["holding"], entry["limit"]
        groups.setdefault(key, []).append(entry)
    ordered = [
        sorted(group, key=lambda entry: entry["step"]) for group in groups.values()
    ]
    return [(group[0], group[-1]) for group in ordered]
