"""A circuit as one SVG picture: a line an edge or, of many edges, counts by layer."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.circuits.layer_grid import grid_svg
from circuitcut.reports.circuits.layout import has_lines, layout_of
from circuitcut.reports.circuits.lines import lines_svg


def circuit_svg(circuit: Mapping[str, Any], *, standalone: bool = False) -> str:
    """The picture of `circuit` as it stands in results.json (docs/schema.md).

    Args:
        standalone: A file of its own, with the address of the SVG name space, which a
            page does not need.
    """
    draw = lines_svg if has_lines(circuit) else grid_svg
    return draw(circuit, standalone=standalone)


def caption(circuit: Mapping[str, Any]) -> str:
    """What the picture shows: the smaller of the kept and the ablated edges."""
    kept, n = circuit["kept"], len(circuit["edges"])
    which, other = ("kept", "ablated") if kept else ("ablated", "kept")
    said = (
        f"The {n:,} {which} edges of {circuit['n_edges']:,}; the other "
        f"{circuit['n_edges'] - n:,} are {other}. "
    )
    return said + (_of_lines(circuit) if has_lines(circuit) else _of_cells())


def _of_lines(circuit: Mapping[str, Any]) -> str:
    said = (
        "Read from the input (bottom) to the logits (top). a1.h3 is head 3 of layer "
        "1, m1 the MLP of layer 1. A line leads from the writer to the reader; its "
        "colour is the kind of reader. "
    )
    if layout_of(circuit).folded():
        said += "Layers in brackets have no such edge and are left out. "
    if not circuit.get("scores"):
        return f"{said}Move the pointer over a line for the edge's name."
    most = "highest" if circuit["kept"] else "lowest"
    return (
        f"{said}The thickest line has the {most} score of the ranking. Move the "
        "pointer over a line for the edge's name and score."
    )


def _of_cells() -> str:
    return (
        "Each cell counts the edges from the writers of one layer (column: heads and "
        "MLP) to the readers of one layer (row); on a logarithmic scale, dark means "
        "many. Move the pointer over a cell for its strongest edges by name; all "
        "edges are listed below by name."
    )
