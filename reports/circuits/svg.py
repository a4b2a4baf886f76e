"""What all pictures of circuits share: the frame, the title and the kinds of reader."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from circuitcut.reports.circuits.edge_names import edge_ends
from circuitcut.reports.circuits.layout import MARGIN
from circuitcut.reports.drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION

READERS = {
    "q": ("queries", VERMILLION),
    "k": ("keys", BLUE),
    "v": ("values", GREEN),
    "head": ("heads", PURPLE),
    "mlp": ("MLPs", ORANGE),
    "logits": ("logits", BLACK),
}
"""What reads an edge -> its name in the legend, its colour."""
CSS = (
    ".circuit{font-family:system-ui,sans-serif;max-width:100%;height:auto;"
    "min-width:min(44rem,100%)}"
    ".circuit path{fill:none}.circuit .hit{stroke:#000;stroke-opacity:0;"
    "stroke-width:8px}.circuit .edge:hover .line{stroke-opacity:1;stroke-width:4.5px}"
    ".circuit .cell:hover rect{stroke:#000;stroke-width:2px}"
)


def framed(
    parts: Iterable[str], width: float, height: float, *, standalone: bool
) -> str:
    """An SVG of these parts on white; sizes in pixels.

    Args:
        standalone: A file of its own, with the address of the SVG name space, which a
            page does not need.
    """
    wide, high = f"{width:.0f}", f"{height:.0f}"
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    lines = [
        f'<svg{space} class="circuit" role="img" viewBox="0 0 {wide} {high}" '
        f'width="{wide}" height="{high}">',
        f"<style>{CSS}</style>",
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def title(circuit: Mapping[str, Any], more: str = "") -> str:
    """`12 kept of 32,491 edges`, and what else is to be said of them."""
    which = "kept" if circuit["kept"] else "ablated"
    return words(
        f"{len(circuit['edges']):,} {which} of {circuit['n_edges']:,} edges{more}",
        (MARGIN / 2, 22),
        size=16,
        extra='font-weight="600"',
    )


def legend(circuit: Mapping[str, Any], *, coloured: bool = True) -> list[str]:
    """The kinds of reader with the number of edges into each, and their colours."""
    bar = 23.0 if coloured else 0.0
    counts = Counter(edge_ends(name)[2] for name in circuit["edges"])
    lines, x = [], MARGIN / 2
    for kind, (name, colour) in READERS.items():
        if counts[kind]:
            text = f"into {name}: {counts[kind]:,}"
            if coloured:
                path = f'd="M{x:.0f},41h18" stroke="{colour}" stroke-width="4"'
                lines.append(f"<path {path}/>")
            lines.append(words(text, (x + bar, 45), size=12))
            x += bar + 19 + 6.6 * len(text)
    return lines


def words(
    text: str,
    place: tuple[float, float],
    *,
    size: float = 11,
    colour: str = "#000",
    extra: str = "",
) -> str:
    """A text at x and the y of its baseline, in pixels."""
    x, y = place
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"'
        f"{' ' * bool(extra)}{extra}>{text}</text>"
    )
