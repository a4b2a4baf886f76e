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
    "relation_overlap": "Mean Jaccard index of the units of two facts, 0 to 1, by "
    "their relations, on the diagonal two facts of one relation, in one language; in "
    "parentheses that of random sets of the same sizes, drawn from all neurons.",
    "language_overlap": "Mean Jaccard index of the units of one fact in two languages, "
    "and of two facts of one relation; in parentheses that of random sets of the same "
    "sizes, drawn from all neurons.",
    "unit_activity": "Mean activation of the units of a fact where the object is "
    "predicted, by kind of prompt: the fact's own prompts (its head, asking for its "
    "tail), its head alone, prompts of its relation about other heads and tails, and "
    "prompts of other relations. Bars: 95 % bootstrap intervals over facts.",
}
_MOST = 40
"""Groups in one map; the first ones in the order of the data."""
_WITH_NUMBERS = 9
"""Groups up to which every cell has its number."""
BY_LANGUAGE = {
    "the same fact": "the same fact",
    "two facts of one relation": "two facts of one\nrelation",
}


def relation_overlap(run: Run) -> Figure | None:
    """A heat map of every two relations; None with one alone."""
    rows = [r for r in run.results.get("groups") or [] if r["by"] == "relation"]
    return _maps({"two facts": rows}) if len(_names(rows)) > 1 else None


def language_overlap(run: Run) -> Figure | None:
    """Heat maps of every two languages: of one fact, and of two; None without any."""
    rows = [r for r in run.results.get("groups") or [] if r["by"] == "language"]
    maps = {
        title: [row for row in rows if row["pairs"] == pairs]
        for pairs, title in BY_LANGUAGE.items()
    }
    return _maps(maps) if rows else None


def _maps(maps: Mapping[str, Sequence[Row]]) -> Figure:
    """Heat maps side by side, on one scale."""
    sizes = [_size(rows) for rows in maps.values()]
    ratios = [sum(size) for size in sizes]
    figure = Figure(
        figsize=(min(WIDTH, sum(ratios) + 1.2), 0.9 + max(ratios)), layout="constrained"
    )
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=ratios)[0]
    known = [row["jaccard"] for rows in maps.values() for row in rows]
    most = max((value for value in known if value is not None), default=0.0) or 1.0
    for axis, (title, rows) in zip(axes, maps.items(), strict=True):
        image = _map(axis, rows, most)
        axis.set_title(title, fontsize=11)
    figure.colorbar(image, ax=list(axes), label="mean Jaccard index", shrink=0.7)
    return figure


def _size(rows: Sequence[Row]) -> tuple[float, float]:
    """Inches of a map's side, and of the names beside and below it."""
    names = _names(rows)[:_MOST]
    if len(names) <= _WITH_NUMBERS:
        return 0.62 * len(names), 0.11 * max(len(short(name)) for name in names)
    return 0.14 * len(names), 0.065 * max(len(short(name)) for name in names)


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
    elif np.isfinite(chance).any():
        axes.set_xlabel(f"random sets: {np.nanmean(chance):.2g} (mean over cells)")
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
