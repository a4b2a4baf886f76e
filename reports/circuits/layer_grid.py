"""A circuit of many edges as a table of layers: the writers' by the readers' layers."""

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.circuits.edge_names import (
    edge_ends,
    layer_of,
    strongest_first,
)
from circuitcut.reports.circuits.layout import LEFT, MARGIN, SCREEN
from circuitcut.reports.circuits.svg import READERS, framed, legend, title, words

TOP, FOOT, TOTALS = 66.0, 62.0, 54.0
"""Room in pixels above, below and to the right of the cells."""
READABLE = 17.0
"""Width in pixels from which a cell says its count."""
MOST_NAMED = 8
"""Edges that the pointer over a cell names."""
LIGHT, DARK = (222, 235, 247), (8, 48, 107)
"""Ends of the colour scale, red, green and blue."""

Cell = tuple[str, str]
"""Column and row: `input` or `position`, the layer's number, `logits`."""


def grid_svg(circuit: Mapping[str, Any], *, standalone: bool = False) -> str:
    """The edges of `circuit` counted by layer; see `picture.circuit_svg`."""
    cells = edges_by_layers(circuit)
    layers = [str(layer) for layer in range(circuit["n_layers"])]
    sources = [s for s in ("input", "position") if any(c[0] == s for c in cells)]
    columns, rows = [*sources, *layers], [*layers, "logits"]
    wide = min(30.0, (SCREEN[0] - LEFT - TOTALS - MARGIN) / len(columns))
    high = min(24.0, (SCREEN[1] - TOP - FOOT) / len(rows))
    size = max(wide, 9.0), max(high, 9.0)
    parts = [
        title(circuit, ", counted by layer"),
        *legend(circuit, coloured=False),
        *_background(columns, rows, size),
        *_cells(cells, columns, rows, size),
        *_axes(columns, rows, size),
        *_totals(cells, columns, rows, size),
    ]
    width = LEFT + len(columns) * size[0] + TOTALS + MARGIN
    height = TOP + len(rows) * size[1] + FOOT
    return framed(parts, max(width, 640.0), height, standalone=standalone)


def edges_by_layers(circuit: Mapping[str, Any]) -> dict[Cell, list[str]]:
    """Names by the layers of writer and reader, the strongest first."""
    cells: dict[Cell, list[str]] = {}
    for name, _ in strongest_first(circuit):
        source, target, _ = edge_ends(name)
        cells.setdefault((_level(source), _level(target)), []).append(name)
    return cells


def _level(node: str) -> str:
    layer = layer_of(node)
    return node if layer is None else str(layer)


def _corner(
    column: int, row: int, n_rows: int, size: tuple[float, float]
) -> tuple[float, float]:
    """Upper left corner of a cell; row 0 is at the bottom."""
    return LEFT + column * size[0], TOP + (n_rows - 1 - row) * size[1]


def _background(
    columns: Sequence[str], rows: Sequence[str], size: tuple[float, float]
) -> list[str]:
    """For each row, the cells in which there could be an edge, in grey."""
    n_sources = len([c for c in columns if not c.isdigit()])
    lines = []
    for row in range(len(rows)):
        x, y = _corner(0, row, len(rows), size)
        n_columns = min(n_sources + row + 1, len(columns))
        lines.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{n_columns * size[0]:.1f}" '
            f'height="{size[1]:.1f}" fill="#f3f3f3"/>'
        )
    return lines


def _cells(
    cells: Mapping[Cell, Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    size: tuple[float, float],
) -> list[str]:
    """A coloured cell with its count, and the names of its strongest edges."""
    most = max(len(names) for names in cells.values())
    wide, high = size
    groups = []
    for (source, target), names in cells.items():
        place = columns.index(source), rows.index(target)
        x, y = _corner(*place, len(rows), size)
        share = math.log(len(names)) / math.log(most) if most > 1 else 1.0
        said = html.escape(_said(source, target, names))
        count = ""
        if wide >= READABLE and high >= 11:
            count = words(
                f"{len(names):,}",
                (x + wide / 2, y + high / 2 + 3.5),
                size=min(10.0, wide / (0.62 * max(2, len(f"{len(names):,}")))),
                colour="#fff" if share > 0.5 else "#000",
                extra='text-anchor="middle"',
            )
        groups.append(
            f'<g class="cell"><title>{said}</title><rect x="{x:.1f}" y="{y:.1f}" '
            f'width="{wide:.1f}" height="{high:.1f}" fill="{_colour(share)}" '
            f'stroke="#fff"/>{count}</g>'
        )
    return groups


def _colour(share: float) -> str:
    """From light to dark blue, for a share from 0 to 1."""
    parts = (low + share * (high - low) for low, high in zip(LIGHT, DARK, strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in parts)


def _said(source: str, target: str, names: Sequence[str]) -> str:
    """`layer 3 to layer 9: 14 edges (queries 6, MLPs 8): a3.h1->m9, ...`"""
    kinds = Counter(edge_ends(name)[2] for name in names)
    by_kind = ", ".join(
        f"{name} {kinds[k]:,}" for k, (name, _) in READERS.items() if kinds[k]
    )
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    plural = "" if len(names) == 1 else "s"
    return (
        f"{_long(source)} to {_long(target)}: {len(names):,} edge{plural} ({by_kind}): "
        f"{', '.join(names[:MOST_NAMED])}{more}"
    )


def _long(level: str) -> str:
    return f"layer {level}" if level.isdigit() else level


def _axes(
    columns: Sequence[str], rows: Sequence[str], size: tuple[float, float]
) -> list[str]:
    """Numbers of the layers along both sides, and what the sides are."""
    n, (wide, high) = len(rows), size
    middle, right = 'text-anchor="middle"', 'text-anchor="end"'
    lines = []
    every = -(-len(columns) // 40)
    for place, name in enumerate(columns):
        x, y = _corner(place, 0, n, size)
        if name.isdigit() and int(name) % every == 0:
            at = x + wide / 2, y + high + 13
            lines.append(words(name, at, size=10, colour="#444", extra=middle))
        elif not name.isdigit():
            at = x + wide / 2, y + high + 13
            lines.append(words(name[:5], at, size=9, colour="#444", extra=middle))
    for place, name in enumerate(rows):
        x, y = _corner(0, place, n, size)
        if not name.isdigit() or int(name) % every == 0:
            at = x - 5, y + high / 2 + 4
            lines.append(words(name, at, size=10, colour="#444", extra=right))
    x, y = _corner(len(columns), 0, n, size)
    lines.append(words("layer that writes", ((LEFT + x) / 2, y + high + 32), size=12))
    lines.append(
        words(
            "layer that reads",
            (0, 0),
            size=12,
            extra=f'{middle} transform="translate(16 {(TOP + y) / 2:.0f}) rotate(-90)"',
        )
    )
    return lines


def _totals(
    cells: Mapping[Cell, Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
    size: tuple[float, float],
) -> list[str]:
    """To the right of each row, the number of edges that its layer reads."""
    read: Counter[str] = Counter()
    for (_, target), names in cells.items():
        read[target] += len(names)
    x, y = _corner(len(columns), len(rows) - 1, len(rows), size)
    lines = [words("sum", (x + 8, y - 4), size=10, colour="#444")]
    for place, name in enumerate(rows):
        if read[name] and size[1] >= 11:
            _, y = _corner(0, place, len(rows), size)
            at = x + 8, y + size[1] / 2 + 4
            lines.append(words(f"{read[name]:,}", at, size=10, colour="#444"))
    return lines
