"""Figures of a mask: where it ablates, and how it was trained."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from circuitcut.reports.drawing import (
    BLACK,
    BLUE,
    GREY,
    PALETTE,
    VERMILLION,
    WIDTH,
    layer_ticks,
    panels,
)
from circuitcut.reports.load import Run
from circuitcut.reports.words import count_of, mean, percent

FEW_LAYERS = 8
"""Up to so many layers a bar also says the ablated share."""
LABELLED_LAYERS = 16
N_WINDOWS = 12
"""Points of a thick line in a training curve, each the mean of a window of steps."""
MOST_UNSMOOTHED = 12
"""Up to so many steps a training curve shows every step."""


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
    """Losses of concept and rest apart, and the number of units, along mask training.

    With a budget every step draws its own number of units, and the loss with it: the
    curves are means over the steps with small, middle and large draws.
    """
    losses = [name for name in LOSSES if _known(run, name)]
    if not losses and _known(run, "loss"):
        losses = ["loss"]
    counts = {name: _known(run, name) for name in COUNTS if _moves(run, name)}
    n_panels = len(losses) + bool(counts)
    if not n_panels:
        return None
    figure, row = panels(n_panels, WIDTH * max(n_panels, 2) / 3, 3.8)
    sizes = _by_drawn_number(run)
    for axes, name in zip(row, losses, strict=False):
        _loss(axes, _known(run, name), sizes)
        axes.set_ylabel(TRAINING_NAMES[name])
    if counts:
        _numbers(row[-1], run, counts)
    for axes in row:
        axes.set_xlabel("step of mask training")
    handles, labels = row[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=3, title=DRAWN_NUMBER
        )
    return figure


LOSSES = ("concept_loss", "retain_loss")
COUNTS = ("sample_ablated", "expected_ablated")
TRAINING_NAMES = {
    "loss": "total loss (nats)",
    "concept_loss": "loss on the concept (nats)",
    "retain_loss": "loss on the rest (nats)",
    "sample_ablated": "drawn at a step",
    "expected_ablated": "expected by the gates",
}
DRAWN_NUMBER = "means over the steps that draw so many units"
Series = list[tuple[int, float]]
"""Steps and values."""


def _known(run: Run, name: str) -> Series:
    return [(e["step"], e[name]) for e in run.metrics if e.get(name) is not None]


def _by_drawn_number(run: Run) -> dict[str, set[int]]:
    """Name of each third of the drawn numbers -> its steps; empty where all are alike.

    In `isolate` the drawn number is that of the kept units.
    """
    drawn = [(_shown_number(run, n), step) for step, n in _known(run, "sample_ablated")]
    drawn.sort()
    if len(drawn) < 3 * MOST_UNSMOOTHED or not has_budget(run):
        return {}
    done = "kept" if run.results.get("direction") == "isolate" else "ablated"
    ends = [len(drawn) * k // 3 for k in range(4)]
    thirds = [drawn[i:j] for i, j in pairwise(ends)]
    return {
        f"{round(third[0][0]):,} to {round(third[-1][0]):,} {done}": {
            step for _, step in third
        }
        for third in thirds
    }


def has_budget(run: Run) -> bool:
    """Whether the steps draw their numbers of units: gates without an expected one."""
    return _moves(run, "sample_ablated") and not _known(run, "expected_ablated")


def _shown_number(run: Run, n_ablated: float) -> float:
    isolates = run.results.get("direction") == "isolate"
    return run.results["n_units"] - n_ablated if isolates else n_ablated


def _loss(axes: Axes, points: Series, sizes: Mapping[str, set[int]]) -> None:
    """A dot a step and thick means, one line a third of the drawn numbers."""
    groups: dict[str, Series] = {
        name: [point for point in points if point[0] in steps]
        for name, steps in sizes.items()
    } or {"mean over windows of steps": points}
    highest = 0.0
    for k, (name, group) in enumerate(groups.items()):
        window = 1 if len(points) <= MOST_UNSMOOTHED else -(-len(group) // N_WINDOWS)
        means = _means(group, window)
        style: Any = {"color": PALETTE[k], "linestyle": ("-", "--", ":")[k % 3]}
        if window > 1:
            axes.plot(*zip(*group, strict=True), ".", color=PALETTE[k], alpha=0.2, ms=3)
        axes.plot(*zip(*means, strict=True), label=name, linewidth=2.2, **style)
        values = sorted(value for _, value in group)
        usual = values[int(0.98 * (len(values) - 1))]
        highest = max(highest, usual, *(value for _, value in means))
    low = min(0.0, *(value for _, value in points))
    axes.set_ylim(low - 0.04 * (highest - low), 1.06 * highest or 1.0)


def _means(points: Series, window: int) -> list[tuple[float, float]]:
    """Mean step and value of every so many points."""
    pieces = [points[i : i + window] for i in range(0, len(points), window)]
    return [
        (mean([x for x, _ in piece]) or 0.0, mean([y for _, y in piece]) or 0.0)
        for piece in pieces
    ]


def _numbers(axes: Axes, run: Run, counts: Mapping[str, Series]) -> None:
    """Units ablated (of a circuit: kept): by the gates, asked for, and frozen."""
    isolates = run.results.get("direction") == "isolate"
    for name, points in counts.items():
        drawn = name == "sample_ablated"
        axes.plot(
            [step for step, _ in points],
            [_shown_number(run, n) for _, n in points],
            "." if drawn else "-",
            color=GREY if drawn else PALETTE[0],
            alpha=0.5 if drawn else 1.0,
            label=TRAINING_NAMES[name],
        )
    frozen, asked = run.results["n_ablated"], run.results.get("asked_ablated")
    if asked not in (None, frozen):
        asked = _shown_number(run, asked)
        axes.axhline(asked, color=BLUE, linestyle=":", label=f"asked for: {asked:,}")
    frozen = _shown_number(run, frozen)
    axes.axhline(frozen, color=BLACK, linestyle="--", label=f"frozen: {frozen:,}")
    axes.set_ylabel("units kept" if isolates else "units ablated")
    if has_budget(run):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)


def _moves(run: Run, name: str) -> bool:
    """Whether a number is known and differs between steps by more than rounding."""
    values = [value for _, value in _known(run, name)]
    largest = max(map(abs, values), default=0.0)
    return bool(values) and max(values) - min(values) > 1e-4 * largest
