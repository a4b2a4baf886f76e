"""The names of edges and heads, taken apart, put in order and listed by layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuitcut.reports.words import long_layer_name

Row = dict[str, Any]
Results = Mapping[str, Any]
FEW_EDGES = 60
"""Up to so many edges, each has a row of its own with its score."""
FEW_NAMES = 12
"""Up to so many names stand in a sentence."""


def edge_ends(name: str) -> tuple[str, str, str]:
    """Writer, reading node and kind of reader of an edge."""
    source, _, target = name.partition("->")
    node, _, reads = target.rstrip(">").partition("<")
    whole = {"m": "mlp", "a": "head", "l": "logits"}
    return source, node, reads or whole[node[0]]


def layer_of(node: str) -> int | None:
    """Layer of a head or an MLP; None for the input, the positions and the logits."""
    number = node[1:].partition(".h")[0]
    return int(number) if number.isdigit() else None


def strengths(circuit: Results) -> list[float] | None:
    """How strongly the ranking chose each edge, from 0 to 1; None without scores.

    Of kept edges 1 is the highest score shown, of ablated ones the lowest. An edge
    without a finite score was outside the ranking and has 1.
    """
    scores = circuit.get("scores")
    if not scores:
        return None
    signed = [_signed(score, circuit["kept"]) for score in scores]
    finite = [value for value in signed if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if high == low:
        return [1.0] * len(scores)
    return [min((value - low) / (high - low), 1.0) for value in signed]


def strongest_first(circuit: Results) -> list[tuple[str, float | None]]:
    """Names and scores, those that the ranking chose first in front."""
    names = circuit["edges"]
    scores = circuit.get("scores") or [None] * len(names)
    pairs = list(zip(names, scores, strict=True))
    return sorted(pairs, key=lambda pair: -_signed(pair[1], circuit["kept"]))


def edge_rows(results: Results) -> list[Row]:
    """The circuit's edges by name: a row each or, of many, a row a reading layer."""
    circuit = results.get("circuit")
    if not circuit:
        return []
    ordered = strongest_first(circuit)
    which = _which(circuit)
    if len(ordered) <= FEW_EDGES:
        return [
            {f"{which} edge": name} | ({} if score is None else {"score": score})
            for name, score in ordered
        ]
    groups: dict[int, list[str]] = {}
    for name, _ in ordered:
        layer = layer_of(edge_ends(name)[1])
        groups.setdefault(circuit["n_layers"] if layer is None else layer, []).append(
            name
        )
    return [
        {
            "reading layer": _reading(layer, circuit["n_layers"]),
            f"edges {which}": len(names),
            "names, strongest first": ", ".join(names),
        }
        for layer, names in sorted(groups.items())
    ]


def head_rows(results: Results) -> list[Row]:
    """The mask's heads by name: a row a layer that has any."""
    heads = results.get("heads")
    groups: dict[int, list[str]] = {}
    for name in heads["names"] if heads else []:
        groups.setdefault(layer_of(name) or 0, []).append(name)
    return [
        {
            "layer": str(layer),
            f"heads {_which(heads or {})}": len(names),
            "names": ", ".join(names),
        }
        for layer, names in groups.items()
    ]


def name_sentences(results: Results) -> list[str]:
    """The first names of edges and heads, as `Heads ablated (2): a9.h6, a9.h9.`"""
    said = []
    if circuit := results.get("circuit"):
        names = [name for name, _ in strongest_first(circuit)]
        order = ", strongest first" if circuit.get("scores") else ""
        said.append(_sentence("Edges", circuit, names, order))
    heads = results.get("heads")
    if heads and heads["names"]:
        said.append(_sentence("Heads", heads, heads["names"], ""))
    return said


def _sentence(kind: str, group: Results, names: Sequence[str], order: str) -> str:
    n_more = len(names) - FEW_NAMES
    more = f" and {n_more:,} more, listed below" if n_more > 0 else ""
    shown = ", ".join(names[:FEW_NAMES])
    return f"{kind} {_which(group)} ({len(names):,}{order}): {shown}{more}."


def _which(group: Results) -> str:
    return "kept" if group.get("kept") else "ablated"


def _signed(score: float | None, kept: bool) -> float:
    """The score if high is chosen first, else its negative; infinity where unknown."""
    if score is None:
        return math.inf
    return score if kept else -score


def _reading(layer: int, n_layers: int) -> str:
    return "logits" if layer == n_layers else long_layer_name(layer)
