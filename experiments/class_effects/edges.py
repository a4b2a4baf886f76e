"""Which later readers notice an ablation of neurons, for results.json."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from circuitcut.attribution.neuron_cut_edges import (
    MEASURES,
    by_reader,
    neuron_cut_edges,
)
from circuitcut.masks.edges.sites import graph_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.progress import shown

Name = tuple[str, int | None, str]
N_STRONGEST = 30
"""Readers and edges that are listed."""
_HEAD = re.compile(r"a(\d+)\.h\d+<([qkv])>")
_KINDS = {"q": "queries", "k": "keys", "v": "values"}


def noticed(
    model: nn.Module,
    masks: Mapping[Name, FrozenMask],
    batches: Sequence[tuple[Mapping[str, Tensor], Tensor]],
    measure: str,
) -> dict[str, Any]:
    """The entry `edges`: of the class, and of the first draw of every control.

    Args:
        batches: The model's keyword arguments, and the positions that count.
        measure: A key of `attribution.neuron_cut_edges.MEASURES`.

    Raises:
        UserError: When the model has no residual graph.
    """
    sites = sites_of(model, ["edges"])
    names = list(graph_at(sites).edges())
    chosen = {name: mask for name, mask in masks.items() if not name[1]}
    return {
        "measure": measure,
        "n_tokens": sum(int(where.sum()) for _, where in batches),
        "sets": [
            {
                "set": of_set,
                "draw": draw,
                "when": when,
                **_of_set(
                    names,
                    neuron_cut_edges(model, sites, batches, mask, MEASURES[measure]),
                ),
            }
            for (of_set, draw, when), mask in shown(
                chosen.items(), "edges of ablations", unit="ablation"
            )
        ],
    }


def _of_set(names: Sequence[str], effects: Tensor) -> dict[str, Any]:
    readers = by_reader(names, effects)
    total = readers.pop("logits")
    pairs = zip(names, effects.tolist(), strict=True)
    return {
        "logits": total,
        "readers": [
            {"reader": name, "effect": effect}
            for name, effect in _strongest(readers.items())
        ],
        "edges": [
            {"edge": name, "effect": effect} for name, effect in _strongest(pairs)
        ],
        "layers": _by_layer(readers),
    }


def _strongest(pairs: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The largest either way; those without any effect are left out."""
    ordered = sorted(pairs, key=lambda pair: -abs(pair[1]))
    return [pair for pair in ordered[:N_STRONGEST] if pair[1]]


def _by_layer(readers: Mapping[str, float]) -> list[dict[str, Any]]:
    """Sums over the heads of a layer, by what they read for."""
    layers: dict[int, dict[str, float]] = {}
    for name, effect in readers.items():
        head = _HEAD.fullmatch(name)
        layer = int(head[1] if head else name[1:])
        kind = _KINDS[head[2]] if head else "mlp"
        of_layer = layers.setdefault(
            layer, dict.fromkeys((*_KINDS.values(), "mlp"), 0.0)
        )
        of_layer[kind] += effect
    return [{"layer": layer, **effects} for layer, effects in layers.items()]
