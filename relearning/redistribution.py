"""Where a concept sits after relearning: rankings before and after, layer by layer.

Saliency and its distribution over levels follow Lo et al. (2024), "Large Language
Models Relearn Removed Concepts", https://arxiv.org/abs/2401.01814. Departure: rankings
are over any kind of site, and small models use blocks smaller than 100 ranks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.relearning.lora import adapter_change, has_adapter

SALIENCY_BLOCK = 100
"""Ranks that share one saliency."""

_AT_ONCE = 2**18
"""Weights whose change fits in the cache: 2 MiB in double precision."""
Scores = Mapping[str, Tensor]
"""Scores of every site of a model, highest for the concept's units."""


def weight_distance(model: nn.Module, base: nn.Module) -> float:
    """L2 norm of the difference of all weights of `model` from those of `base`.

    A parameter that `base` does not have (the bias of a baked cut) counts from zero. An
    adapter counts as the change of its module's weights.
    """
    base_parameters = dict(base.named_parameters())
    adapters = {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if has_adapter(module)
    }
    total = 0.0
    for path, parameter in model.named_parameters():
        name = path.replace(".base_layer.", ".")
        start = base_parameters.get(name)
        is_shared = parameter is start  # the copy does not own it
        if ".lora_" in path or (is_shared and name not in adapters):
            continue
        end = parameter.detach()
        if name in adapters:
            end = end.double() + adapter_change(adapters[name])
        begin = torch.zeros_like(end) if start is None else start.detach()
        total += _squared_distance(end, begin)
    return math.sqrt(total)


def _squared_distance(end: Tensor, begin: Tensor) -> float:
    """Sum of squares of the difference, in double precision and in pieces.

    Whole copies in double precision of a large matrix cost ten times as much.
    """
    pieces = (weights.flatten().split(_AT_ONCE) for weights in (end, begin))
    return sum(
        float((after.double() - before).square().sum())
        for after, before in zip(*pieces, strict=True)
    )


def saliency(n_units: int) -> Float[Tensor, "rank"]:
    """Saliency of each rank, 1 for the first and near 0 for the last.

    |(floor(r / b) + 1 - N / b) / (1 - N / b)| for 0-based rank r of N, with b = 100;
    for 200 units and fewer b = 1.
    """
    block = SALIENCY_BLOCK if n_units > 2 * SALIENCY_BLOCK else 1
    blocks = n_units / block
    if blocks <= 1:
        return torch.ones(n_units, dtype=torch.float64)
    row = torch.arange(n_units).div(block, rounding_mode="floor").double() + 1
    return ((row - blocks) / (1 - blocks)).abs()


def top_units(scores: Scores, sites: Sequence[Site], k: int) -> dict[str, Tensor]:
    """The `k` highest-scoring units of all sites, as bools per site; ties by index.

    Raises:
        ValueError: When k is not between 0 and the number of units.
    """
    flat = torch.cat([scores[site.name].detach().double().cpu() for site in sites])
    if not 0 <= k <= len(flat):
        raise ValueError(f"k must lie between 0 and {len(flat)} units, got {k}")
    order = torch.argsort(flat, descending=True, stable=True)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:k]] = True
    parts = chosen.split([site.n_units for site in sites])
    return {site.name: part for site, part in zip(sites, parts, strict=True)}


def salient_units(scores: Scores, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Units whose rank has a saliency above one half, as bools per site."""
    n_units = sum(site.n_units for site in sites)
    return top_units(scores, sites, int((saliency(n_units) > 0.5).sum()))


def jaccard(chosen: Scores, other: Scores) -> float | None:
    """Share of common units among all units in either set; None if both are empty."""
    both = sum(int((chosen[name] & other[name]).sum()) for name in chosen)
    either = sum(int((chosen[name] | other[name]).sum()) for name in chosen)
    return both / either if either else None


def by_layer(chosen: Scores, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Units of a set in each layer and kind, as counts and as shares of the set."""
    counts: dict[tuple[int, str], int] = {}
    for site in sites:
        key = site.layer, site.kind
        counts[key] = counts.get(key, 0) + int(chosen[site.name].sum())
    total = sum(counts.values())
    return [
        {
            "layer": layer,
            "kind": kind,
            "n": n,
            "share": n / total if total else None,
        }
        for (layer, kind), n in sorted(counts.items())
    ]


def redistribution(
    before: Scores,
    after: Scores,
    mask: FrozenMask,
    *,
    fresh: FrozenMask | None = None,
) -> dict[str, Any]:
    """Compare where the concept is after relearning with where it was before the cut.

    Args:
        before: Ranking on the model before the cut, for instance by mean difference.
        after: Ranking on the relearned model, with its lasting mask on: units it holds
            are constant and score 0, so they cannot be among the top again.
        mask: The cut that was relearned from; sets the number of units compared.
        fresh: A new mask, trained on the relearned model.

    Returns:
        `layers` (per layer and kind: units among the top n before and after, salient
        shares before and after, units ablated by the first and by the fresh mask),
        `overlap` (Jaccard of the top units before and after), `overlap_with_mask`
        (top units after and the first mask), and with a fresh mask `fresh_overlap` and
        `fresh_n`.
    """
    sites, n = mask.sites, mask.n_ablated
    tops = top_units(before, sites, n), top_units(after, sites, n)
    ablated = _ablated(mask)
    columns = {
        "top_before": tops[0],
        "top_after": tops[1],
        "salient_before": salient_units(before, sites),
        "salient_after": salient_units(after, sites),
        "mask": ablated,
    }
    result: dict[str, Any] = {
        "n_compared": n,
        "overlap": jaccard(*tops),
        "overlap_with_mask": jaccard(tops[1], ablated),
    }
    if fresh is not None:
        columns["fresh_mask"] = _ablated(fresh)
        result["fresh_overlap"] = mask.overlap(fresh)
        result["fresh_n"] = fresh.n_ablated
    tables = {name: by_layer(chosen, sites) for name, chosen in columns.items()}
    result["layers"] = [
        {"layer": rows[0]["layer"], "kind": rows[0]["kind"]}
        | {
            name: {"n": row["n"], "share": row["share"]}
            for name, row in zip(tables, rows, strict=True)
        }
        for rows in zip(*tables.values(), strict=True)
    ]
    return result


def _ablated(mask: FrozenMask) -> dict[str, Tensor]:
    return {name: ~keep.cpu() for name, keep in mask.keep.items()}
