"""Where the nodes of a circuit stand: a row a layer, without the layers it leaves out.

A model of up to twelve layers shows them all. Of a deeper one, layers in which no edge
begins or ends are folded away, so that few edges always fit one screen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from circuitcut.reports.circuits.edge_names import edge_ends, layer_of

LEFT, TOP, MARGIN = 78.0, 74.0, 26.0
SCREEN = 1000.0, 800.0
"""Width and height in pixels within which a picture stays where that is readable."""
SHALLOW = 12
"""Up to so many layers, none is folded away."""
MOST_COLUMNS = 32
"""Of more heads a layer, those without an edge are folded away."""
MOST_LINES, MOST_LINES_DEEP, MOST_ROWS = 1000, 60, 16
"""Edges drawn as lines in up to `MOST_ROWS` layers, and in more layers."""


@dataclass(frozen=True)
class Layout:
    """Where nodes stand, in pixels from the top left."""

    n_layers: int
    layers: tuple[int, ...]
    """Layers that have a row, the lowest first."""
    heads: tuple[int, ...]
    """Numbers of the heads that have a column."""
    column: float
    """Width of a head's column."""
    row: float
    """Height of a layer."""

    @classmethod
    def of(cls, n_layers: int, n_heads: int, nodes: Iterable[str] = ()) -> "Layout":
        """Columns and rows that fit a screen where that leaves room for names.

        Args:
            n_layers: Of the model.
            n_heads: Heads a layer.
            nodes: Those with an edge; others may be folded away.
        """
        nodes = set(nodes)
        used = {layer for node in nodes if (layer := layer_of(node)) is not None}
        layers = range(n_layers) if n_layers <= SHALLOW else sorted(used)
        columns = {int(n.partition(".h")[2]) for n in nodes if ".h" in n}
        heads = range(n_heads) if n_heads <= MOST_COLUMNS else sorted(columns)
        wide, high = SCREEN
        column = (wide - LEFT - MARGIN) / (len(heads) + 2)
        row = (high - TOP - MARGIN) / (len(layers) + 1.3)
        return cls(
            n_layers,
            tuple(layers),
            tuple(heads),
            min(84.0, max(24.0, column)),
            min(120.0, max(34.0, row)),
        )

    @property
    def width(self) -> float:
        return max(420.0, LEFT + (len(self.heads) + 2) * self.column + MARGIN)

    @property
    def height(self) -> float:
        return TOP + (len(self.layers) + 1.3) * self.row + MARGIN

    @property
    def box(self) -> tuple[float, float]:
        """Width and height of a node."""
        return min(0.78 * self.column, 58.0), min(20.0, 0.38 * self.row)

    @property
    def base(self) -> float:
        """Height at which the input stands."""
        return self.height - MARGIN - 10

    def row_of(self, layer: int) -> float:
        """Middle of the heads of a layer that has a row."""
        return self.base - (self.layers.index(layer) + 0.8) * self.row

    def place(self, node: str) -> tuple[float, float]:
        """Middle of a node, by its name."""
        middle = LEFT + len(self.heads) * self.column / 2
        if node in ("input", "position"):
            aside = 1.5 * self.box[0] if node == "position" else 0.0
            return middle + aside, self.base
        if node == "logits":
            return middle, TOP + 10
        layer, _, head = node[1:].partition(".h")
        y = self.row_of(int(layer))
        if node[0] == "m":
            x = LEFT + (len(self.heads) + 1) * self.column
            return x, y - 0.42 * self.row
        return LEFT + (self.heads.index(int(head)) + 0.5) * self.column, y

    def nodes(self) -> list[str]:
        """All heads and MLPs that have a place."""
        names = []
        for layer in self.layers:
            names += [f"a{layer}.h{head}" for head in self.heads]
            names.append(f"m{layer}")
        return names

    def folded(self) -> list[tuple[int, int, float]]:
        """First and last layer of each folded range, and the height of its label."""
        edges = (-1, *self.layers, self.n_layers)
        ranges = []
        for below, above in pairwise(edges):
            if above - below > 1:
                y = self.base - 0.3 * self.row if below < 0 else self.row_of(below)
                up = 0.0 if below < 0 else self.row / 2
                ranges.append((below + 1, above - 1, y - up))
        return ranges


def layout_of(circuit: Mapping[str, Any]) -> Layout:
    """The layout of a circuit as it stands in results.json."""
    ends = (edge_ends(name)[:2] for name in circuit["edges"])
    nodes = {node for pair in ends for node in pair}
    return Layout.of(circuit["n_layers"], circuit["n_heads"], nodes)


def has_lines(circuit: Mapping[str, Any]) -> bool:
    """Whether every edge can be seen as a line; else edges are counted by layer."""
    n = len(circuit["edges"])
    if n <= MOST_LINES_DEEP:
        return True
    return n <= MOST_LINES and len(layout_of(circuit).layers) <= MOST_ROWS
