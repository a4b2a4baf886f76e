"""Figures of a mask: where it ablates, and how it was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from circuitcut.reports.drawing import PALETTE, VERMILLION, WIDTH, layer_ticks, panels
from circuitcut.reports.load import Run
from circuitcut.reports.words import count_of, percent

FEW_LAYERS = 8
"""Up to so many layers a bar also says the ablated share."""
LABELLED_LAYERS = 16
N_WINDOWS = 25
"""Thick lines of a training curve are means over 1/25 of the steps."""


def mask_by_layer(run: Run) -> Figure:
    """Units ablated in each layer, one panel a kind of unit."""
    sites = run.results["per_site"]
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    figure, row = panels(len(kinds), min(3 + 4 * len(kinds), WIDTH), 3.6)
    for axes, kind in zip(row, kinds, strict=True):
        _bars(axes, [site for site in sites if site["kind"] == kind], kind)
    return figure


def _bars(axes: Axes, sites: Sequence[Mapping[str, Any]], kind: str) -> None:
    """One bar a layer, with its count and, of few layers, its share."""
    layers = layer_counts(sites)
    ablated = [n for _, n, _ in layers]
    units = [n for _, _, n in layers]
    bars = axes.bar(range(len(layers)), ablated, color=VERMILLION, width=0.7)
    if len(layers) <= LABELLED_LAYERS:
        labels = [f"{n:,}" if n else "" for n in ablated]
        if len(layers) <= FEW_LAYERS:
            labels = [
                f"{label}\n{percent(n / total)}" if n else ""
                for label, n, total in zip(labels, ablated, units, strict=True)
            ]
        axes.bar_label(bars, labels, fontsize=11)
    layer_ticks(axes, {place: name for place, (name, _, _) in enumerate(layers)})
    axes.set_ylabel(f"{kind} ablated")
    axes.set_title(f"{count_of(sum(ablated), sum(units))} {kind} ablated")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1.25 * max(*ablated, 1))
    axes.grid(False, axis="x")


def layer_counts(
    sites: Sequence[Mapping[str, Any]],
) -> list[tuple[int | str, int, int]]:
    """Per layer: its number or name, units ablated, units in total."""
    counts: dict[int, tuple[int | str, int, int]] = {}
    for site in sorted(sites, key=lambda site: site["layer"]):
        layer = site["layer"]
        name, n_ablated, n_units = counts.get(layer, (site.get("level", layer), 0, 0))
        counts[layer] = name, n_ablated + site["n_ablated"], n_units + site["n_units"]
    return list(counts.values())


def training_curves(run: Run) -> Figure | None:
    """Losses and the number of ablated units along mask training."""
    names = sorted({name for entry in run.metrics for name in entry} - {"step"})
    groups = {
        "loss (nats)": [
            n for n in names if "loss" in n or n in ("concept", "retain", "penalty")
        ],
        # soft top-k expects the same number from first to last
        "units ablated": [n for n in names if "ablated" in n and _moves(run, n)],
    }
    groups = {label: group for label, group in groups.items() if group}
    if not groups:
        return None
    figure, row = panels(len(groups), WIDTH * len(groups) / 2, 3.8)
    for axes, (label, group) in zip(row, groups.items(), strict=True):
        for k, name in enumerate(group):
            entries = [e for e in run.metrics if e.get(name) is not None]
            style = {"color": PALETTE[k], "linestyle": ("-", "--", ":")[k % 3]}
            _curve(
                axes,
                [entry["step"] for entry in entries],
                [entry[name] for entry in entries],
                {"label": TRAINING_NAMES.get(name, name.replace("_", " ")), **style},
            )
        axes.set_xlabel("step of mask training")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


TRAINING_NAMES = {
    "loss": "total loss",
    "concept_loss": "loss on the concept",
    "retain_loss": "loss on the rest",
    "expected_ablated": "expected by the gates",
}


def _curve(
    axes: Axes, steps: Sequence[int], values: Sequence[float], style: Mapping[str, Any]
) -> None:
    """Every step as a thin line, means over windows of steps as a thick one."""
    window = max(1, len(values) // N_WINDOWS)
    starts = range(0, len(values), window)
    if window > 1:
        axes.plot(steps, values, color=style["color"], linewidth=0.6, alpha=0.25)
    axes.plot(
        [_mean(steps[i : i + window]) for i in starts],
        [_mean(values[i : i + window]) for i in starts],
        linewidth=2.2,
        **style,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _moves(run: Run, name: str) -> bool:
    """Whether a number is known and differs between steps by more than rounding."""
    values = [entry[name] for entry in run.metrics if entry.get(name) is not None]
    largest = max(map(abs, values), default=0.0)
    return bool(values) and max(values) - min(values) > 1e-4 * largest
