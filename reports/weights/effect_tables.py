"""Tables of what ablating a class of neurons changes, token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.words import format_cell, with_interval

Row = dict[str, Any]
Results = Mapping[str, Any]
MEASURES = {
    "loss": "loss",
    "entropy": "entropy",
    "rank": "rank of the true token",
    "log_scale": "log scale of the final norm",
}
"""Name of a measure in results.json -> how a reader sees it."""
SETS = {
    "class": "the class",
    "layer": "control by layer",
    "frequency": "control by layer and frequency",
}
QUADRANTS = ("gate+/post+", "gate+/post-", "gate-/post+", "gate-/post-")
SHARES = ("1 %", "5 %", "25 %", "median", "75 %", "95 %", "99 %")
"""The quantiles of results.json."""


def summary_rows(results: Results) -> list[Row]:
    """One row a set and condition: ablated minus clean, with 95 % intervals."""
    return [
        {
            "neurons": SETS[entry["set"]],
            "ablated at": entry["when"],
            "draws": entry["n_draws"] or None,
            **{
                title: with_interval(
                    entry["measures"][name]["mean"], entry["measures"][name]["interval"]
                )
                for name, title in MEASURES.items()
            },
        }
        for entry in results["summary"]
    ]


def draw_rows(results: Results) -> list[Row]:
    """One row an ablation and measure: mean, interval and quantiles over tokens."""
    return [
        {
            "neurons": SETS[effect["set"]],
            "draw": effect["draw"],
            "ablated at": effect["when"],
            "measure": MEASURES[name],
            "clean": results["clean"][name]["mean"],
            "ablated": effect["ablated"][name],
            **_spread(effect["difference"][name], "ablated minus clean"),
        }
        for effect in results["effects"]
        for name in MEASURES
    ]


def clean_rows(results: Results) -> list[Row]:
    """One row a measure of the clean model."""
    return [
        {"measure": title, **_spread(results["clean"][name], "mean")}
        for name, title in MEASURES.items()
    ]


def _spread(described: Mapping[str, Any], mean: str) -> Row:
    low, high = described["interval"]
    return {
        mean: described["mean"],
        "from": low,
        "to": high,
        "least": described["least"],
        **dict(zip(SHARES, described["quantiles"], strict=True)),
        "greatest": described["greatest"],
    }


def activity_rows(results: Results) -> list[Row]:
    """One row a set: how often its neurons are on, quadrants, and what they write."""
    return [
        {
            "neurons": SETS[entry["set"]],
            "draw": entry["draw"],
            "on": entry["on"],
            **{quadrant: entry[quadrant] for quadrant in QUADRANTS},
            "mean |activation| |w_out|": entry["written"],
        }
        for entry in results["activity"]
    ]


def layer_rows(results: Results) -> list[Row]:
    """One row a layer: frequencies in the class and outside, and correlations."""
    titles = {"on": "on", "written": "mean |activation| |w_out|"}
    return [
        {
            "layer": layer["layer"],
            "neurons of the class": layer["n_of_classes"],
            "on": layer["on"],
            "on, others": layer["on_of_others"],
            **{
                f"r({titles[name]}, cos {cosine})": r
                for key, r in layer["correlations"].items()
                for name, cosine in [key.split(":")]
            },
        }
        for layer in results["activity_by_layer"]
    ]


def changed_rows(results: Results) -> list[Row]:
    """One row a text that changes most."""
    return [
        {
            "ablated at": text["when"],
            "text": f"...{text['context']}",
            "next": text["next"],
            "clean": text["clean"],
            "ablated": text["ablated"],
            "promoted": _tokens(text["promoted"]),
            "suppressed": _tokens(text["suppressed"]),
        }
        for text in results["changed"]
    ]


def continued_rows(results: Results) -> list[Row]:
    """One row a text that changes most: how the model goes on, clean and ablated."""
    return [
        {
            "ablated at": text["when"],
            "text": f"...{text['context']}",
            "clean": text["continued"]["clean"],
            "ablated": text["continued"]["ablated"],
        }
        for text in results["changed"]
        if text.get("continued")
    ]


def lens_rows(results: Results, *, most_changed_only: bool = False) -> list[Row]:
    """One row a text and sublayer: what the stream predicts there.

    Args:
        most_changed_only: Only the first text of every condition.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    for text in results["changed"]:
        if most_changed_only and text["when"] in seen:
            continue
        seen.add(text["when"])
        rows += [_lens_row(text, level) for level in text.get("lens", [])]
    return rows


def _lens_row(text: Mapping[str, Any], level: Mapping[str, Any]) -> Row:
    clean, ablated = level["clean"], level["ablated"]
    return {
        "ablated at": text["when"],
        "next": text["next"],
        "layer": level["layer"],
        "behind": {"mlp": "MLP"}.get(level["sublayer"], level["sublayer"]),
        "clean": _prediction(clean),
        "ablated": _prediction(ablated),
        "P(next), clean": clean["next_probability"],
        "P(next), ablated": ablated["next_probability"],
        "entropy, clean": clean["entropy"],
        "entropy, ablated": ablated["entropy"],
        "promoted": _tokens(level["promoted"]),
        "suppressed": _tokens(level["suppressed"]),
    }


def _prediction(seen: Mapping[str, Any]) -> str:
    return f"{seen['top']!r} {format_cell(seen['top_probability'])}"


def reader_rows(results: Results, n: int | None = None) -> list[Row]:
    """One row a set, condition and reader that notices the ablation.

    Args:
        n: At most so many readers of each; None: all that are listed.
    """
    return [
        {
            "neurons": SETS[entry["set"]],
            "ablated at": entry["when"],
            "reader": reader["reader"],
            "effect": reader["effect"],
            "share of the logits'": _share(reader["effect"], entry["logits"]),
        }
        for entry in _noticed(results)
        for reader in (
            {"reader": "logits", "effect": entry["logits"]},
            *entry["readers"][:n],
        )
    ]


def edge_effect_rows(results: Results) -> list[Row]:
    """One row a set, condition and edge."""
    return [
        {
            "neurons": SETS[entry["set"]],
            "ablated at": entry["when"],
            "edge": edge["edge"],
            "effect": edge["effect"],
        }
        for entry in _noticed(results)
        for edge in entry["edges"]
    ]


def reading_layer_rows(results: Results) -> list[Row]:
    """One row a set, condition and layer: sums over its readers."""
    return [
        {
            "neurons": SETS[entry["set"]],
            "ablated at": entry["when"],
            "layer": layer["layer"],
            **{kind: layer[kind] for kind in ("queries", "keys", "values")},
            "MLP": layer["mlp"],
        }
        for entry in _noticed(results)
        for layer in entry["layers"]
    ]


def _noticed(results: Results) -> list[Mapping[str, Any]]:
    return (results.get("edges") or {}).get("sets", [])


def _share(effect: float, total: float) -> float | None:
    return effect / total if total else None


def attribute_rows(results: Results) -> list[Row]:
    """One row a condition and layer: attributes rates, clean and of every set."""
    attributes = results.get("attributes")
    if not attributes:
        return []
    rows = []
    for when in dict.fromkeys(entry["when"] for entry in attributes["effects"]):
        sets = [entry for entry in attributes["effects"] if entry["when"] == when]
        for place, clean in enumerate(attributes["clean"]):
            row = {
                "ablated at": when,
                "layer": clean["layer"],
                "clean": _rate(clean["rate"], clean["interval"]),
            }
            if "of_others" in clean:  # older runs have none
                row["words of another subject"] = _rate(
                    clean["of_others"], (None, None)
                )
                row["clean, minus those"] = _rate(
                    clean["above_others"], clean["above_others_interval"]
                )
            for entry in sets:
                of_layer = entry["layers"][place]
                name = SETS[entry["set"]]
                row[name] = _rate(of_layer["rate"], (None, None))
                row[f"{name}, minus clean"] = _rate(
                    of_layer["difference"], of_layer["difference_interval"]
                )
            rows.append(row)
    return rows


def _rate(value: float | None, interval: Sequence[float | None]) -> str | None:
    return None if value is None else with_interval(value, interval)


def _tokens(words: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{word['token']!r} {'+' * (word['change'] > 0)}{format_cell(word['change'])}"
        for word in words[:5]
    )
