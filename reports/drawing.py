"""How figures look: colours, lines with bands, points with bars, panels side by side.

Colours are those of Okabe & Ito (2008), "Color Universal Design", told apart with every
kind of colour vision; marks and line styles repeat what the colours say.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitcut.reports.words import layer_name

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#555555", "#D9D9D9"
PALETTE = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
CONDITION_LOOKS = {
    "cut": 0,
    "uncut": 1,
    "random": 3,
    "retain_only": 4,
    "never_learned": 2,
}
"""Places of the conditions in `PALETTE` and `MARKS`."""
MODEL_COLOURS = {
    "uncut": BLUE,
    "learned": VERMILLION,
    "attribution": GREY,
    "random": ORANGE,
}
"""First word of a model's name -> its colour."""
WIDTH = 11.0
"""Of a whole figure in inches."""
DPI, SHOWN_DPI = 150, 100
"""Pixels an inch in the file, and in the report where the screen has no more."""
STYLE: Any = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "savefig.dpi": DPI,
    "svg.hashsalt": "circuitcut",
}

Known = tuple[float, float, tuple[float, float]]
"""x, y and the ends of its interval, both y where none is known."""


def known_points(
    points: Iterable[tuple[float, float | None, Sequence[float | None] | None]],
) -> list[Known]:
    """The points whose y is defined, each with an interval."""
    known = []
    for x, y, interval in points:
        if y is not None:
            low, high = interval or (None, None)
            ends = (y, y) if low is None or high is None else (low, high)
            known.append((x, y, ends))
    return known


LEAST_SPAN = 0.01
"""Least part of its values that an axis covers."""


def panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `n` axes side by side; sizes of the whole in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    for axes in figure.axes:
        _show_no_rounding(axes)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure that `png` has drawn as SVG, the same bytes for the same figure."""
    figure.set_layout_engine(None)  # as `png` has laid it out
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _show_no_rounding(axes: Axes) -> None:
    """Widen an axis on which equal numbers would differ by their rounding alone."""
    for limits, widen in (
        (axes.get_xlim(), axes.set_xlim),
        (axes.get_ylim(), axes.set_ylim),
    ):
        low, high = min(limits), max(limits)
        least = LEAST_SPAN * max(abs(low), abs(high))
        if high - low < least:
            middle = (low + high) / 2
            widen(middle - least / 2, middle + least / 2)


def look(place: int, *, dashed: bool = False) -> dict[str, Any]:
    """Colour, mark and line of the series at a place of the palette."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKS[place % len(MARKS)],
        "linestyle": "--" if dashed else ("-", "-.")[place // len(PALETTE) % 2],
    }


def line(
    axes: Axes, points: Sequence[Known], label: str, style: Mapping[str, Any]
) -> None:
    """A line through the points, with a band between the ends of their intervals."""
    xs = [x for x, _, _ in points]
    axes.plot(xs, [y for _, y, _ in points], label=label, markersize=5, **style)
    lows, highs = ([ends[i] for _, _, ends in points] for i in (0, 1))
    axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def seed_points(
    entries: Sequence[Mapping[str, Any]],
    place: Callable[[Mapping[str, Any]], float],
    value: Callable[[Mapping[str, Any]], float | None],
    interval: Callable[[Mapping[str, Any]], Any] = lambda entry: None,
) -> list[Known]:
    """Mean over seeds at each place, from lowest to highest; of one, its interval."""
    points = []
    for x in sorted({place(entry) for entry in entries}):
        same = [entry for entry in entries if place(entry) == x]
        values = [y for entry in same if (y := value(entry)) is not None]
        if values:
            several = [min(values), max(values)]
            ends = several if len(values) > 1 else interval(same[0])
            points.append((x, sum(values) / len(values), ends))
    return known_points(points)


def error_lengths(points: Sequence[Known]) -> tuple[list[float], list[float]]:
    """Lengths of error bars below and above the points."""
    below = [max(y - low, 0.0) for _, y, (low, _) in points]
    return below, [max(high - y, 0.0) for _, y, (_, high) in points]


def legend_beside(axes: Axes) -> None:
    """The legend to the right of the axes, over nothing."""
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def size_axis(axes: Axes, values: Sequence[int], most: int = 8) -> None:
    """A logarithmic axis of whole numbers, 0 included, ticked at some of `values`."""
    if min(values) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    shown = spread(values, most)
    axes.set_xticks(shown, [f"{value:,}" for value in shown])
    axes.minorticks_off()


def spread(values: Sequence[int], most: int) -> list[int]:
    """Some `most` of the values, ends included, apart on a logarithmic axis."""
    first, *middle = sorted(set(values))
    place = {value: math.log(max(value, 0.5)) for value in (first, *middle)}
    apart = (place[max(values)] - place[first]) / most
    shown = middle[-1:]
    for value in reversed(middle[:-1]):
        room = min(place[shown[-1]] - place[value], place[value] - place[first])
        if room >= apart:
            shown.append(value)
    return [first, *reversed(shown)]


def layer_ticks(axes: Axes, layers: Mapping[int, int | str], most: int = 16) -> None:
    """Ticks of a layer axis, at most about `most`: place -> layer or its name."""
    every = -(-len(layers) // most)
    shown = dict(list(layers.items())[::every])
    names = [n if isinstance(n, str) else layer_name(n) for n in shown.values()]
    axes.set_xticks(list(shown), names)
    axes.set_xlabel("layer (emb.: embeddings)" if "emb." in names else "layer")
