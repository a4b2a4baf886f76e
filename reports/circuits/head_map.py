"""Which heads a mask ablates, in a map of layers by heads, coloured by their scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuitcut.reports.drawing import LIGHT_GREY, VERMILLION, WIDTH, layer_ticks
from circuitcut.reports.load import Run
from circuitcut.reports.words import count_of

Results = Mapping[str, Any]
MOST_TICKS = 16
ENDS = 1.0, 99.0
"""Percentiles of the scores at the ends of the colour scale."""


def heads_by_layer(run: Run) -> Figure | None:
    """A column a layer, a row a head; a cross marks each ablated head."""
    heads = run.results.get("heads")
    if not heads:
        return None
    layers = heads["layers"]
    n_heads = max(layer["n_heads"] for layer in layers)
    cell = min(0.5, (WIDTH - 2.4) / len(layers), 7.0 / n_heads)
    size = min(WIDTH, 3.4 + cell * len(layers)), 1.7 + max(cell * n_heads, 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    scores = score_table(layers, n_heads)
    known = scores[np.isfinite(scores)]
    if known.size:
        low, high = np.percentile(known, ENDS)
        _scores(figure, axes, scores, Normalize(low, high))
    else:
        axes.imshow(np.full_like(scores, 0.0), cmap="Greys", aspect="auto")
    places = [(x, head) for x, layer in enumerate(layers) for head in layer["ablated"]]
    _crosses(figure, axes, places, 72 * cell)
    _labels(axes, layers, n_heads)
    n_units = sum(layer["n_heads"] for layer in layers)
    axes.set_title(f"{count_of(len(places), n_units)} heads ablated")
    return figure


def score_table(
    layers: Sequence[Results], n_heads: int
) -> Float[np.ndarray, "head layer"]:
    """Scores as an array; NaN where there is no head, or no score of it."""
    table = np.full((n_heads, len(layers)), np.nan)
    for x, layer in enumerate(layers):
        for head, score in enumerate(layer["scores"] or []):
            table[head, x] = np.nan if score is None else score
    return table


def _scores(
    figure: Figure,
    axes: Axes,
    scores: Float[np.ndarray, "head layer"],
    norm: Normalize,
) -> None:
    axes.set_facecolor(LIGHT_GREY)
    image = axes.imshow(scores, cmap="cividis", norm=norm, aspect="auto")
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.02)
    bar.set_label("score of the ranking\n(lowest: ablated first)")


def _crosses(
    figure: Figure, axes: Axes, places: Sequence[tuple[int, int]], cell: float
) -> None:
    """A cross in a white disc at each place; `cell` is its width in points."""
    area = min(0.55 * cell, 11.0) ** 2
    for x, y in places:
        axes.scatter(x, y, s=1.9 * area, color="white", linewidths=0, zorder=3)
        axes.scatter(
            x, y, s=0.6 * area, color=VERMILLION, marker="x", linewidths=2, zorder=4
        )
    mark: Any = {"color": VERMILLION, "marker": "x", "markeredgewidth": 2}
    handle = Line2D([], [], linestyle="", label="ablated", **mark)
    # below the axes: above them it would lie on the title of a model of few layers
    figure.legend(handles=[handle], loc="outside lower center")


def _labels(axes: Axes, layers: Sequence[Results], n_heads: int) -> None:
    layer_ticks(axes, {x: layer["layer"] for x, layer in enumerate(layers)}, MOST_TICKS)
    every = -(-n_heads // MOST_TICKS)
    axes.set_yticks(range(0, n_heads, every))
    axes.set_ylabel("head")
    axes.grid(False)
