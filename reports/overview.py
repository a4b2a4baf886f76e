"""A mask and its relearning in three panels: the cut, its effect, and relearning.

White background, readable at a width of 1,000 pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from circuitcut.reports.circuits.edge_names import edge_ends
from circuitcut.reports.circuits.layout import has_lines, layout_of
from circuitcut.reports.circuits.lines import line_widths
from circuitcut.reports.circuits.svg import READERS
from circuitcut.reports.drawing import (
    CONDITION_LOOKS,
    LIGHT_GREY,
    MODEL_COLOURS,
    STYLE,
    VERMILLION,
    known_points,
    line,
    look,
    seed_points,
    size_axis,
)
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.mask_figures import layer_counts
from circuitcut.reports.relearning_figures import ordered_limits
from circuitcut.reports.words import (
    count_of,
    examples,
    format_cell,
    layer_name,
    mean,
    method_name,
    metric_label,
    metric_name,
    metric_unit,
    plural,
)

Results = Mapping[str, Any]
SIZE = 10.0, 4.3
"""Inches; 1,000 x 430 pixels at 100 an inch."""
FONT_SIZE = 10.0
FEW_LAYERS = 14
"""Up to so many layers every cell of the schematic says its count."""


def overview(mask_run: Run, relearn_run: Run) -> Figure:
    """What a mask ablates, what that does to the scores, and how the concept returns.

    Args:
        mask_run: Of kind train_mask.
        relearn_run: Of kind relearn, of that mask. Shown is the smallest number of
            concept examples, and of the cut the first holding.
    """
    with matplotlib.rc_context({**STYLE, "font.size": FONT_SIZE}):
        figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
        panels: Any = figure.subfigures(1, 3, width_ratios=(1.0, 1.15, 1.1))
        left, middle, right = panels
        _what_is_cut(left, mask_run.results)
        _what_it_removes(middle, mask_run.results)
        _what_returns(right, relearn_run.results)
    return figure


def _what_is_cut(panel: SubFigure, results: Results) -> None:
    axes = panel.subplots()
    circuit = results.get("circuit")
    if circuit and has_lines(circuit):
        _circuit(axes, circuit)
        which = "kept" if circuit["kept"] else "ablated"
        counted = f"{count_of(len(circuit['edges']), circuit['n_edges'])} edges {which}"
    else:
        _cells(axes, results["per_site"])
        kinds = " and ".join(results["units"])
        counted = count_of(results["n_ablated"], results["n_units"])
        counted += f" {kinds} ablated"
    _title(panel, "1. The cut", counted)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(panel: SubFigure, title: str, said: str) -> None:
    panel.suptitle(f"{title}\n{said}", fontsize=FONT_SIZE)


def _cells(axes: Axes, sites: Sequence[Results]) -> None:
    """A cell a layer and kind of unit, filled by the share that is ablated."""
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    names = {s["layer"]: s.get("level", layer_name(s["layer"])) for s in sites}
    layers = sorted(names)
    for x, kind in enumerate(kinds):
        of_kind = [site for site in sites if site["kind"] == kind]
        for y, layer in enumerate(layers):
            in_layer = [site for site in of_kind if site["layer"] == layer]
            if not in_layer:
                continue
            ((_, ablated, units),) = layer_counts(in_layer)
            axes.barh(y, 0.9, 0.8, left=x, color=LIGHT_GREY)
            axes.barh(y, 0.9 * ablated / units, 0.8, left=x, color=VERMILLION)
            if len(layers) <= FEW_LAYERS:
                text = f"{ablated:,} / {units:,}"
                axes.text(x + 0.45, y, text, ha="center", va="center", fontsize=9)
    axes.set_xticks([x + 0.45 for x in range(len(kinds))], kinds)
    every = -(-len(layers) // FEW_LAYERS)
    shown = list(range(0, len(layers), every))
    axes.set_yticks(shown, [names[layers[y]] for y in shown])
    axes.set_ylabel("layer (emb.: embeddings)" if -1 in layers else "layer")
    axes.set_xlabel("orange: ablated, grey: kept")


def _circuit(axes: Axes, circuit: Results) -> None:
    """The circuit's nodes, layer above layer, with a line an edge."""
    layout = layout_of(circuit)
    faint = min(0.9, max(0.15, 20 / len(circuit["edges"])))
    nodes = dict.fromkeys(("input", "logits"))
    kinds = dict.fromkeys(READERS, False)
    for name, width in zip(circuit["edges"], line_widths(circuit), strict=True):
        source, target, reads = edge_ends(name)
        nodes |= dict.fromkeys((source, target))
        (x1, y1), (x2, y2) = layout.place(source), layout.place(target)
        label, colour = READERS[reads]
        axes.plot(
            [x1, x2],
            [-y1, -y2],
            color=colour,
            alpha=faint,
            linewidth=1.6 * width,
            label=None if kinds[reads] else f"into {label}",
        )
        kinds[reads] = True
    for node in layout.nodes():
        x, y = layout.place(node)
        axes.plot(x, -y, ".", color=LIGHT_GREY, markersize=3)
    few = len(nodes) <= 24
    for node in nodes:
        x, y = layout.place(node)
        if few or node in ("input", "logits"):
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white"}
            style: Any = {"ha": "center", "va": "center", "fontsize": 8}
            name = node.rpartition(".")[-1]  # the layer stands on the axis
            axes.text(x, -y, name, bbox=box, zorder=4, **style)
        else:
            axes.plot(x, -y, "o", color="#444444", markersize=3, zorder=4)
    layers = layout.layers
    every = max(1, -(-len(layers) // FEW_LAYERS))
    places = [-layout.row_of(layer) for layer in layers]
    axes.set_yticks(places[::every], [str(layer) for layer in layers][::every])
    axes.set_xticks([])
    axes.margins(x=0.14, y=0.1)
    axes.set_ylabel("layer")
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=2,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.0,
    )
    for handle in legend.legend_handles:  # the lines of many edges are faint
        if handle is not None:
            handle.set_alpha(1)


def _what_it_removes(panel: SubFigure, results: Results) -> None:
    """Scores of concept and rest: uncut, learned, attribution and random cut."""
    for axes, side in zip(panel.subplots(2, 1), SIDES, strict=True):
        metric = results[f"{side}_metric"]
        models = _models(results, metric["name"])
        for place, (name, value, ends) in enumerate(models):
            axes.barh(place, value, 0.72, color=MODEL_COLOURS[name.split()[0]])
            if ends:
                axes.plot(ends, [place, place], color="black", linewidth=1.4)
            top = max(value, *ends) if ends else value
            axes.annotate(
                format_cell(value),
                (max(top, 0.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(models)), [name for name, _, _ in models])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.grid(False, axis="y")
        axes.set_xlabel(_with_guess(metric))
    method = _best_attribution(results)
    said = "" if method is None else f"attribution: {method_name(method)}"
    _title(panel, "2. Scores on held-out data", said)


def _with_guess(metric: Results) -> str:
    """Axis label of a score, with what a guess scores."""
    guess = metric.get("chance")
    if not guess:
        return metric_label(metric)
    return f"{metric_name(metric)}\n({metric_unit(metric)}; guess: {guess:.3g})"


def _models(
    results: Results, metric: str
) -> list[tuple[str, float, list[float] | None]]:
    """Name, score and range over random cuts."""
    scores = results["scores"]
    models: list[tuple[str, float | None, list[float] | None]] = [
        ("uncut", scores["uncut"].get(metric), None),
        ("learned cut", scores["cut"].get(metric), None),
    ]
    method = _best_attribution(results)
    if method is not None:
        value = scores["attribution"][method].get(metric)
        models.append(("attribution cut", value, None))
    values = [each.get(metric) for each in scores.get("random") or []]
    known = [value for value in values if value is not None]
    if known:
        name = f"random cut\n(mean of {len(known)})"
        models.append((name, mean(known), [min(known), max(known)]))
    return [(name, value, ends) for name, value, ends in models if value is not None]


def _best_attribution(results: Results) -> str | None:
    """The method whose cut separates concept and rest best, in units of the scores."""
    attribution = results["scores"].get("attribution") or {}
    concept, retain = (results[f"{side}_metric"] for side in SIDES)

    def separation(method: str) -> float:
        scores = attribution[method]
        harm, kept = scores.get(concept["name"]) or 0.0, scores.get(retain["name"])
        harm *= 1 if concept["higher_is_better"] else -1
        harm *= -1 if results.get("direction") == "isolate" else 1
        gain = (kept or 0.0) * (1 if retain["higher_is_better"] else -1)
        return gain - harm

    return max(attribution, key=separation, default=None)


def _what_returns(panel: SubFigure, results: Results) -> None:
    """Concept score by step, with the range over seeds."""
    axes = panel.subplots()
    metric, rows = results["concept_metric"], results["rows"]
    limit = ordered_limits([row for row in rows if row["limit"] != 0])[0]
    shown = [row for row in rows if row["limit"] == limit]
    holding = next((r["holding"] for r in shown if r["condition"] == "cut"), None)
    labels = {"cut": "learned cut", "uncut": "uncut", "random": "random cut"}
    for condition, label in labels.items():
        entries = [
            row
            for row in shown
            if row["condition"] == condition and row["holding"] in (holding, None)
        ]
        points = seed_points(
            entries, lambda e: e["step"], lambda e: e["scores"].get(metric["name"])
        )
        line(axes, known_points(points), label, look(CONDITION_LOOKS[condition]))
    size_axis(axes, [row["step"] for row in shown], 6)
    n_seeds = len({row["seed"] for row in shown})
    bands = f"\nmean and range of {plural(n_seeds, 'seed')}" if n_seeds > 1 else ""
    axes.set_xlabel(f"step of relearning{bands}")
    axes.set_ylabel(metric_label(metric))
    handles, names = axes.get_legend_handles_labels()
    panel.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=3,
        columnspacing=0.9,
        handlelength=1.6,
        fontsize=9,
    )
    _title(panel, "3. Relearning", f"fine-tuned on {examples(limit)}")
