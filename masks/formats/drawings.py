"""Masks on edges in the formats of graph drawing programs: DOT and GraphML.

DOT: Graphviz, https://graphviz.org/doc/info/lang.html. GraphML: Brandes, Eiglsperger,
Herman, Himsolt & Marshall (2002), "GraphML Progress Report: Structural Layer Proposal",
http://graphml.graphdrawing.org/specification.html.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.masks.formats.edge_lists import split_edge
from circuitcut.models.residual.graph import ResidualGraph

_COLOURS = {
    "q": "#D55E00",
    "k": "#0072B2",
    "v": "#009E73",
    "m": "#E69F00",
    "l": "#000000",
    "a": "#CC79A7",
}
"""Colour of an edge by its reader: q, k, v, MLP, logits, or a head with merged q, k, v.
"""
_TYPES = {
    "node": {"kind": "string", "layer": "int"},
    "edge": {"name": "string", "reads": "string", "kept": "boolean", "score": "double"},
}
"""Attributes in GraphML."""


def dot(names: Sequence[str], scores: Mapping[str, float]) -> str:
    """The edges `names` and their nodes as a DOT digraph, input below, logits above.

    Args:
        names: Names of the edges, `a0.h1->m3`.
        scores: Scores by name of the edge; shown as an attribute and in the tooltip.
    """
    pairs = [split_edge(name) for name in names]
    nodes = dict.fromkeys(
        node for source, target, _ in pairs for node in (source, target)
    )
    ranks: dict[int, list[str]] = {}
    for node in nodes:
        ranks.setdefault(_rank(node), []).append(node)
    lines = [
        "digraph circuit {",
        "  rankdir=BT;",
        '  node [shape=box, style="rounded"];',
    ]
    for _, row in sorted(ranks.items()):
        lines.append(f"  {{ rank=same; {' '.join(f'{_quoted(n)};' for n in row)} }}")
    for name, (source, target, reads) in zip(names, pairs, strict=True):
        tooltip = f"{name} {scores[name]:.3g}" if name in scores else name
        attributes = {"color": _COLOURS[reads or target[0]], "tooltip": tooltip}
        attributes |= {"label": reads} if reads else {}
        attributes |= {"score": f"{scores[name]:.9g}"} if name in scores else {}
        listed = ", ".join(f"{key}={_quoted(text)}" for key, text in attributes.items())
        lines.append(f"  {_quoted(source)} -> {_quoted(target)} [{listed}];")
    return "\n".join([*lines, "}"]) + "\n"


def graphml(
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    scores: Float[Tensor, "edge"] | None,
) -> str:
    """All nodes and edges as GraphML, each edge with `kept` and, if known, `score`.

    A head is one node; `reads` tells the edges into its q, k and v apart.
    """
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for owner, attributes in _TYPES.items():
        for name, kind in attributes.items():
            key = {"id": _key(owner, name), "for": owner, "attr.name": name}
            ElementTree.SubElement(root, "key", {**key, "attr.type": kind})
    drawn = ElementTree.SubElement(root, "graph", id="circuit", edgedefault="directed")
    for node in [*graph.writers(), "logits"]:
        entry = ElementTree.SubElement(drawn, "node", id=node)
        _data(entry, "node", {"kind": _kind(node), "layer": _layer(node, graph)})
    known = [None] * graph.n_edges if scores is None else scores.tolist()
    for name, is_kept, score in zip(graph.edges(), kept.tolist(), known, strict=True):
        source, target, reads = split_edge(name)
        ends = {"id": name, "source": source, "target": target}
        entry = ElementTree.SubElement(drawn, "edge", ends)
        values = {"name": name, "reads": reads, "kept": is_kept, "score": score}
        _data(entry, "edge", values)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, "unicode", xml_declaration=True) + "\n"


def _data(entry: ElementTree.Element, owner: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            ElementTree.SubElement(entry, "data", key=_key(owner, name)).text = text


def _key(owner: str, name: str) -> str:
    return f"{owner}_{name}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _kind(node: str) -> str:
    return {"a": "head", "m": "mlp"}.get(node[0], node)


def _layer(node: str, graph: ResidualGraph) -> int:
    if node == "logits":
        return graph.n_layers
    return int(node[1:].partition(".")[0]) if node[0] in "am" else -1


def _rank(node: str) -> int:
    """Row in the drawing: inputs, then heads and MLP of each layer, then logits."""
    if node == "logits":
        return 10**9
    return (
        2 * int(node[1:].partition(".")[0]) + (node[0] == "m")
        if node[0] in "am"
        else -1
    )
