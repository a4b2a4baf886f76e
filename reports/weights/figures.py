"""Figures of a classification by weights, layer by layer."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from circuitcut.reports.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    SKY,
    VERMILLION,
    WIDTH,
    layer_ticks,
    legend_beside,
    look,
    panels,
)
from circuitcut.reports.load import Run
from circuitcut.reports.weights.tables import COSINES, NORMS, REGIONS
from circuitcut.storage.atomic import read_tensors
from circuitcut.storage.errors import UserError

SILVER = "#BDBDBD"
UNITS_FILE = "units.safetensors"
CLASS_LOOKS = {
    "strengthening": (VERMILLION, "o"),
    "conditional strengthening": (ORANGE, "^"),
    "proportional change": (GREEN, "D"),
    "weakening": (BLUE, "s"),
    "conditional weakening": (SKY, "v"),
    "orthogonal output": (SILVER, "."),
}
"""Class without `atypical` -> its colour and mark; drawn from last to first."""
MOST_COLUMNS = 6
N_CELLS = 50
"""Cells of a density on each side."""


def class_shares(run: Run) -> Figure:
    """Shares of the classes over depth, and their numbers on a logarithmic axis."""
    layers = run.results["layers"]
    names = [name for name in CLASS_LOOKS if name in layers[0]["half_coarse"]]
    figure, (left, right) = panels(2, WIDTH, 4.4)
    places = range(len(layers))
    bottom = np.zeros(len(layers))
    for name in names:
        numbers = np.array([layer["half_coarse"][name] for layer in layers])
        shares = 100 * numbers / [layer["n_units"] for layer in layers]
        colour, mark = CLASS_LOOKS[name]
        left.bar(places, shares, 0.9, bottom, color=colour, label=name)
        bottom = bottom + shares
        right.plot(places, numbers, color=colour, marker=mark, markersize=5)
    left.set_ylabel("share of the layer's neurons (%)")
    left.set_ylim(0, 100)
    right.set_ylabel("neurons (0 at the foot)")
    right.set_yscale("symlog", linthresh=1, linscale=0.5)
    right.set_ylim(0, None)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    for axes in (left, right):
        layer_ticks(axes, _numbers(layers))
        axes.grid(False, axis="x")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def cosine_scatter(run: Run) -> Figure | None:
    """Every neuron by cos(w_in, w_out) and cos(w_gate, w_out), one panel a layer."""
    if not run.results["weights"]["gated"]:
        return None
    units, tau = _units(run), run.results["weights"]["tau"]
    classes = np.array(
        [name.removeprefix("atypical ") for name in run.results["weights"]["classes"]]
    )
    figure, grid = _grid(run)
    for layer, axes in enumerate(grid):
        here = units["layer"] == layer
        of_unit = classes[units["class"][here]]
        for name, (colour, _) in reversed(CLASS_LOOKS.items()):
            of_class = here.copy()
            of_class[here] = of_unit == name
            axes.scatter(
                units["in_out"][of_class],
                units["gate_out"][of_class],
                s=2 if name == "orthogonal output" else 4,
                color=colour,
                linewidths=0,
                rasterized=True,
            )
        for end in (-tau, tau):
            axes.axhline(end, color=GREY, linewidth=0.5)
            axes.axvline(end, color=GREY, linewidth=0.5)
    handles = [
        grid[0].scatter([], [], s=40, color=colour, label=name)
        for name, (colour, _) in CLASS_LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def cosine_density(run: Run) -> Figure | None:
    """Neurons in a cell of the same two cosines, one panel a layer."""
    if not run.results["weights"]["gated"]:
        return None
    units = _units(run)
    figure, grid = _grid(run)
    cells = np.linspace(-1, 1, N_CELLS + 1)
    image = None
    most = max(layer["n_units"] for layer in run.results["layers"]) / 20
    for layer, axes in enumerate(grid):
        here = units["layer"] == layer
        x, y = units["in_out"][here], units["gate_out"][here]
        counted, _, _ = np.histogram2d(x, y, bins=(cells, cells))
        shown = np.ma.masked_equal(counted.T, 0)
        image = axes.pcolormesh(
            cells, cells, shown, norm=LogNorm(1, most), cmap="viridis", rasterized=True
        )
        axes.grid(False)
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid), shrink=0.5, aspect=30, extend="max")
    bar.set_label("neurons in a cell")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return figure


def cosine_histograms(run: Run) -> Figure:
    """Distribution of every cosine in every layer."""
    layers, units = run.results["layers"], _units(run)
    names = [name for name in COSINES if name in units]
    figure, row = panels(len(names), WIDTH if len(names) > 1 else 6.0, 4.2)
    cells = np.linspace(-1, 1, 2 * N_CELLS + 1)
    for name, axes in zip(names, row, strict=True):
        counted = [
            np.histogram(units[name][units["layer"] == place], cells)[0]
            / layer["n_units"]
            for place, layer in enumerate(layers)
        ]
        shares = np.ma.masked_equal(100 * np.array(counted).T, 0)
        edges = np.arange(len(layers) + 1) - 0.5
        image = axes.pcolormesh(
            edges, cells, shares, norm=LogNorm(0.05, 30), cmap="viridis"
        )
        medians = [layer["quartiles"][name][2] for layer in layers]
        axes.plot(range(len(layers)), medians, color=VERMILLION, label="median")
        axes.set_title(COSINES[name], fontsize=12)
        axes.set_ylim((0, 1) if name == "gate_in" else (-1, 1))
        axes.grid(False)
        layer_ticks(axes, _numbers(layers), 8)
    row[0].set_ylabel("cosine")
    row[0].legend(loc="upper right")
    bar = figure.colorbar(image, ax=row[-1])
    bar.set_label("share of the layer's neurons (%)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return figure


def medians_by_model(run: Run) -> Figure:
    """Median cosines over depth, of this model and of those beside it."""
    results = run.results
    of_this = {key: results["weights"][key] for key in ("revision", "convention")}
    models = [{**results, **of_this}]
    models += results["beside"]
    names = list(results["total"]["bins"])
    figure, row = panels(len(names), WIDTH if len(names) > 1 else 6.0, 3.8)
    for place, model in enumerate(models):
        layers = model["layers"]
        depth = [100 * k / max(len(layers) - 1, 1) for k in range(len(layers))]
        for name, axes in zip(names, row, strict=True):
            if name in layers[0]["quartiles"]:
                medians = [layer["quartiles"][name][2] for layer in layers]
                axes.plot(depth, medians, markersize=4, **look(place))
                if len(models) == 1:
                    low, high = (
                        [layer["quartiles"][name][k] for layer in layers]
                        for k in (1, 3)
                    )
                    axes.fill_between(
                        depth, low, high, color=PALETTE[0], alpha=0.15, linewidth=0
                    )
    for name, axes in zip(names, row, strict=True):
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_title(f"median {COSINES[name]}", fontsize=12)
        axes.set_xlabel("depth (%; 0: first layer)")
    if len(models) > 1:
        handles = [
            row[0].plot([], [], label=_model_name(model), **look(place))[0]
            for place, model in enumerate(models)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def norms_by_layer(run: Run) -> Figure:
    """Median norm of every vector over depth, with quartiles."""
    layers = run.results["layers"]
    names = [name for name in NORMS if name in layers[0]["quartiles"]]
    figure, row = panels(len(names), WIDTH, 3.6)
    places = range(len(layers))
    for name, axes in zip(names, row, strict=True):
        low, median, high = (
            [layer["quartiles"][name][k] for layer in layers] for k in (1, 2, 3)
        )
        axes.plot(places, median, color=BLUE, marker="o", markersize=4)
        axes.fill_between(places, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.set_title(NORMS[name], fontsize=12)
        axes.set_ylim(0, None)
        layer_ticks(axes, _numbers(layers), 8)
    row[0].set_ylabel("norm: median, quartiles")
    return figure


def outside_by_layer(run: Run) -> Figure:
    """Share of neurons with a cosine outside each region of chance, over depth."""
    layers, beta = run.results["layers"], run.results["beta"]
    names = list(run.results["total"]["bins"])
    figure, row = panels(len(names), WIDTH if len(names) > 1 else 6.0, 4.0)
    places = range(len(layers))
    for name, axes in zip(names, row, strict=True):
        for k, region in enumerate(REGIONS):
            shares = [
                100 * layer["outside"][region][name] / layer["n_units"]
                for layer in layers
            ]
            axes.plot(places, shares, label=REGIONS[region], markersize=4, **look(k))
        chance = 100 * beta["alpha"]
        axes.axhline(chance, color=GREY, linestyle=":", label=f"chance: {chance:g} %")
        axes.set_title(COSINES[name], fontsize=12)
        axes.set_ylim(0, 100)
        layer_ticks(axes, _numbers(layers), 8)
    row[0].set_ylabel("neurons outside (%)")
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def change_by_layer(run: Run) -> Figure | None:
    """Classes along a training series, and how far vectors turn in it."""
    series, change = run.results["series"], run.results["change"]
    if not change:
        return None
    figure, (left, right) = panels(2, WIDTH, 4.4)
    for name in [n for n in CLASS_LOOKS if n in series[0]["half_coarse"]]:
        colour, mark = CLASS_LOOKS[name]
        numbers = [entry["half_coarse"][name] for entry in series]
        left.plot(
            range(len(series)),
            numbers,
            color=colour,
            marker=mark,
            label=name,
        )
    left.set_xticks(range(len(series)), [entry["revision"] for entry in series])
    left.tick_params(axis="x", rotation=30 if len(series) > 3 else 0)
    left.set_xlabel("revision")
    left.set_yscale("symlog", linthresh=1, linscale=0.5)
    left.set_ylim(0, None)
    left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    left.set_ylabel("neurons (0 at the foot)")
    figure.legend(loc="outside upper center", ncols=3)
    titles = {"gate": "w_gate", "w_in": "w_in", "w_out": "w_out"}
    for place, name in enumerate(change[0]["quartiles"]):
        low, median, high = (
            [e["quartiles"][name][k] for e in change] for k in (1, 2, 3)
        )
        style = look(place)
        right.plot(
            range(len(change)), median, label=titles[name], markersize=4, **style
        )
        right.fill_between(
            range(len(change)), low, high, color=style["color"], alpha=0.15, linewidth=0
        )
    layer_ticks(right, _numbers(change), 10)
    right.set_ylabel("cosine, first to last revision")
    right.set_ylim(min(0.0, right.get_ylim()[0]), 1.02)
    legend_beside(right)
    return figure


def _grid(run: Run) -> tuple[Figure, Sequence[Axes]]:
    """Square panels for all layers with the axes of both cosines."""
    layers = run.results["layers"]
    n_columns = min(len(layers), MOST_COLUMNS)
    n_rows = ceil(len(layers) / n_columns)
    side = WIDTH / MOST_COLUMNS
    size = (max(n_columns * side, 6.0), n_rows * side + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    grid = list(every.flat)
    for layer, axes in enumerate(grid[: len(layers)]):
        axes.set_title(f"layer {layer}", fontsize=10, pad=3)
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.tick_params(labelsize=9)
    for axes in grid[len(layers) :]:
        axes.remove()
    figure.supxlabel(COSINES["in_out"], fontsize=12)
    figure.supylabel(COSINES["gate_out"], fontsize=12)
    return figure, grid[: len(layers)]


def _units(run: Run) -> dict[str, np.ndarray]:
    """Cosines, classes and layers of all neurons."""
    return units_of(run.path, gated=run.results["weights"]["gated"])


def units_of(folder: Path, *, gated: bool) -> dict[str, np.ndarray]:
    """The numbers of every neuron that `weight_classes.py` kept, (unit,) by name.

    Raises:
        UserError: When the file is damaged or lacks one.
    """
    path = folder / UNITS_FILE
    tensors = read_tensors(path)
    needed = ["layer", "class", "in_out", *(["gate_in", "gate_out"] if gated else [])]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; make the run again")
    shape = tensors["layer"].shape
    for name in needed:
        if tensors[name].dim() != 1 or tensors[name].shape != shape:
            raise UserError(
                f"{path} must hold as many of {name} as of layer, got "
                f"{tuple(tensors[name].shape)} and {tuple(shape)}; make the run again"
            )
    return {name: tensors[name].numpy() for name in needed}


def _numbers(layers: Sequence[Mapping[str, Any]]) -> dict[int, int | str]:
    return {place: layer["layer"] for place, layer in enumerate(layers)}


def _model_name(model: Mapping[str, Any]) -> str:
    parts = [model["model"], model.get("revision"), model["convention"]]
    return ", ".join(part for part in parts if part)
