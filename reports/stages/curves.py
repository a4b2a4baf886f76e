"""Figures of scores: at every stage, and at every share that is pruned."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import (
    BLACK,
    GREY,
    WIDTH,
    known_points,
    legend_beside,
    line,
    panels,
    seed_points,
)
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.relearning_figures import condition_look
from circuitcut.reports.stages.arms import (
    Names,
    arm_name,
    arms_of,
    names,
    stages_axis,
)
from circuitcut.reports.stages.tables import base_score
from circuitcut.reports.words import metric_label, percent, plural

Results = Mapping[str, Any]


def score_by_stage(run: Run) -> Figure | None:
    """Concept and retain score at every stage: a row a side, a column a share."""
    summary = run.results["summary"]
    if not summary:
        return None
    shares = list(dict.fromkeys(row["share"] for row in summary))
    width = min(5.5 + 3 * len(shares), WIDTH + 1)
    figure = Figure(figsize=(width, 6.8), layout="constrained")
    grid = figure.subplots(2, len(shares), sharex=True, sharey="row", squeeze=False)
    for row, side in zip(grid, SIDES, strict=True):
        for axes, share in zip(row, shares, strict=True):
            _stages(axes, run.results, share, side)
        row[0].set_ylabel(metric_label(run.results[f"{side}_metric"], width=24))
    epochs = run.config.get("epochs")
    for top, bottom, share in zip(*grid, shares, strict=True):
        top.set_title(f"{percent(share, 1)} of the units pruned" if share else "")
        each = f"\n({epochs:g} epochs each)" if isinstance(epochs, int | float) else ""
        bottom.set_xlabel(f"stage of retraining{each}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _stages(axes: Axes, results: Results, share: float, side: str) -> None:
    """One line an arm from the base model on, with bands."""
    rows = [row for row in results["summary"] if row["share"] == share]
    stages: list[int | None] = [None, *sorted({row["stage"] for row in rows})]
    base = base_score(results, side)
    for arm in arms_of(rows):
        entries = [row for row in rows if names(row) == arm]
        points = known_points(
            [
                (0, base, None),
                *(
                    (stages.index(e["stage"]), e[side], e.get(f"{side}_interval"))
                    for e in entries
                ),
            ]
        )
        line(axes, points, arm_name(arm), condition_look(entries[0]))
    metric = results[f"{side}_metric"]
    if metric.get("chance") and metric["higher_is_better"]:
        axes.axhline(metric["chance"], color=GREY, linestyle="--", label="a guess")
    if base is not None:
        axes.axhline(base, color=BLACK, linestyle=":", linewidth=1, label="base model")
    axes.set_xticks(range(len(stages)), stages_axis(stages))


def score_by_share(run: Run) -> Figure | None:
    """Concept and retain score against the share that is pruned, not retrained."""
    results = run.results
    rows = results["scan"]
    shares = sorted({row["share"] for row in rows})
    if len(shares) < 2:
        return None
    figure, row = panels(2, WIDTH + 1, 4.2)
    for axes, side in zip(row, SIDES, strict=True):
        _shares(axes, results, side)
        axes.set_xscale("log")
        axes.set_xticks(shares, [percent(s).removesuffix(" %") for s in shares])
        axes.minorticks_off()
        n_units = plural(results["n_units"], "hidden unit")
        axes.set_xlabel(f"share pruned (% of {n_units})")
        axes.set_ylabel(metric_label(results[f"{side}_metric"], width=34))
    legend_beside(row[1])
    return figure


def _shares(axes: Axes, results: Results, side: str) -> None:
    rows = results["scan"]
    name = results[f"{side}_metric"]["name"]
    for condition, holding in dict.fromkeys(
        (row["condition"], row["holding"]) for row in rows
    ):
        arm: Names = (0.0, condition, holding)
        entries = [row for row in rows if names(row)[1:] == arm[1:]]
        points = seed_points(
            entries,
            lambda entry: entry["share"],
            lambda entry: entry["heldout"].get(name),
        )
        line(axes, points, arm_name(arm), condition_look(entries[0]))
    base = base_score(results, side)
    if base is not None:
        axes.axhline(base, color=BLACK, linestyle=":", linewidth=1, label="base model")
    for k, share in enumerate(results["retrained"] or []):
        label = "retrained" if not k else ""
        axes.axvline(share, color=GREY, linestyle="-.", linewidth=1, label=label)


def shown_stages(rows: Sequence[Results]) -> list[int]:
    """The stages of some entries in order, without the base model."""
    return sorted({row["stage"] for row in rows if row["stage"] is not None})
