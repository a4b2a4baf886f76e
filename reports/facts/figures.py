"""Figures of knowledge neurons: overlap of groups of facts, activation by prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import GREY, VERMILLION, WIDTH, panels
from circuitcut.reports.facts.tables import PROMPTS, SETS, short
from circuitcut.reports.load import Run

Row = Mapping[str, Any]
CAPTIONS = {
    "unit_overlap": "Mean Jaccard index of the units of two facts, 0 to 1, in groups "
    "of facts; below it, in parentheses, that of random sets of the same sizes. By "
    "relation: two facts in one language, on the diagonal of one relation. By "
    "language: one fact in two languages, and two facts of one relation.",
    "unit_activity": "Mean activation of the units of a fact where the object is "
    "predicted, by kind of prompt: the fact's own prompts (its head, asking for its "
    "tail), its head alone, prompts of its relation about other heads and tails, and "
    "prompts of other relations. Bars: 95 % bootstrap intervals over facts.",
}
_MOST = 40
"""Groups in one map; the first ones in the order of the data."""
_WITH_NUMBERS = 9
"""Groups up to which every cell has its number."""
_TITLES = {
    ("relation", None): "by relation",
    ("language", "the same fact"): "by language: the same fact",
    ("language", "two facts of one relation"): "by language: two facts of one relation",
}


def unit_overlap(run: Run) -> Figure | None:
    """Heat maps: relations, and of several languages the languages."""
    rows = run.results.get("groups") or []
    maps = [
        (title, found)
        for (by, pairs), title in _TITLES.items()
        if len(
            found := [
                row for row in rows if row["by"] == by and pairs in (None, row["pairs"])
            ]
        )
        > 0
    ]
    names = [_names(found) for _, found in maps]
    if not any(len(of) > 1 for of in names):
        return None
    maps = [one for one, of in zip(maps, names, strict=True) if len(of) > 1]
    cells = [min(len(_names(found)), _MOST) for _, found in maps]
    height = 2.6 + max(0.62 * min(n, _WITH_NUMBERS) for n in cells)
    if max(cells) > _WITH_NUMBERS:
        height = max(height, 2.6 + 0.24 * max(cells))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=_ratios(cells))[0]
    known = [row["jaccard"] for _, found in maps for row in found]
    most = max((value for value in known if value is not None), default=0.0) or 1.0
    for axis, (title, found) in zip(axes, maps, strict=True):
        image = _map(axis, found, most)
        axis.set_title(title)
    figure.colorbar(image, ax=list(axes), label="mean Jaccard index")
    return figure


def _ratios(cells: Sequence[int]) -> list[float]:
    """Widths of the maps: many groups need more room, few still have their labels."""
    return [max(4.0, n if n <= _WITH_NUMBERS else 0.4 * n) for n in cells]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(
        dict.fromkeys(name for row in rows for name in (row["one"], row["other"]))
    )


def _map(axes: Axes, rows: Sequence[Row], most: float) -> Any:
    names = _names(rows)[:_MOST]
    table = np.full((len(names), len(names)), np.nan)
    chance = np.full_like(table, np.nan)
    for row in rows:
        if row["jaccard"] is None or not {row["one"], row["other"]} <= set(names):
            continue
        one, other = names.index(row["one"]), names.index(row["other"])
        table[one, other] = table[other, one] = row["jaccard"]
        chance[one, other] = chance[other, one] = row["random"]
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=most)
    axes.grid(False)
    labels = [short(name) for name in names]
    size = 11 if len(names) <= _WITH_NUMBERS else 7
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    if len(names) <= _WITH_NUMBERS:
        for (y, x), value in np.ndenumerate(table):
            if np.isfinite(value):
                text = f"{value:.3f}\n({chance[y, x]:.3f})"
                colour = "black" if value > 0.6 * most else "white"
                axes.text(
                    x, y, text, ha="center", va="center", fontsize=9, color=colour
                )
    return image


def unit_activity(run: Run) -> Figure | None:
    """Found and random units, on four kinds of prompt."""
    rows = run.results.get("activity") or []
    if not rows:
        return None
    kinds = [kind for kind in PROMPTS if any(row["prompts"] == kind for row in rows)]
    figure, (axes,) = panels(1, WIDTH, 3.8)
    for units, shift, colour in (("refined", -0.2, VERMILLION), ("random", 0.2, GREY)):
        of = {row["prompts"]: row for row in rows if row["units"] == units}
        places = [i + shift for i, kind in enumerate(kinds) if kind in of]
        means = [of[kind]["mean"] for kind in kinds if kind in of]
        ends = [of[kind]["interval"] for kind in kinds if kind in of]
        below = [max(0.0, m - low) for m, (low, _) in zip(means, ends, strict=True)]
        above = [max(0.0, high - m) for m, (_, high) in zip(means, ends, strict=True)]
        axes.bar(
            places,
            means,
            width=0.4,
            yerr=[below, above],
            capsize=3,
            color=colour,
            label=SETS[units],
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(kinds)), [PROMPTS[kind] for kind in kinds])
    axes.set_ylabel("mean activation")
    axes.set_title("Activation of the units of a fact")
    axes.legend(frameon=False)
    return figure
