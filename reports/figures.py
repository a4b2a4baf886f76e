"""Figures of a run: masks by layer, training, scores by size, relearning, layers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from circuitcut.reports.drawing import (
    BLACK,
    BLUE,
    CONDITION_LOOKS,
    GREEN,
    PALETTE,
    STYLE,
    VERMILLION,
    WIDTH,
    Known,
    error_lengths,
    known_points,
    layer_name,
    legend_beside,
    level_names,
    line,
    look,
    metric_label,
    panels,
    png,
    size_axis,
)
from circuitcut.reports.load import SIDES, Run
from circuitcut.reports.tables import (
    condition_name,
    limit_name,
    named_scores,
    ranking_name,
)
from circuitcut.storage.atomic import write_bytes

Results = Mapping[str, Any]


def draw_all(run: Run) -> dict[str, Path]:
    """Draw every figure that the run has data for, as PNG in `figures/`, by name."""
    written = {}
    for name, draw in FIGURES[run.kind].items():
        path = _save(draw, run, run.path / "figures" / f"{name}.png")
        if path is not None:
            written[name] = path
    return written


def size_curve(results: Results, folder: Path) -> Path | None:
    """Draw `score_by_size` of results not in a file yet; None without sizes."""
    run = Run(folder, str(results["kind"]), {}, {}, results, [])
    return _save(score_by_size, run, folder / "score_by_size.png")


def mask_by_layer(run: Run) -> Figure:
    """Units ablated in each layer, one panel a kind of unit."""
    sites = run.results["per_site"]
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    figure, row = panels(len(kinds), min(3 + 4 * len(kinds), WIDTH), 3.6)
    for axes, kind in zip(row, kinds, strict=True):
        layers = sorted({site["layer"] for site in sites if site["kind"] == kind})
        ablated = [_total(sites, kind, layer, "n_ablated") for layer in layers]
        units = [_total(sites, kind, layer, "n_units") for layer in layers]
        bars = axes.bar(range(len(layers)), ablated, color=VERMILLION, width=0.7)
        axes.bar_label(bars, [f"{n:,}" if n else "" for n in ablated])
        names = level_names(sites)
        axes.set_xticks(range(len(layers)), [names[layer] for layer in layers])
        axes.set_xlabel("layer")
        axes.set_ylabel(f"{kind} ablated")
        axes.set_title(f"{sum(ablated):,} of {sum(units):,} {kind}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.15)
        axes.grid(False, axis="x")
    return figure


def scores_by_method(run: Run) -> Figure | None:
    """Dot plot of the scores of the uncut model, the cut and controls of its size."""
    scores = run.results["scores"]
    if set(scores) <= {"uncut"}:
        return None
    intervals = dict(named_scores(run.results.get("intervals", {})))
    named = [
        (name, values, intervals.get(name, {})) for name, values in named_scores(scores)
    ]
    figure, row = panels(2, WIDTH, 1.4 + 0.4 * len(named))
    places = list(range(len(named)))[::-1]
    for axes, side in zip(row, SIDES, strict=True):
        metric = run.results[f"{side}_metric"]
        for place, (name, values, known) in zip(places, named, strict=True):
            value = values.get(metric["name"])
            if value is None:
                continue
            points = known_points([(place, value, known.get(metric["name"]))])
            colour = VERMILLION if name.startswith("cut") else BLUE
            bars = error_lengths(points)
            axes.errorbar(value, place, xerr=bars, fmt="o", color=colour, capsize=3)
        axes.set_yticks(places, [name for name, _, _ in named])
        axes.set_xlabel(metric_label(side, metric))
        axes.set_ylim(-0.6, len(named) - 0.4)
    row[1].tick_params(labelleft=False)
    return figure


def _moves(run: Run, name: str) -> bool:
    """Whether a number is known and differs between steps by more than rounding."""
    found = [entry[name] for entry in run.metrics if entry.get(name) is not None]
    largest = max(map(abs, found), default=0.0)
    return bool(found) and max(found) - min(found) > 1e-4 * largest


def training_curves(run: Run) -> Figure | None:
    """Losses and the number of ablated units along mask training."""
    names = sorted({name for entry in run.metrics for name in entry} - {"step"})
    groups = {
        "loss or objective (nats)": [
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
            known = [e for e in run.metrics if e.get(name) is not None]
            axes.plot(
                [entry["step"] for entry in known],
                [entry[name] for entry in known],
                color=PALETTE[k % len(PALETTE)],
                linestyle=("-", "--", ":")[k % 3],
                label=name.replace("_", " "),
            )
        axes.set_xlabel("step of mask training")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend()
    return figure


def score_by_size(run: Run) -> Figure | None:
    """Concept and retain score against the number of ablated units, by method."""
    curve = run.results.get("curve") or []
    sizes = {entry["n_ablated"] for entry in curve}
    if len(sizes) < 2:
        return None
    figure, row = panels(2, WIDTH, 4.2)
    methods = list(dict.fromkeys(entry["method"] for entry in curve))
    for axes, side in zip(row, SIDES, strict=True):
        metric = run.results[f"{side}_metric"]
        for k, method in enumerate(methods):
            points = _size_points(curve, method, metric["name"])
            line(axes, points, method.replace("_", " "), look(k))
        uncut = run.results["scores"].get("uncut", {}).get(metric["name"])
        if uncut is not None:
            axes.axhline(uncut, color=BLACK, linestyle=":", label="uncut model")
        size_axis(axes, sorted(sizes))
        axes.set_xlabel("units ablated")
        axes.set_ylabel(metric_label(side, metric))
    legend_beside(row[1])
    return figure


def faithfulness_curves(run: Run) -> Figure:
    """Faithfulness, score and KL of circuits, with and without them, by size."""
    results = run.results
    curve, metric = results["curve"], results["concept_metric"]
    shown: list[tuple[str, Callable[[Results], float | None]]] = [
        ("faithfulness of the circuit", lambda e: e["faithfulness"]),
        ("faithfulness without it", lambda e: e["without"]["faithfulness"]),
        (metric_label("concept", metric), lambda e: e["scores"].get(metric["name"])),
        ("KL to the uncut model (nats)", lambda e: e["scores"].get("kl_concept")),
    ]
    figure = Figure(figsize=(WIDTH, 8.0), layout="constrained")
    grid = list(figure.subplots(2, 2).flat)
    methods = list(dict.fromkeys(entry["method"] for entry in curve))
    for axes, (label, value) in zip(grid, shown, strict=True):
        for name in dict.fromkeys(map(ranking_name, curve)):
            own = [entry for entry in curve if ranking_name(entry) == name]
            style = look(
                methods.index(own[0]["method"]), dashed=own[0]["order"] == "absolute"
            )
            points = _seed_points(own, lambda e: 100 * e["fraction"], value)
            line(axes, points, name, style)
        axes.set_xscale("log")
        axes.set_xlabel(f"{' and '.join(results['units'])} in the circuit (%)")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(label)
    for axes in grid[:2]:
        axes.axhline(1, color=BLACK, linestyle=":", label="whole model")
        axes.axhline(0, color=BLACK, linestyle="-", linewidth=0.8)
    legend_beside(grid[1])
    return figure


def relearning_curves(run: Run) -> Figure:
    """Scores against steps: a column a number of examples, a row a side of the task."""
    summary = run.results["summary"]
    limits = _limits([e for e in summary if e["limit"] != 0] or summary)
    figure = Figure(
        figsize=(min(4 + 2 * len(limits), WIDTH), 6.4), layout="constrained"
    )
    grid = figure.subplots(2, len(limits), sharex=True, sharey="row", squeeze=False)
    for row, side in zip(grid, SIDES, strict=True):
        for axes, limit in zip(row, limits, strict=True):
            # without any example of the concept: a reference for every number of them
            shown = [e for e in summary if e["limit"] in (limit, 0)]
            groups = _by_condition(shown)
            for name, group in groups.items():
                points = known_points(
                    (e["step"], e[side], e.get(f"{side}_interval")) for e in group
                )
                line(axes, points, name, _condition_look(group[0]))
            size_axis(axes, [entry["step"] for entry in summary], 7)
        row[0].set_ylabel(metric_label(side, run.results[f"{side}_metric"], width=22))
    for top, bottom, limit in zip(*grid, limits, strict=True):
        most = max(e["examples"] for e in summary if e["limit"] == limit)
        plural = "" if limit == 1 else "s"
        top.set_title(f"{limit_name(limit)} example{plural}")
        bottom.set_xlabel(f"step (the last\nis example {most:,})")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 3)
    )
    return figure


def recovery_by_examples(run: Run) -> Figure | None:
    """Recovery at the end of the run against the number of training examples."""
    entries = run.results["recovery"]
    if not entries:
        return None
    limits = _limits(entries)
    figure, row = panels(2, WIDTH, 4.2)
    for axes, kind in zip(row, ("ratio", "normalised"), strict=True):
        for k, (name, group) in enumerate(_by_condition(entries).items()):
            last = {entry["limit"]: entry["points"][-1] for entry in group}
            points = known_points(
                (x + 0.07 * k, last[limit][kind], last[limit].get(f"{kind}_interval"))
                for x, limit in enumerate(limits)
                if limit in last
            )
            axes.errorbar(
                [x for x, _, _ in points],
                [y for _, y, _ in points],
                error_lengths(points),
                label=name,
                capsize=3,
                **_condition_look(group[0]),
            )
        axes.axhline(1, color=BLACK, linestyle=":", label="fully recovered")
        axes.set_xticks(range(len(limits)), [limit_name(limit) for limit in limits])
        axes.set_xlim(-0.4, len(limits) - 0.4)
        axes.set_xlabel("training examples that hold the concept")
        axes.set_ylabel(f"{RECOVERY_NAMES[kind]}")
    legend_beside(row[1])
    return figure


RECOVERY_NAMES = {
    "ratio": "recovery: ratio to uncut",
    "normalised": "recovery: normalised",
}
REDISTRIBUTION_SERIES = {
    "top_before": ("top units before the cut", BLUE),
    "mask": ("ablated by the mask", BLACK),
    "top_after": ("top units after relearning", VERMILLION),
    "fresh_mask": ("fresh mask after relearning", GREEN),
}


def redistribution_by_layer(run: Run) -> Figure | None:
    """Where the concept's top units sit before the cut and after relearning."""
    chosen = _relearned_longest(run.results)
    if not chosen:
        return None
    present = [name for name in REDISTRIBUTION_SERIES if name in chosen[0][0]]
    kinds = list(dict.fromkeys(row["kind"] for row in chosen[0]))
    figure, row = panels(len(kinds), min(5 + 3 * len(kinds), WIDTH), 4)
    width = 0.8 / len(present)
    for axes, kind in zip(row, kinds, strict=True):
        layers = [entry["layer"] for entry in chosen[0] if entry["kind"] == kind]
        for k, name in enumerate(present):
            label, colour = REDISTRIBUTION_SERIES[name]
            axes.bar(
                [x - 0.4 + (k + 0.5) * width for x in range(len(layers))],
                [_mean_share(chosen, kind, layer, name) for layer in layers],
                width,
                color=colour,
                label=label,
            )
        axes.set_xticks(range(len(layers)), [layer_name(layer) for layer in layers])
        axes.set_xlabel(f"layer ({kind})")
        axes.grid(False, axis="x")
    row[0].set_ylabel("share of the chosen units (%)")
    legend_beside(row[-1])
    return figure


def probe_by_layer(run: Run) -> Figure | None:
    """How well a linear probe finds the concept in the hidden states of every level."""
    found = run.results.get("probe") or []
    if not found:
        return None
    figure, (axes,) = panels(1, 9, 3.8)
    for k, entry in enumerate(found):
        layers = [level["layer"] for level in entry["levels"]]
        name = entry["condition"].replace("_", " ")
        name += "" if entry.get("seed") is None else f" {entry['seed']}"
        style = look(CONDITION_LOOKS.get(entry["condition"], k))
        for key, kind in (("auc", "-"), ("control_auc", ":")):
            axes.plot(
                range(len(layers)),
                [level[key] for level in entry["levels"]],
                label=name if key == "auc" else f"{name}, shuffled labels",
                **style | {"linestyle": kind},
            )
        axes.set_xticks(range(len(layers)), [layer_name(layer) for layer in layers])
    axes.set_xlabel("layer")
    axes.set_ylabel("linear probe:\narea under the ROC curve")
    legend_beside(axes)
    return figure


Draw = Callable[[Run], Figure | None]
FIGURES: dict[str, dict[str, Draw]] = {
    "train_mask": {
        "scores_by_method": scores_by_method,
        "score_by_size": score_by_size,
        "mask_by_layer": mask_by_layer,
        "training_curves": training_curves,
    },
    "relearn": {
        "relearning_curves": relearning_curves,
        "recovery_by_examples": recovery_by_examples,
        "redistribution_by_layer": redistribution_by_layer,
        "probe_by_layer": probe_by_layer,
    },
    "evaluate": {"scores_by_method": scores_by_method, "score_by_size": score_by_size},
    "attribute": {"score_by_size": score_by_size},
    "import_mask": {"mask_by_layer": mask_by_layer},
    "faithfulness": {"faithfulness": faithfulness_curves},
}
"""Kind of run -> its figures in the order of the report."""


def _save(draw: Draw, run: Run, path: Path) -> Path | None:
    with matplotlib.rc_context(STYLE):
        figure = draw(run)
        if figure is None:
            return None
        write_bytes(path, png(figure))
    return path


def _total(sites: Sequence[Results], kind: str, layer: int, key: str) -> int:
    return sum(s[key] for s in sites if s["kind"] == kind and s["layer"] == layer)


def _limits(entries: Sequence[Results]) -> list[int | None]:
    limits = {entry["limit"] for entry in entries}
    return sorted(limits, key=lambda limit: float("inf") if limit is None else limit)


def _by_condition(entries: Sequence[Results]) -> dict[str, list[Results]]:
    groups: dict[str, list[Results]] = {}
    for entry in entries:
        groups.setdefault(condition_name(entry), []).append(entry)
    return groups


def _condition_look(entry: Results) -> dict[str, Any]:
    place = CONDITION_LOOKS.get(entry["condition"], len(CONDITION_LOOKS))
    return look(place, dashed=entry["holding"] == "one_shot")


def _size_points(curve: Sequence[Results], method: str, metric: str) -> list[Known]:
    """Scores at each size; their interval, or from lowest to highest seed."""
    return _seed_points(
        [entry for entry in curve if entry["method"] == method],
        lambda entry: entry["n_ablated"],
        lambda entry: entry["scores"].get(metric),
        lambda entry: entry.get("intervals", {}).get(metric),
    )


def _seed_points(
    entries: Sequence[Results],
    place: Callable[[Results], float],
    value: Callable[[Results], float | None],
    interval: Callable[[Results], Any] = lambda entry: None,
) -> list[Known]:
    """Mean over seeds at each place, from lowest to highest; of one, its interval."""
    points = []
    for x in sorted({place(entry) for entry in entries}):
        same = [entry for entry in entries if place(entry) == x]
        known = [each for entry in same if (each := value(entry)) is not None]
        if known:
            several = [min(known), max(known)]
            ends = several if len(known) > 1 else interval(same[0])
            points.append((x, sum(known) / len(known), ends))
    return known_points(points)


def _relearned_longest(results: Results) -> list[list[Results]]:
    """Layers of the cut relearned from most examples, one table a seed."""
    found = [
        entry
        for entry in results.get("after") or []
        if entry["condition"] == "cut" and "redistribution" in entry
    ]
    if not found:
        return []
    most = _limits(found)[-1]
    holding = next(entry["holding"] for entry in found if entry["limit"] == most)
    return [
        entry["redistribution"]["layers"]
        for entry in found
        if (entry["limit"], entry["holding"]) == (most, holding)
    ]


def _mean_share(
    tables: Sequence[Sequence[Results]], kind: str, layer: int, name: str
) -> float:
    shares = [
        entry[name]["share"] or 0.0
        for table in tables
        for entry in table
        if (entry["kind"], entry["layer"]) == (kind, layer)
    ]
    return 100 * sum(shares) / len(shares)
