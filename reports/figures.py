"""Figures of a run: masks by layer, training, score against size, relearning, layers.

Colours are those of Okabe & Ito (2008), "Color Universal Design", told apart with every
kind of colour vision; marks and line styles repeat what the colours say.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.load import Run
from reports.tables import condition_name, limit_name
from storage.atomic import write_bytes

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
CONDITION_COLOURS = {"cut": VERMILLION, "uncut": BLUE, "random": ORANGE}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 110,
}

Draw = Callable[[Run], Figure | None]


def draw_all(run: Run) -> dict[str, Path]:
    """Draw every figure the run has data for; PNG files in its `figures/` by name."""
    written = {}
    for name, draw in FIGURES[run.kind].items():
        with matplotlib.rc_context(STYLE):
            figure = draw(run)
            if figure is not None:
                path = run.path / "figures" / f"{name}.png"
                write_bytes(path, _png(figure))
                written[name] = path
    return written


def mask_by_layer(run: Run) -> Figure:
    """Units ablated in each layer, one panel a kind of unit."""
    sites = run.results["per_site"]
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    figure = _figure(4.2 * len(kinds) + 1, 3.4)
    for axes, kind in zip(_row(figure, len(kinds)), kinds, strict=True):
        layers = sorted({site["layer"] for site in sites if site["kind"] == kind})
        ablated = [_total(sites, kind, layer, "n_ablated") for layer in layers]
        units = [_total(sites, kind, layer, "n_units") for layer in layers]
        bars = axes.bar(range(len(layers)), ablated, color=VERMILLION, width=0.7)
        axes.bar_label(bars, [str(n) if n else "" for n in ablated], fontsize=9)
        axes.set_xticks(range(len(layers)), [_layer_name(layer) for layer in layers])
        axes.set_xlabel("layer")
        axes.set_ylabel(f"{kind} ablated")
        axes.set_title(f"{sum(ablated):,} of {sum(units):,} {kind}", fontsize=11)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.15)
    return figure


def training_curves(run: Run) -> Figure | None:
    """Losses and the expected number of ablated units along mask training."""
    names = sorted({name for entry in run.metrics for name in entry} - {"step"})
    losses = [name for name in names if "loss" in name or name.startswith("kl")]
    counts = [name for name in names if "ablated" in name]
    panels = [
        (label, group)
        for label, group in (("loss (nats)", losses), ("units ablated", counts))
        if group
    ]
    if not panels:
        return None
    figure = _figure(5.2 * len(panels), 3.6)
    for axes, (label, group) in zip(_row(figure, len(panels)), panels, strict=True):
        for k, name in enumerate(group):
            entries = [e for e in run.metrics if e.get(name) is not None]
            steps = [entry["step"] for entry in entries]
            colour = PALETTE[k % len(PALETTE)]
            values = [entry[name] for entry in entries]
            axes.plot(steps, values, color=colour, label=name.replace("_", " "))
        axes.set_xlabel("step of mask training")
        axes.set_ylabel(label)
        axes.legend(fontsize=9)
    return figure


def score_by_size(run: Run) -> Figure | None:
    """Concept and retain score against the number of ablated units, by method."""
    curve = run.results.get("curve") or []
    if not curve:
        return None
    figure = _figure(11, 4.2)
    panels = _row(figure, 2)
    methods = list(dict.fromkeys(entry["method"] for entry in curve))
    for axes, side in zip(panels, ("concept", "retain"), strict=True):
        metric = run.results[f"{side}_metric"]
        for k, method in enumerate(methods):
            points = _curve_points(curve, method, metric["name"])
            _band(axes, points, k, method)
        uncut = run.results.get("scores", {}).get("uncut", {}).get(metric["name"])
        if uncut is not None:
            axes.axhline(uncut, color=BLACK, linestyle=":", label="uncut")
        axes.set_xscale("symlog", linthresh=1)
        sizes = sorted({entry["n_ablated"] for entry in curve})
        axes.set_xticks(_thinned(sizes), [f"{n:,}" for n in _thinned(sizes)])
        axes.minorticks_off()
        axes.set_xlabel("units ablated")
        axes.set_ylabel(_metric_label(side, metric))
    panels[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def relearning_curves(run: Run) -> Figure:
    """Scores against steps, a column a number of examples, a row a side of the task."""
    summary = run.results["summary"]
    limits = _limits(summary)
    figure = _figure(max(3.0 * len(limits) + 1.5, 6), 6)
    grid = figure.subplots(2, len(limits), sharex=True, sharey="row", squeeze=False)
    for row, side in zip(grid, ("concept", "retain"), strict=True):
        for axes, limit in zip(row, limits, strict=True):
            groups = _by_condition(e for e in summary if e["limit"] == limit)
            for k, (name, entries) in enumerate(groups.items()):
                points = [
                    (e["step"], e[side], e.get(f"{side}_interval")) for e in entries
                ]
                _band(axes, points, k, name, entries[0])
            axes.set_xscale("symlog", linthresh=1)
            steps = sorted({e["step"] for e in summary})
            axes.set_xticks(_thinned(steps, 4), [str(s) for s in _thinned(steps, 4)])
            axes.minorticks_off()
        row[0].set_ylabel(_metric_label(side, run.results[f"{side}_metric"]))
    for axes, limit in zip(grid[0], limits, strict=True):
        plural = "" if limit == 1 else "s"
        axes.set_title(f"{limit_name(limit)} example{plural}", fontsize=11)
    for axes in grid[1]:
        axes.set_xlabel("step of relearning")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def recovery_by_examples(run: Run) -> Figure | None:
    """Recovery at the end of the run against the number of training examples."""
    entries = run.results["recovery"]
    if not entries:
        return None
    limits = _limits(entries)
    figure = _figure(11, 4)
    panels = _row(figure, 2)
    for axes, kind in zip(panels, ("ratio", "normalised"), strict=True):
        for k, (name, group) in enumerate(_by_condition(entries).items()):
            last = {entry["limit"]: entry["points"][-1] for entry in group}
            points = [
                (x, last[limit][kind], last[limit].get(f"{kind}_interval"))
                for x, limit in enumerate(limits)
                if limit in last
            ]
            _error_bars(axes, points, k, name, group[0])
        axes.axhline(1, color=BLACK, linestyle=":", linewidth=1)
        axes.set_xticks(range(len(limits)), [limit_name(limit) for limit in limits])
        axes.set_xlabel("training examples that hold the concept")
    panels[0].set_ylabel("recovery: cut / uncut")
    panels[1].set_ylabel("recovery: normalised")
    panels[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def redistribution_by_layer(run: Run) -> Figure | None:
    """Where the concept's top units sit before the cut and after relearning."""
    found = [e for e in run.results.get("after") or [] if "redistribution" in e]
    found = [e for e in found if e["condition"] == "cut"]
    if not found:
        return None
    most = max(found, key=lambda e: float("inf") if e["limit"] is None else e["limit"])
    chosen = [
        e["redistribution"]["layers"]
        for e in found
        if (e["limit"], e["holding"]) == (most["limit"], most["holding"])
    ]
    kinds = list(dict.fromkeys(row["kind"] for row in chosen[0]))
    figure = _figure(4.6 * len(kinds) + 2, 3.8)
    panels = _row(figure, len(kinds))
    series = {
        "top_before": ("before the cut", BLUE),
        "mask": ("ablated by the mask", BLACK),
        "top_after": ("after relearning", VERMILLION),
        "fresh_mask": ("fresh mask after relearning", GREEN),
    }
    present = [name for name in series if name in chosen[0][0]]
    for axes, kind in zip(panels, kinds, strict=True):
        rows = [row for row in chosen[0] if row["kind"] == kind]
        width = 0.8 / len(present)
        for k, name in enumerate(present):
            shares = [_mean_share(chosen, row, name) for row in rows]
            label, colour = series[name]
            left = [x - 0.4 + (k + 0.5) * width for x in range(len(rows))]
            axes.bar(left, shares, width, color=colour, label=label)
        axes.set_xticks(range(len(rows)), [_layer_name(row["layer"]) for row in rows])
        axes.set_xlabel("layer")
        axes.set_ylabel(f"{kind}: share of the chosen units (%)")
    panels[-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def probe_by_layer(run: Run) -> Figure | None:
    """How well a linear probe finds the concept in the hidden states of every level."""
    found = run.results.get("probe") or []
    if not found:
        return None
    figure = _figure(8, 3.8)
    axes = _row(figure, 1)[0]
    for k, entry in enumerate(found):
        levels = [level["layer"] for level in entry["levels"]]
        colour = CONDITION_COLOURS.get(entry["condition"], PALETTE[k])
        for key, style in (("auc", "-"), ("control_auc", ":")):
            values = [level[key] for level in entry["levels"]]
            label = entry["condition"] + ("" if key == "auc" else ", shuffled labels")
            axes.plot(
                range(len(levels)),
                values,
                style,
                color=colour,
                marker=MARKS[k],
                label=label,
            )
        axes.set_xticks(range(len(levels)), [_layer_name(layer) for layer in levels])
    axes.set_xlabel("layer")
    axes.set_ylabel("area under ROC of a linear probe")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


FIGURES: dict[str, dict[str, Draw]] = {
    "train_mask": {
        "mask_by_layer": mask_by_layer,
        "score_by_size": score_by_size,
        "training_curves": training_curves,
    },
    "relearn": {
        "relearning_curves": relearning_curves,
        "recovery_by_examples": recovery_by_examples,
        "redistribution_by_layer": redistribution_by_layer,
        "probe_by_layer": probe_by_layer,
    },
    "evaluate": {"score_by_size": score_by_size},
    "attribute": {"score_by_size": score_by_size},
}
"""Kind of run -> its figures in the order of the report."""

Point = tuple[float, float | None, Sequence[float | None] | None]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _row(figure: Figure, n: int) -> list[Axes]:
    return list(figure.subplots(1, n, squeeze=False)[0])


def _png(figure: Figure) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _total(sites: Sequence[Mapping[str, Any]], kind: str, layer: int, key: str) -> int:
    chosen = (s[key] for s in sites if s["kind"] == kind and s["layer"] == layer)
    return sum(chosen)


def _layer_name(layer: int) -> str:
    return "emb." if layer < 0 else str(layer)


def _metric_label(side: str, metric: Mapping[str, Any]) -> str:
    name = metric["name"].replace("_", " ")
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    return f"{side}: {name}{unit}"


def _limits(entries: Sequence[Mapping[str, Any]]) -> list[int | None]:
    limits = {entry["limit"] for entry in entries}
    return sorted(limits, key=lambda limit: float("inf") if limit is None else limit)


def _by_condition(entries: Any) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(condition_name(entry), []).append(entry)
    return groups


def _curve_points(
    curve: Sequence[Mapping[str, Any]], method: str, metric: str
) -> list[Point]:
    """Mean over seeds at each size; the interval, or from lowest to highest seed."""
    points: list[Point] = []
    of_method = [entry for entry in curve if entry["method"] == method]
    for size in sorted({entry["n_ablated"] for entry in of_method}):
        same = [entry for entry in of_method if entry["n_ablated"] == size]
        values = [
            e["scores"][metric] for e in same if e["scores"].get(metric) is not None
        ]
        if not values:
            continue
        interval = same[0].get("intervals", {}).get(metric) if len(same) == 1 else None
        if interval is None and len(values) > 1:
            interval = [min(values), max(values)]
        points.append((size, sum(values) / len(values), interval))
    return points


def _look(k: int, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    colour = PALETTE[k % len(PALETTE)]
    style = "-"
    if entry is not None:
        colour = CONDITION_COLOURS.get(entry["condition"], colour)
        style = "--" if entry.get("holding") == "one_shot" else "-"
    return {"color": colour, "linestyle": style, "marker": MARKS[k % len(MARKS)]}


def _band(
    axes: Axes,
    points: Sequence[Point],
    k: int,
    label: str,
    entry: Mapping[str, Any] | None = None,
) -> None:
    known = [(x, y, i) for x, y, i in points if y is not None]
    look = _look(k, entry)
    axes.plot(
        [x for x, _, _ in known],
        [y for _, y, _ in known],
        label=label,
        markersize=4,
        **look,
    )
    banded = [(x, i) for x, _, i in known if i is not None and None not in i]
    axes.fill_between(
        [x for x, _ in banded],
        [i[0] for _, i in banded],
        [i[1] for _, i in banded],
        color=look["color"],
        alpha=0.15,
        linewidth=0,
    )


def _error_bars(
    axes: Axes, points: Sequence[Point], k: int, label: str, entry: Mapping[str, Any]
) -> None:
    known = [(x, y, i) for x, y, i in points if y is not None]
    spans = [(y, y) if i is None or None in i else i for _, y, i in known]
    axes.errorbar(
        [x + 0.06 * k for x, _, _ in known],
        [y for _, y, _ in known],
        [
            [max(y - low, 0) for (_, y, _), (low, _) in zip(known, spans, strict=True)],
            [
                max(high - y, 0)
                for (_, y, _), (_, high) in zip(known, spans, strict=True)
            ],
        ],
        label=label,
        capsize=3,
        **_look(k, entry),
    )


def _thinned(values: Sequence[int], most: int = 8) -> list[int]:
    if len(values) <= most:
        return list(values)
    stride = (len(values) - 1) / (most - 1)
    return [values[round(i * stride)] for i in range(most)]


def _mean_share(
    tables: Sequence[Sequence[Mapping[str, Any]]], row: Mapping[str, Any], name: str
) -> float:
    shares = [
        entry[name]["share"] or 0.0
        for table in tables
        for entry in table
        if (entry["layer"], entry["kind"]) == (row["layer"], row["kind"])
    ]
    return 100 * sum(shares) / len(shares)
