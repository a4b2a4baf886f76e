"""The heads of a mask, as results.json names them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from circuitcut.masks.frozen_mask import FrozenMask


def heads_of(
    mask: FrozenMask, ranking: Mapping[str, Tensor] | None = None
) -> dict[str, Any] | None:
    """Which heads are ablated, layer by layer, with their scores; None without heads.

    Args:
        ranking: Scores by site name, (head,) each; high keeps. None: not known.

    Returns:
        `kept`, whether `names` are the kept or the ablated heads (the fewer); `names`
        such as `a9.h6`; `layers`: `{"layer", "n_heads", "ablated", "scores"}` with the
        numbers of the ablated heads, and a score for every head or None.
    """
    sites = sorted(
        (site for site in mask.sites if site.kind == "heads"),
        key=lambda site: site.layer,
    )
    if not sites:
        return None
    n_ablated = sum(int((~mask.keep[site.name]).sum()) for site in sites)
    are_kept = 2 * n_ablated > sum(site.n_units for site in sites)
    layers: list[dict[str, Any]] = []
    names: list[str] = []
    for site in sites:
        kept = mask.keep[site.name]
        ablated = (~kept).nonzero()[:, 0].tolist()
        shown = kept.nonzero()[:, 0].tolist() if are_kept else ablated
        names += [f"a{site.layer}.h{head}" for head in shown]
        layers.append(
            {
                "layer": site.layer,
                "n_heads": site.n_units,
                "ablated": ablated,
                "scores": None if ranking is None else ranking[site.name].tolist(),
            }
        )
    return {"kept": are_kept, "names": names, "layers": layers}
