"""A circuit as a layered picture in SVG: input at the bottom, logits on top.

Heads stand side by side, a layer a row, the layer's MLP to their right and a little
above, for it reads them. The more edges, the thinner and fainter their lines; the
pointer over a line shows the edge's name and, where it has one, its score.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitcut.reports.drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from circuitcut.reports.words import format_cell

READERS = {
    "q": ("queries", VERMILLION),
    "k": ("keys", BLUE),
    "v": ("values", GREEN),
    "head": ("heads", PURPLE),
    "mlp": ("MLPs", ORANGE),
    "logits": ("logits", BLACK),
}
"""What reads an edge -> its name in the legend, its colour."""
LEFT, TOP, MARGIN = 70.0, 74.0, 26.0
FEW_NODES = 500
"""Up to so many nodes, those without an edge are shown as dots."""
EASY_TO_HIT = 200
"""Up to so many edges, a line has a broader invisible one for the pointer."""
CSS = (
    ".circuit{font-family:system-ui,sans-serif;max-width:100%;height:auto;"
    "min-width:44rem}"
    ".circuit path{fill:none}.circuit .hit{stroke:#000;stroke-opacity:0;"
    "stroke-width:8px}.circuit .edge:hover .line{stroke-opacity:1;stroke-width:3.5px}"
)


@dataclass(frozen=True)
class Layout:
    """Where nodes stand, in pixels from the top left."""

    n_layers: int
    n_heads: int
    column: float
    """Width of a head's column."""
    row: float
    """Height of a layer."""

    @classmethod
    def of(cls, n_layers: int, n_heads: int) -> "Layout":
        """Columns and rows that fit a page where that leaves room for names."""
        column = min(84.0, max(24.0, 980 / (n_heads + 1.5)))
        return cls(n_layers, n_heads, column, min(150.0, max(64.0, 1000 / n_layers)))

    @property
    def width(self) -> float:
        return LEFT + (self.n_heads + 1.5) * self.column + MARGIN + self.column / 2

    @property
    def height(self) -> float:
        return TOP + (self.n_layers + 1.3) * self.row + MARGIN

    @property
    def box(self) -> tuple[float, float]:
        """Width and height of a node."""
        return min(0.78 * self.column, 58.0), min(20.0, 0.28 * self.row)

    def place(self, node: str) -> tuple[float, float]:
        """Middle of a node, by its name."""
        middle = LEFT + self.n_heads * self.column / 2
        base = self.height - MARGIN - 10
        if node in ("input", "position"):
            aside = 1.5 * self.box[0] if node == "position" else 0.0
            return middle + aside, base
        if node == "logits":
            return middle, TOP + 10
        layer, _, head = node[1:].partition(".h")
        y = base - (int(layer) + 0.8) * self.row
        if node[0] == "m":
            return LEFT + (self.n_heads + 1) * self.column, y - 0.42 * self.row
        return LEFT + (int(head) + 0.5) * self.column, y

    def nodes(self) -> list[str]:
        """All heads and MLPs."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return names


def circuit_svg(circuit: Mapping[str, Any], *, standalone: bool = False) -> str:
    """The picture of `circuit` as it stands in results.json (docs/schema.md).

    Args:
        standalone: A file of its own, with the address of the SVG name space, which a
            page does not need.
    """
    names, layout = circuit["edges"], Layout.of(circuit["n_layers"], circuit["n_heads"])
    scores = circuit.get("scores") or [None] * len(names)
    pairs = [edge_ends(name) for name in names]
    degrees = Counter(node for source, target, _ in pairs for node in (source, target))
    size = f"{layout.width:.0f}", f"{layout.height:.0f}"
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    lines = [
        f'<svg{space} class="circuit" role="img" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}">',
        f"<style>{CSS}</style>",
        f'<rect width="{size[0]}" height="{size[1]}" fill="#fff"/>',
        *_headings(circuit, Counter(reads for _, _, reads in pairs), layout),
        *_dots(layout, degrees),
        *_lines(names, pairs, scores, layout),
        *(_node(layout, node, degree) for node, degree in degrees.items()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def caption(circuit: Mapping[str, Any]) -> str:
    """What the picture shows: the smaller of the kept and the ablated edges."""
    kept, n = circuit["kept"], len(circuit["edges"])
    which, other = ("kept", "ablated") if kept else ("ablated", "kept")
    return (
        f"The {n:,} {which} edges of {circuit['n_edges']:,}; the other "
        f"{circuit['n_edges'] - n:,} are {other}. Read from the input (bottom) to the "
        "logits (top). a1.h3 is head 3 of layer 1, m1 the MLP of layer 1. A line leads "
        "from the writer to the reader; its colour is the kind of reader. Move the "
        "pointer over a line for the edge's name"
        + (" and score." if circuit.get("scores") else ".")
    )


def edge_ends(name: str) -> tuple[str, str, str]:
    """Writer, reading node and kind of reader of an edge."""
    source, _, target = name.partition("->")
    node, _, reads = target.rstrip(">").partition("<")
    whole = {"m": "mlp", "a": "head", "l": "logits"}
    return source, node, reads or whole[node[0]]


def _headings(
    circuit: Mapping[str, Any], counts: Mapping[str, int], layout: Layout
) -> list[str]:
    """Title, legend with counts, names of layers."""
    which = "kept" if circuit["kept"] else "ablated"
    lines = [
        f'<text x="{MARGIN / 2:.0f}" y="22" font-size="16" font-weight="600">'
        f"{len(circuit['edges']):,} {which} of {circuit['n_edges']:,} edges</text>"
    ]
    x = MARGIN / 2
    for kind, (name, colour) in READERS.items():
        if counts[kind]:
            text = f"into {name}: {counts[kind]:,}"
            lines.append(
                f'<path d="M{x:.0f},41h18" stroke="{colour}" stroke-width="4"/>'
                f'<text x="{x + 23:.0f}" y="45" font-size="12">{text}</text>'
            )
            x += 42 + 6.6 * len(text)
    for layer in range(layout.n_layers):
        _, y = layout.place(f"a{layer}.h0")
        lines.append(
            f'<text x="{MARGIN / 2:.0f}" y="{y + 4:.0f}" font-size="11" fill="#666">'
            f"layer {layer}</text>"
        )
    return lines


def _dots(layout: Layout, degrees: Mapping[str, int]) -> list[str]:
    """Nodes without an edge, where there are not too many."""
    unconnected = [node for node in layout.nodes() if node not in degrees]
    if len(layout.nodes()) > FEW_NODES:
        return []
    places = [layout.place(node) for node in unconnected]
    return [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2" fill="#bbb"/>' for x, y in places]


def _lines(
    names: Sequence[str],
    pairs: Sequence[tuple[str, str, str]],
    scores: Sequence[float | None],
    layout: Layout,
) -> list[str]:
    """A group for every edge: its words, its line and, of few edges, a broad one."""
    n = max(len(names), 12) / 12
    width, opacity = 2.2 * n**-0.22, 0.8 * n**-0.2
    groups = []
    for name, (source, target, reads), score in zip(names, pairs, scores, strict=True):
        title = name if score is None else f"{name}: {format_cell(score)}"
        path = _curve(layout, source, target, reads)
        hit = f'<path class="hit" d="{path}"/>' if len(names) <= EASY_TO_HIT else ""
        groups.append(
            f'<g class="edge"><title>{html.escape(title)}</title><path class="line" '
            f'd="{path}" stroke="{READERS[reads][1]}" stroke-width="{width:.2f}" '
            f'stroke-opacity="{opacity:.2f}"/>{hit}</g>'
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
