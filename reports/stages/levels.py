"""Figures by level: saliency, similarity, polysemantic units, redistribution."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import (
    BLACK,
    GREY,
    MARKS,
    VERMILLION,
    WIDTH,
    Known,
    error_lengths,
    known_points,
)
from circuitcut.reports.load import Run
from circuitcut.reports.stages.arms import (
    Names,
    arm_name,
    measured,
    names,
    shown_arms,
    stage_name,
)
from circuitcut.reports.stages.curves import shown_stages

Results = Mapping[str, Any]
LABELS = {
    "saliency": "mean saliency\n(0 to 1)",
    "similarity": "mean similarity\nto the base model's\nwords (cosine)",
    "effect": "mean effect (standard\ndeviations of the unit)",
    "concept_units": "units that respond to\nthe concept's words (%)",
    "polysemantic": "units that respond to the\nconcept and others (%)",
}
PERCENT = ("salient_share", "concept_units", "polysemantic")
"""Measures that are drawn in percent."""
ROOM = 0.35
"""Part of the range of the means that an axis shows beyond them."""
EVEN = "share of\nall units"
MOST_TICKS, FEW_TICKS = 16, 6
"""Labels of levels in a wide panel, and in one of several narrow ones."""
MOST_BARS = 12
"""Levels up to which a level has a group of bars; more are drawn as lines."""


def saliency_by_level(run: Run) -> Figure | None:
    """Saliency, effect and similarity of words at every level and stage."""
    return _by_level(run.results, ("saliency", "effect", "similarity"))


def polysemantic_by_level(run: Run) -> Figure | None:
    """Shares of units that respond to the concept's words, and to others as well."""
    return _by_level(run.results, ("concept_units", "polysemantic"))


def stage_colours(stages: Sequence[int | None]) -> dict[int | None, Any]:
    """Black for the base model, grey after pruning, light to dark blue for stages."""
    numbered = [stage for stage in stages if stage]
    shades = colormaps["viridis"]
    colours: dict[int | None, Any] = {None: BLACK, 0: GREY}
    for k, stage in enumerate(numbered):
        colours[stage] = shades(0.85 - 0.75 * k / max(1, len(numbered) - 1))
    return colours


def _by_level(results: Results, wanted: Sequence[str]) -> Figure | None:
    """One row a measure, one column an arm, one line a stage with its intervals."""
    rows, arms = results["stages"], shown_arms(results)
    measures = [m for m in wanted if any(row.get(m) is not None for row in rows)]
    if not measures or not arms:
        return None
    size = (min(3.6 + 2.2 * len(arms), WIDTH + 2), 1.2 + 2.3 * len(measures))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(measures), len(arms), sharex=True, sharey="row", squeeze=False
    )
    n_ticks = MOST_TICKS if len(arms) <= 2 else FEW_TICKS
    for line_of_axes, measure in zip(grid, measures, strict=True):
        for axes, arm in zip(line_of_axes, arms, strict=True):
            _levels(axes, results, arm, measure)
            _level_axis(axes, len(results["levels"]), n_ticks)
        line_of_axes[0].set_ylabel(LABELS[measure])
        _fit(line_of_axes[0], _means(results, arms, measure))
    for top, bottom, arm in zip(grid[0], grid[-1], arms, strict=True):
        top.set_title(arm_name(arm).replace(", ", "\n"), fontsize=12)
        bottom.set_xlabel("level (0: embeddings)")
    handles, labels = _every_label(grid.flat)
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _every_label(grid: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of the legend, in order of first use over all panels."""
    found: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    last = {EVEN: found.pop(EVEN)} if EVEN in found else {}
    first = {name: found[name] for name in ("base", "pruned") if name in found}
    in_order = first | found | last
    return list(in_order.values()), list(in_order)


def _levels(axes: Axes, results: Results, arm: Names, measure: str) -> None:
    """One line a stage; points are moved sideways so that their bars can be seen."""
    stages = _stages_of(results, arm)
    colours = stage_colours(stages)
    for k, stage in enumerate(stages):
        points = _points(results, arm, stage, measure)
        aside = 0.5 * ((k + 0.5) / len(stages) - 0.5)
        if points:
            axes.errorbar(
                [x + aside for x, _, _ in points],
                [y for _, y, _ in points],
                _bars(points),
                color=colours[stage],
                marker=MARKS[k % len(MARKS)],
                markersize=5,
                linewidth=1.2,
                linestyle="--" if stage == 0 else "-",
                capsize=2,
                label=stage_name(stage),
            )


def redistribution(run: Run) -> Figure | None:
    """Where the salient units are: the base model against every stage."""
    results = run.results
    arms = [arm for arm in shown_arms(results) if arm[1] == "cut"]
    arms += [arm for arm in shown_arms(results) if arm[1] != "cut"]
    if not arms:
        return None
    n_rows = math.ceil(len(arms) / 2)
    figure = Figure(figsize=(WIDTH + 1, 0.8 + 2.6 * n_rows), layout="constrained")
    grid = figure.subplots(
        n_rows, min(2, len(arms)), sharex=True, sharey=True, squeeze=False
    )
    panels_of = list(grid.flat)
    for axes in panels_of[len(arms) :]:
        axes.remove()
    for axes, arm in zip(panels_of, arms, strict=False):
        _shares(axes, results, arm)
        axes.set_title(arm_name(arm))
        axes.set_xlabel("level (0: embeddings)")
        axes.tick_params(labelbottom=True)
    highest = max(_means(results, arms, "salient_share"), default=0.0)
    for axes in grid[:, 0]:
        axes.set_ylabel("salient units (%)")
        axes.set_ylim(0, (1 + ROOM) * highest or 1.0)
    handles, labels = _every_label(panels_of[: len(arms)])
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _shares(axes: Axes, results: Results, arm: Names) -> None:
    """Bars in groups by level, or lines where there are many levels."""
    levels = results["levels"]
    if len(levels) > MOST_BARS:
        _levels(axes, results, arm, "salient_share")
    else:
        stages = _stages_of(results, arm)
        colours = stage_colours(stages)
        width = 0.84 / len(stages)
        for k, stage in enumerate(stages):
            points = _points(results, arm, stage, "salient_share")
            axes.bar(
                [x - 0.42 + (k + 0.5) * width for x, _, _ in points],
                [y for _, y, _ in points],
                width,
                yerr=_bars(points),
                error_kw={"linewidth": 0.8, "capsize": 1.5, "ecolor": VERMILLION},
                color=colours[stage],
                label=stage_name(stage),
            )
        axes.grid(visible=False, axis="x")
    _level_axis(axes, len(levels), MOST_TICKS)
    for k, level in enumerate(levels):
        even = 100 * level["n_units"] / results["n_units"]
        ends = (level["level"] - 0.45, level["level"] + 0.45)
        label = EVEN if not k else ""
        axes.plot(ends, (even, even), ":", color=BLACK, linewidth=1.2, label=label)


def _bars(points: Sequence[Known]) -> Any:
    """Lengths of error bars; None where no interval is known."""
    known = any(high > low for _, _, (low, high) in points)
    return error_lengths(points) if known else None


def _fit(axes: Axes, values: Sequence[float]) -> None:
    """Show all values, and of their intervals what lies near them."""
    if values:
        low, high = min(values), max(values)
        room = ROOM * (high - low) or 1.0
        axes.set_ylim(max(low - room, min(0.0, low - 0.05)), high + room)


def _means(results: Results, arms: Sequence[Names], measure: str) -> list[float]:
    """Every mean that is drawn of these arms."""
    return [
        y
        for arm in arms
        for stage in _stages_of(results, arm)
        for _, y, _ in _points(results, arm, stage, measure)
    ]


def _stages_of(results: Results, arm: Names) -> list[int | None]:
    rows = [row for row in measured(results) if names(row) == arm]
    return [None, *shown_stages(rows)]


def _points(
    results: Results, arm: Names, stage: int | None, measure: str
) -> list[Known]:
    """A measure by level at a stage of an arm, with its interval over seeds."""
    rows = [
        row
        for row in results["stages"]
        if row["stage"] == stage
        and (names(row) == arm or (stage is None and row["condition"] == "base"))
    ]
    times = 100 if measure in PERCENT else 1
    points = known_points(
        (row["level"], row.get(measure), row.get(f"{measure}_interval"))
        for row in sorted(rows, key=lambda row: row["level"])
    )
    return [(x, times * y, (times * low, times * high)) for x, y, (low, high) in points]


def _level_axis(axes: Axes, n_levels: int, n_ticks: int) -> None:
    """At most so many ticks; up to ten levels have one digit each, and a tick each."""
    every = 1 if n_levels <= 10 else -(-n_levels // n_ticks)
    axes.set_xticks(range(0, n_levels, every))
    axes.set_xlim(-0.6, n_levels - 0.4)
