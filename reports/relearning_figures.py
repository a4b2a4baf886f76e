"""Figures of relearning: scores by step, and recovery by number of examples."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.drawing import (
    BLACK,
    CONDITION_LOOKS,
    WIDTH,
    error_lengths,
    known_points,
    line,
    look,
    panels,
    size_axis,
)
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.words import condition_name, examples, limit_name, metric_label

Results = Mapping[str, Any]
RECOVERY_LABELS = {
    "ratio": "recovery: score of the cut model\n/ score of the uncut model",
    "normalised": "recovery: score regained\n/ score removed by the cut",
}
RECOVERY_RANGE = -0.5, 1.5
"""Wider intervals leave the axis."""


def relearning_curves(run: Run) -> Figure:
    """Scores against steps: a column a number of examples, a row a side of the task."""
    summary = run.results["summary"]
    limits = ordered_limits([e for e in summary if e["limit"] != 0] or summary)
    width = min(4 + 2.4 * len(limits), WIDTH + 1)
    figure = Figure(figsize=(width, 6.8), layout="constrained")
    grid = figure.subplots(2, len(limits), sharex=True, sharey="row", squeeze=False)
    for row, side in zip(grid, SIDES, strict=True):
        for axes, limit in zip(row, limits, strict=True):
            _scores_by_step(axes, summary, side, limit)
        row[0].set_ylabel(metric_label(run.results[f"{side}_metric"], width=24))
    for top, bottom, limit in zip(*grid, limits, strict=True):
        of_limit = [e for e in summary if e["limit"] == limit]
        step, seen = max((e["step"], e["examples"]) for e in of_limit)
        top.set_title(examples(limit).replace("concept ", "concept\n"))
        bottom.set_xlabel(
            f"optimiser step\n(by step {step:,}: {seen:,} training\n"
            "examples, with repeats)"
        )
    handles, labels = grid[0][0].get_legend_handles_labels()
    ncols = max(1, min(len(labels), int(width / 2.6)))
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols)
    return figure


def _scores_by_step(
    axes: Axes, summary: Sequence[Results], side: str, limit: int | None
) -> None:
    """One line a condition; those without any concept example stand in every panel."""
    shown = [entry for entry in summary if entry["limit"] in (limit, 0)]
    for name, group in by_condition(shown).items():
        points = known_points(
            (e["step"], e[side], e.get(f"{side}_interval")) for e in group
        )
        line(axes, points, name, condition_look(group[0]))
    size_axis(axes, [entry["step"] for entry in summary], 7)


def recovery_by_examples(run: Run) -> Figure | None:
    """Recovery at the end of the run against the number of training examples."""
    entries = run.results["recovery"]
    if not entries:
        return None
    figure, row = panels(2, WIDTH, 4.6)
    for axes, kind in zip(row, RECOVERY_LABELS, strict=True):
        _recovery(axes, entries, kind)
    handles = {
        label: handle
        for axes in row
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=3
    )
    return figure


def _recovery(axes: Axes, entries: Sequence[Results], kind: str) -> None:
    """One series a condition, in `RECOVERY_RANGE`; undefined ones in the title."""
    limits = ordered_limits(entries)
    groups = by_condition(entries)
    undefined: list[str] = []
    for k, (name, group) in enumerate(groups.items()):
        last = {entry["limit"]: entry["points"][-1] for entry in group}
        aside = 0.08 * (k - (len(groups) - 1) / 2)
        points = known_points(
            (x + aside, last[limit][kind], last[limit].get(f"{kind}_interval"))
            for x, limit in enumerate(limits)
            if limit in last
        )
        if not points:
            undefined.append(name)
            continue
        axes.errorbar(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            error_lengths(points),
            label=name,
            capsize=3,
            **condition_look(group[0]),
        )
    if undefined:
        axes.set_title(fill(f"not defined: {', '.join(undefined)}", 44))
    axes.axhline(1, color=BLACK, linestyle=":", label="1: fully recovered")
    axes.set_xticks(range(len(limits)), [limit_name(limit) for limit in limits])
    axes.set_xlim(-0.5, len(limits) - 0.5)
    low, high = axes.get_ylim()
    least, most = RECOVERY_RANGE
    axes.set_ylim(max(min(low, 0.0), least), min(high + 0.05, most))
    axes.set_xlabel("concept examples fine-tuned on")
    axes.set_ylabel(RECOVERY_LABELS[kind])


def ordered_limits(entries: Sequence[Results]) -> list[int | None]:
    """Numbers of concept examples, all (None) last."""
    limits = {entry["limit"] for entry in entries}
    return sorted(limits, key=lambda limit: float("inf") if limit is None else limit)


def by_condition(entries: Sequence[Results]) -> dict[str, list[Results]]:
    """Entries by the name of their condition, in order."""
    groups: dict[str, list[Results]] = {}
    for entry in entries:
        groups.setdefault(condition_name(entry), []).append(entry)
    return groups


def condition_look(entry: Results) -> dict[str, Any]:
    """Colour, mark and line of a condition; dashed where the cut was written once."""
    place = CONDITION_LOOKS.get(entry["condition"], len(CONDITION_LOOKS))
    return look(place, dashed=entry["holding"] == "one_shot")
