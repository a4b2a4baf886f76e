"""A circuit as a layered picture: input at the bottom, logits on top, a line an edge.

Heads stand side by side, a layer a row, the layer's MLP to their right and a little
above, for it reads them. The more strongly the ranking chose an edge, the thicker its
line. The more edges, the thinner and fainter all lines; the pointer over a line shows
the edge's name and, where it has one, its score.
"""

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

from circuitcut.reports.circuits.edge_names import edge_ends, strengths
from circuitcut.reports.circuits.layout import MARGIN, Layout, layout_of
from circuitcut.reports.circuits.svg import READERS, framed, legend, title, words
from circuitcut.reports.words import format_cell

FEW_NODES = 500
"""Up to so many nodes, those without an edge are shown as dots."""
EASY_TO_HIT = 200
"""Up to so many edges, a line has a broader invisible one for the pointer."""
WEAKEST, STRONGEST = 0.55, 1.9
"""Factors of a line's width for the scores shown."""


def lines_svg(circuit: Mapping[str, Any], *, standalone: bool = False) -> str:
    """The picture of `circuit`; see `picture.circuit_svg`."""
    layout = layout_of(circuit)
    ends = [edge_ends(name)[:2] for name in circuit["edges"]]
    degrees = Counter(node for pair in ends for node in pair)
    parts = [
        title(circuit, _said_of_width(circuit)),
        *legend(circuit),
        *_layer_names(layout),
        *_dots(layout, degrees),
        *_lines(circuit, layout),
        *(_node(layout, node, degree) for node, degree in degrees.items()),
    ]
    return framed(parts, layout.width, layout.height, standalone=standalone)


def line_widths(circuit: Mapping[str, Any]) -> list[float]:
    """Factor of every edge's width: 1 without scores, else by its strength."""
    known = strengths(circuit)
    if known is None:
        return [1.0] * len(circuit["edges"])
    return [WEAKEST + (STRONGEST - WEAKEST) * strength for strength in known]


def _said_of_width(circuit: Mapping[str, Any]) -> str:
    if not circuit.get("scores"):
        return ""
    return f"; thicker: {'higher' if circuit['kept'] else 'lower'} score"


def _layer_names(layout: Layout) -> list[str]:
    """Numbers of the layers, and of those without an edge that are folded away."""
    lines = [
        words(f"layer {i}", (MARGIN / 2, layout.row_of(i) + 4), colour="#555")
        for i in layout.layers
    ]
    for first, last, y in layout.folded():
        text = f"{first}" if first == last else f"{first}\u2013{last}"
        lines.append(words(f"({text})", (MARGIN / 2, y + 3), size=9, colour="#888"))
    return lines


def _dots(layout: Layout, degrees: Mapping[str, int]) -> list[str]:
    """Nodes without an edge, where there are not too many."""
    unconnected = [node for node in layout.nodes() if node not in degrees]
    if len(layout.nodes()) > FEW_NODES:
        return []
    places = [layout.place(node) for node in unconnected]
    return [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2" fill="#bbb"/>' for x, y in places]


def _lines(circuit: Mapping[str, Any], layout: Layout) -> list[str]:
    """A group for every edge: its words, its line and, of few edges, a broad one."""
    names = circuit["edges"]
    scores = circuit.get("scores") or [None] * len(names)
    n = max(len(names), 12) / 12
    width, opacity = 2.2 * n**-0.22, 0.8 * n**-0.2
    groups = []
    for name, score, factor in zip(names, scores, line_widths(circuit), strict=True):
        source, target, reads = edge_ends(name)
        said = name if score is None else f"{name}: {format_cell(score)}"
        path = _curve(layout, source, target, reads)
        hit = f'<path class="hit" d="{path}"/>' if len(names) <= EASY_TO_HIT else ""
        groups.append(
            f'<g class="edge"><title>{html.escape(said)}</title><path class="line" '
            f'd="{path}" stroke="{READERS[reads][1]}" '
            f'stroke-width="{factor * width:.2f}" stroke-opacity="{opacity:.2f}"/>'
            f"{hit}</g>"
        )
    return groups


def _curve(layout: Layout, source: str, target: str, reads: str) -> str:
    """From the top of the writer to the foot of the reader, around what is between."""
    (x1, y1), (x2, y2) = layout.place(source), layout.place(target)
    box, high = layout.box
    x2 += {"q": -0.3, "v": 0.3}.get(reads, 0.0) * box
    y1, y2 = y1 - high / 2, y2 + high / 2
    reach = max(0.45 * (y1 - y2), 8.0)
    same = abs(layout.place(source)[0] - layout.place(target)[0]) < 1
    between = 4 / 3 if source == "input" else 2 / 3  # the curve reaches 3/4 of it
    aside = between * layout.column if same and y1 - y2 > 0.7 * layout.row else 0.0
    return (
        f"M{x1:.1f},{y1:.1f}C{x1 + aside:.1f},{y1 - reach:.1f} "
        f"{x2 + aside:.1f},{y2 + reach:.1f} {x2:.1f},{y2:.1f}"
    )


def _node(layout: Layout, node: str, degree: int) -> str:
    """A box with the node's name; in a narrow one the head's number has to do."""
    (x, y), (wide, high) = layout.place(node), layout.box
    if node in ("input", "position", "logits"):
        wide = max(wide, 54.0)
    name = node if wide >= 36 else node.rpartition(".")[-1]
    size = min(11.0, wide / (0.6 * len(name)))
    plural = "" if degree == 1 else "s"
    return (
        f'<g class="node"><title>{node}: {degree:,} edge{plural}</title>'
        f'<rect x="{x - wide / 2:.1f}" y="{y - high / 2:.1f}" width="{wide:.1f}" '
        f'height="{high:.1f}" rx="4" fill="#fff" stroke="#444"/>'
        f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" font-size="{size:.1f}" '
        f'text-anchor="middle">{name}</text></g>'
    )
