"""Figures of single units: heat maps level by unit, and similarity against saliency."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from circuitcut.reports.drawing import (
    GREY,
    LIGHT_GREY,
    VERMILLION,
    WIDTH,
    line,
    panels,
    seed_points,
)
from circuitcut.reports.load import Run
from circuitcut.reports.stages.arms import Names, arm_name, shown_arms, stage_name
from circuitcut.reports.stages.records import UnitValues, unit_values
from circuitcut.reports.words import percent

ZOOMED = 32
"""Units of the zoomed part of a heat map."""
BINS = np.linspace(0, 1, 6)
"""Edges of the bins of saliency whose mean similarity is drawn."""
SHOWN = {
    "saliency": ("saliency", "held at zero, or no word with letters"),
    "similarity": ("similarity (cosine)", "the same words as before, or none"),
}
"""Value -> label of its colours, and what has no colour."""
Map = NDArray[np.float64]


def saliency_map(run: Run) -> Figure | None:
    """Saliency of every unit at the base model and at every stage."""
    records, arm = _of_first_cut(run)
    return _maps(run, records, arm, "saliency", Normalize(0, 1)) if records else None


def similarity_map(run: Run) -> Figure | None:
    """Similarity of every unit's words to those at the base model, at every stage."""
    records, arm = _of_first_cut(run)
    values = [record.similarity for record in records[1:]]
    if not values or all(np.isnan(v).all() for v in values):
        return None
    lowest = min(float(np.nanmin(v)) for v in values if not np.isnan(v).all())
    return _maps(run, records[1:], arm, "similarity", Normalize(lowest, 1))


def first_cut(run: Run) -> Names | None:
    """The arm whose single units are shown."""
    cuts = [arm for arm in shown_arms(run.results) if arm[1] == "cut"]
    return cuts[0] if cuts else None


def _of_first_cut(run: Run) -> tuple[list[UnitValues], Names]:
    """Records of the first seed's first cut."""
    arm = first_cut(run)
    if arm is None:
        return [], (0.0, "cut", None)
    return unit_values(run, run.results["seeds"][0]["seed"], arm), arm


def _maps(
    run: Run, records: Sequence[UnitValues], arm: Names, name: str, norm: Normalize
) -> Figure:
    """One row a stage: all units, and beside them the part that changed most."""
    widths = [level["n_units"] for level in run.results["levels"]]
    maps = [grid_of(getattr(record, name), widths) for record in records]
    start = most_changed(maps[0], maps[-1]) if max(widths) > ZOOMED else None
    height = 0.75 + (0.5 + min(0.14 * len(widths), 2)) * len(maps)
    figure = Figure(figsize=(WIDTH + 1, 0.6 + height), layout="constrained")
    ratios = [3, 2] if start is not None else [1]
    grid = figure.subplots(
        len(maps), len(ratios), sharex="col", width_ratios=ratios, squeeze=False
    )
    image: Any = None
    for row, values, record in zip(grid, maps, records, strict=True):
        for k, axes in enumerate(row):
            first = start if k and start is not None else 0
            part = values[:, first : first + ZOOMED] if k else values
            image = _heat(axes, part, first, norm)
        row[0].set_ylabel("level")
        row[0].set_title(stage_name(record.stage), loc="left", fontsize=12)
        if start is not None:
            corner = (start - 0.5, -0.5)
            row[0].add_patch(
                Rectangle(
                    corner,
                    ZOOMED,
                    len(widths),
                    fill=False,
                    edgecolor=VERMILLION,
                    linewidth=1.5,
                )
            )
    grid[-1][0].set_xlabel("unit of the level")
    if start is not None:
        grid[0][1].set_title(f"units {start} to {start + ZOOMED - 1}", fontsize=12)
        grid[-1][1].set_xlabel("unit of the level (framed part)")
    label, grey = SHOWN[name]
    figure.suptitle(f"{_which(run, arm)}; grey: {grey}", fontsize=12)
    figure.colorbar(image, ax=list(grid.flat), label=label, fraction=0.03)
    return figure


def _which(run: Run, arm: Names) -> str:
    seed = run.results["seeds"][0]["seed"]
    return f"{arm_name(arm)}, {percent(arm[0], 1)} of the units pruned, seed {seed}"


def _heat(axes: Axes, values: Map, first: int, norm: Normalize) -> Any:
    colours = colormaps["viridis"].with_extremes(bad=LIGHT_GREY)
    n_levels, n_units = values.shape
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=norm,
        extent=(first - 0.5, first + n_units - 0.5, n_levels - 0.5, -0.5),
    )
    axes.set_yticks(range(0, n_levels, -(-n_levels // 8)))
    axes.grid(visible=False)
    return image


def grid_of(values: Map, widths: Sequence[int]) -> Map:
    """Values of all units as (level, unit), NaN where a level has fewer units."""
    grid = np.full((len(widths), max(widths)), np.nan)
    for level, part in enumerate(np.split(values, np.cumsum(widths)[:-1])):
        grid[level, : len(part)] = part
    return grid


def most_changed(before: Map, after: Map) -> int:
    """First of the `ZOOMED` neighbouring units that changed most, over all levels."""
    change = np.nan_to_num(np.abs(after - before)).sum(0)
    sums = np.convolve(change, np.ones(min(ZOOMED, len(change))), mode="valid")
    return int(sums.argmax())


def similarity_against_saliency(run: Run) -> Figure | None:
    """How much a unit's words changed against its saliency, at every stage."""
    arm = first_cut(run)
    if arm is None:
        return None
    of_seeds = [unit_values(run, entry["seed"], arm) for entry in run.results["seeds"]]
    if not all(of_seeds) or not np.isfinite(of_seeds[0][-1].similarity).any():
        return None
    n = len(of_seeds[0]) - 1
    figure, row = panels(n, min(2.6 + 2.4 * n, WIDTH + 2), 4.2)
    widths = [level["n_units"] for level in run.results["levels"]]
    levels = np.repeat(np.arange(len(widths)), widths)
    points: Any = None
    for k, axes in enumerate(row, 1):
        shown = of_seeds[0][k]
        points = axes.scatter(
            shown.saliency,
            shown.similarity,
            c=levels,
            s=9,
            alpha=0.7,
            cmap="viridis",
            vmin=-0.5,
            vmax=len(widths) - 0.5,
            linewidths=0,
            rasterized=True,
        )
        _bins(axes, [records[k] for records in of_seeds])
        axes.set_title(stage_name(shown.stage), fontsize=12)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.sharey(row[0])
        axes.tick_params(labelleft=k == 1)
        axes.set_xlabel("saliency")
    row[0].set_ylabel("similarity to the base\nmodel's words (cosine)")
    row[0].legend(loc="lower right", fontsize=10)
    bar = figure.colorbar(points, ax=row, label="level (0: embeddings)", fraction=0.03)
    every = -(-len(widths) // 8)
    bar.set_ticks(list(range(0, len(widths), every)))
    figure.suptitle(f"{_which(run, arm)} (dots)", fontsize=12)
    return figure


def _bins(axes: Axes, records: Sequence[UnitValues]) -> None:
    """Mean similarity in five bins of saliency, over seeds."""
    entries = []
    for record in records:
        place = np.digitize(record.saliency, BINS[1:-1])
        for k, (low, high) in enumerate(pairwise(BINS)):
            inside = (place == k) & ~np.isnan(record.saliency + record.similarity)
            if inside.any():
                mean = float(record.similarity[inside].mean())
                entries.append({"x": (low + high) / 2, "y": mean})
    style = {"color": VERMILLION, "marker": "o", "markeredgecolor": GREY}
    points = seed_points(entries, lambda e: e["x"], lambda e: e["y"])
    line(axes, points, "mean", style)
