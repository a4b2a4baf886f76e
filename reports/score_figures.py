"""Figures of scores: the cut beside its controls, and scores by size of the cut."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import (
    BLACK,
    GREY,
    MODEL_COLOURS,
    WIDTH,
    Known,
    error_lengths,
    known_points,
    legend_beside,
    line,
    look,
    panels,
    seed_points,
    size_axis,
)
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.tables import named_scores
from circuitcut.reports.words import (
    format_cell,
    method_name,
    metric_label,
    ranking_name,
)

Results = Mapping[str, Any]
LABEL_WIDTH = 28
"""Characters in a line of a model's name."""


def scores_by_method(run: Run) -> Figure | None:
    """Dot plot of the scores of the uncut model, the cut and controls of its size."""
    scores = run.results["scores"]
    if set(scores) <= {"uncut"}:
        return None
    intervals = dict(named_scores(run.results.get("intervals", {})))
    models = named_scores(scores)
    figure, row = panels(2, WIDTH, 1.4 + 0.45 * len(models))
    names = [textwrap.fill(name, LABEL_WIDTH) for name, _ in models]
    places = range(len(models) - 1, -1, -1)
    for axes, side in zip(row, SIDES, strict=True):
        metric = run.results[f"{side}_metric"]
        for place, (name, values) in zip(places, models, strict=True):
            interval = intervals.get(name, {}).get(metric["name"])
            _dot(axes, place, name, values.get(metric["name"]), interval)
        axes.set_yticks(list(places), names, fontsize=11)
        axes.set_xlabel(metric_label(metric))
        axes.set_ylim(-0.6, len(models) - 0.3)
        axes.margins(x=0.12)
        uncut = scores.get("uncut", {}).get(metric["name"])
        if uncut is not None:
            axes.axvline(uncut, color=BLACK, linestyle=":", linewidth=1)
        if metric.get("chance") and metric["higher_is_better"]:
            axes.axvline(metric["chance"], color=GREY, linestyle="--", linewidth=1)
    row[1].tick_params(labelleft=False)
    return figure


def _dot(axes: Axes, place: int, name: str, value: float | None, interval: Any) -> None:
    """The score of a model, with its number above it."""
    if value is None:
        return
    bars = error_lengths(known_points([(place, value, interval)]))
    colour = MODEL_COLOURS.get(name.split()[0], BLACK)
    axes.errorbar(value, place, xerr=bars, fmt="o", color=colour, capsize=3)
    axes.annotate(
        format_cell(value),
        (value, place),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.05", "facecolor": "white", "linewidth": 0},
    )


def score_by_size(run: Run) -> Figure | None:
    """Concept and retain score against the number of ablated units, by method."""
    curve = run.results.get("curve") or []
    sizes = {entry["n_ablated"] for entry in curve}
    if len(sizes) < 2:
        return None
    figure, row = panels(2, WIDTH + 1, 4.2)
    methods = list(dict.fromkeys(entry["method"] for entry in curve))
    for axes, side in zip(row, SIDES, strict=True):
        metric = run.results[f"{side}_metric"]
        for k, method in enumerate(methods):
            points = _size_points(curve, method, metric["name"])
            line(axes, points, method_name(method), look(k))
        uncut = run.results["scores"].get("uncut", {}).get(metric["name"])
        if uncut is not None:
            axes.axhline(uncut, color=BLACK, linestyle=":", label="uncut model")
        size_axis(axes, sorted(sizes))
        axes.set_xlabel(f"{' and '.join(run.results.get('units', ['units']))} ablated")
        axes.set_ylabel(metric_label(metric))
    legend_beside(row[1])
    return figure


def _size_points(curve: Sequence[Results], method: str, metric: str) -> list[Known]:
    """Scores at each size; their interval, or from lowest to highest seed."""
    return seed_points(
        [entry for entry in curve if entry["method"] == method],
        lambda entry: entry["n_ablated"],
        lambda entry: entry["scores"].get(metric),
        lambda entry: entry.get("intervals", {}).get(metric),
    )


def faithfulness_curves(run: Run) -> Figure:
    """Faithfulness, score and KL of circuits, and of complements if any, by size."""
    results = run.results
    curve, metric = results["curve"], results["concept_metric"]
    shown: list[tuple[str, Callable[[Results], float | None]]] = [
        ("circuit kept:\nfaithfulness", lambda e: e["faithfulness"]),
        ("circuit ablated, rest kept:\nfaithfulness", _complement),
        (
            f"circuit kept:\n{metric_label(metric)}",
            lambda e: e["scores"].get(metric["name"]),
        ),
        (
            "circuit kept: KL to the\nuncut model (nats)",
            lambda e: e["scores"].get("kl_concept"),
        ),
    ]
    has_complements = any(_complement(entry) is not None for entry in curve)
    if not has_complements:
        del shown[1]
    figure = Figure(figsize=(WIDTH, 8.0), layout="constrained")
    grid = list(figure.subplots(2, 2).flat)
    for axes in grid[len(shown) :]:
        axes.remove()
    for axes, (label, value) in zip(grid, shown, strict=False):
        _by_share(axes, curve, value)
        axes.set_xlabel(f"{' and '.join(results['units'])} in the circuit (%)")
        axes.set_ylabel(label)
    for axes in grid[: 1 + has_complements]:
        axes.axhline(1, color=BLACK, linestyle=":", label="uncut model")
        axes.axhline(0, color=BLACK, linestyle="-", linewidth=0.8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def _by_share(
    axes: Axes, curve: Sequence[Results], value: Callable[[Results], float | None]
) -> None:
    """One line a ranking, dashed where it is by absolute scores."""
    methods = list(dict.fromkeys(entry["method"] for entry in curve))
    for name in dict.fromkeys(map(ranking_name, curve)):
        entries = [entry for entry in curve if ranking_name(entry) == name]
        first = entries[0]
        style = look(
            methods.index(first["method"]), dashed=first["order"] == "absolute"
        )
        points = seed_points(entries, lambda e: 100 * e["fraction"], value)
        line(axes, points, name, style)
    if all(value(entry) is None for entry in curve):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center")
        axes.set_xlim(100 * curve[0]["fraction"], 100)  # a log axis needs some
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _complement(entry: Results) -> float | None:
    faithfulness: float | None = (entry["without"] or {}).get("faithfulness")
    return faithfulness
