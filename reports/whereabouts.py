"""Where the concept is after the cut and after relearning: tables and figures."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import (
    BLACK,
    BLUE,
    CONDITION_LOOKS,
    GREEN,
    GREY,
    VERMILLION,
    WIDTH,
    layer_ticks,
    legend_beside,
    line,
    look,
    panels,
    seed_points,
)
from circuitcut.reports.load import Run
from circuitcut.reports.tables import Row
from circuitcut.reports.words import (
    CONDITIONS,
    condition_name,
    format_cell,
    limit_name,
    long_layer_name,
)

Results = Mapping[str, Any]
MOMENTS = {"before": "before the cut", "after": "after relearning"}
REDISTRIBUTION_SERIES = {
    "top_before": ("top units before the cut", BLUE),
    "mask": ("units that the mask ablates", BLACK),
    "top_after": ("top units after relearning", VERMILLION),
    "fresh_mask": ("new mask after relearning", GREEN),
}


def probe_rows(results: Results) -> list[Row]:
    """One row a model and level: how well a linear probe decodes the concept."""
    return [
        {
            "model": _probed(entry),
            "seed": entry.get("seed"),
            "level": long_layer_name(level["layer"]),
            "AUC": level["auc"],
            "AUC, shuffled labels": level["control_auc"],
            "F1": level["f1"],
            "balanced accuracy": level["accuracy"],
        }
        for entry in results.get("probe") or []
        for level in entry["levels"]
    ]


def location_rows(results: Results) -> list[Row]:
    """One row a relearned model: overlaps (Jaccard) of its top units."""
    rows = []
    for entry in results.get("after") or []:
        overlaps = entry.get("redistribution")
        if overlaps is None:
            continue
        row = {
            "condition": condition_name(entry),
            "concept examples": limit_name(entry["limit"]),
            "seed": entry["seed"],
            "top units compared": overlaps["n_compared"],
            "overlap with the top units before": overlaps["overlap"],
            "overlap with the mask": overlaps["overlap_with_mask"],
        }
        if "fresh_n" in overlaps:
            row["units ablated by a new mask"] = overlaps["fresh_n"]
            row["overlap of both masks"] = overlaps["fresh_overlap"]
        rows.append(row)
    return rows


def word_rows(results: Results) -> list[Row]:
    """One row a top unit before the cut or after relearning, with its top words.

    Of the cut that was relearned from most examples, and of its first seed.
    """
    with_words = [entry for entry in results.get("after") or [] if entry.get("words")]
    if not with_words:
        return []
    most = max(with_words, key=_examples)
    units: dict[tuple[str, int], list[Any]] = {}
    for entry in most["words"]:
        units.setdefault((entry["site"], entry["unit"]), []).append(entry)
    return [
        {
            "unit": f"{long_layer_name(unit['layer'])}, {unit['kind']} {unit['unit']}",
            "top unit": " and ".join(MOMENTS[entry["top"]] for entry in same),
            "ablated": "yes" if unit["ablated"] else "no",
            **{
                f"words {words}": _words(unit["words"][moment])
                for moment, words in MOMENTS.items()
            },
        }
        for same in units.values()
        for unit in same[:1]
    ]


def redistribution_by_layer(run: Run) -> Figure | None:
    """Layers of the concept's top units before the cut and after relearning."""
    tables = _relearned_longest(run.results)
    if not tables:
        return None
    shown = [name for name in REDISTRIBUTION_SERIES if name in tables[0][0]]
    kinds = list(dict.fromkeys(row["kind"] for row in tables[0]))
    figure, row = panels(len(kinds), min(5 + 3 * len(kinds), WIDTH), 4)
    for axes, kind in zip(row, kinds, strict=True):
        _shares(axes, tables, kind, shown)
    legend_beside(row[-1])
    return figure


def _shares(
    axes: Axes, tables: Sequence[Sequence[Results]], kind: str, shown: Sequence[str]
) -> None:
    """One bar a layer and set of units, mean over seeds."""
    layers = [entry["layer"] for entry in tables[0] if entry["kind"] == kind]
    width = 0.8 / len(shown)
    for k, name in enumerate(shown):
        label, colour = REDISTRIBUTION_SERIES[name]
        axes.bar(
            [x - 0.4 + (k + 0.5) * width for x in range(len(layers))],
            [_mean_share(tables, kind, layer, name) for layer in layers],
            width,
            color=colour,
            label=label,
        )
    layer_ticks(axes, dict(enumerate(layers)))
    axes.set_title(kind)
    axes.set_ylabel("share of the set's units (%)")
    axes.grid(False, axis="x")


def probe_by_layer(run: Run) -> Figure | None:
    """How well a linear probe decodes the concept from the hidden states."""
    probes = run.results.get("probe") or []
    if not probes:
        return None
    figure, (axes,) = panels(1, 9, 3.8)
    models = list(dict.fromkeys(entry["condition"] for entry in probes))
    for k, model in enumerate(models):
        levels = [
            {**level, "place": place + 0.06 * (k - (len(models) - 1) / 2)}
            for entry in probes
            if entry["condition"] == model
            for place, level in enumerate(entry["levels"])
        ]
        style = look(CONDITION_LOOKS.get(model, k))
        for key, kind in (("auc", "-"), ("control_auc", ":")):
            points = seed_points(levels, itemgetter("place"), itemgetter(key))
            name = CONDITIONS.get(model, model.replace("_", " "))
            label = name if key == "auc" else ""
            line(axes, points, label, style | {"linestyle": kind})
    axes.plot([], [], ":", color=GREY, label="control:\nshuffled labels")
    layer_ticks(axes, {i: e["layer"] for i, e in enumerate(probes[0]["levels"])})
    axes.set_ylabel("linear probe: area\nunder the ROC curve")
    legend_beside(axes)
    return figure


def _probed(entry: Results) -> str:
    return CONDITIONS.get(entry["condition"], entry["condition"].replace("_", " "))


def _words(entries: Sequence[Results]) -> str:
    shown = [f"{e['word']} ({format_cell(e['activation'])})" for e in entries]
    return ", ".join(shown) or "none: constant"


def _examples(entry: Results) -> float:
    return math.inf if entry["limit"] is None else entry["limit"]


def _relearned_longest(results: Results) -> list[list[Results]]:
    """Layers of the cut relearned from most examples, one table a seed."""
    cuts = [
        entry
        for entry in results.get("after") or []
        if entry["condition"] == "cut" and "redistribution" in entry
    ]
    if not cuts:
        return []
    most = max(cuts, key=_examples)
    return [
        entry["redistribution"]["layers"]
        for entry in cuts
        if all(entry[key] == most[key] for key in ("limit", "holding"))
    ]


def _mean_share(
    tables: Sequence[Sequence[Results]], kind: str, layer: int, name: str
) -> float:
    """Mean over seeds, in percent."""
    shares = [
        entry[name]["share"] or 0.0
        for table in tables
        for entry in table
        if (entry["kind"], entry["layer"]) == (kind, layer)
    ]
    return 100 * sum(shares) / len(shares)
