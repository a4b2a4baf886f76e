"""What TensorBoard shows of a mask training: numbers, histograms and maps of the gates.

A map is a picture of a mask: one row a layer, one column a unit or a few, bright is
ablated. Plain arrays: no plotting library is needed while a mask is trained.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.mask_set import MaskSet
from circuitcut.models.sites import Site
from circuitcut.training.tracking import Tracker

MAX_COLUMNS = 512
ROW_HEIGHT, COLUMN_WIDTH = 16, 24
"""Greatest size of a cell, in pixels; few units get wide columns."""
MAX_HEIGHT = 768
"""Pixels; more layers get lower rows, of at least 4."""
KEPT = (0.16, 0.20, 0.30)
ABLATED = (1.00, 0.85, 0.20)
NO_UNIT = (0.60, 0.60, 0.60)
"""Colours, red, green, blue; the last where a layer has fewer units than another."""


def watched(tracker: Tracker, settings: MaskSettings) -> GateWatch:
    """Every step's numbers; histograms and maps about ten times in a run."""
    every = max(1, settings.n_steps // 10)

    def on_step(step: int, masks: MaskSet) -> None:
        if step % every == 0 or step == settings.n_steps - 1:
            for name, values in masks.values().items():
                tracker.histogram(step, f"gates/{name}", values.detach())
            show_maps(tracker, step, "gates", masks.keep_probs(), masks.sites)

    return GateWatch(on_log=tracker.scalars, on_step=on_step)


def show_maps(
    tracker: Tracker,
    step: int,
    what: str,
    kept: Mapping[str, Tensor],
    sites: Sequence[Site],
) -> None:
    """One image a kind of unit: layers by units, bright is ablated.

    Args:
        what: `gates` or `frozen`, the last part of the images' names.
        kept: By site name, bools or expected gates in [0, 1].
    """
    for kind, image in unit_maps(kept, sites).items():
        tracker.image(step, f"ablated_{kind}/{what}", image)


def show_frozen(tracker: Tracker, settings: MaskSettings, mask: FrozenMask) -> None:
    """The maps of a finished mask, after the last step."""
    show_maps(tracker, settings.n_steps, "frozen", mask.keep, mask.sites)


def unit_maps(
    kept: Mapping[str, Tensor], sites: Sequence[Site]
) -> dict[str, Float[Tensor, "height width 3"]]:
    """One image per kind of unit: rows are layers from the lowest (top) on.

    Units of a layer stand side by side, those of several sites in the order of `sites`.
    Where there are more than `MAX_COLUMNS`, each column is the mean of neighbours. The
    colour goes from `KEPT` to `ABLATED` with the square root of the ablated share, so
    that one ablated unit of a pooled column is still seen.

    Args:
        kept: By site name, bools or expected gates in [0, 1]; 1 keeps.
        sites: The sites, of any number of kinds.

    Returns:
        By kind, floats in [0, 1].
    """
    maps: dict[str, Tensor] = {}
    for kind in dict.fromkeys(site.kind for site in sites):
        ablated: dict[int, list[Tensor]] = {}
        for site in sites:
            if site.kind == kind:
                values = 1.0 - kept[site.name].detach().float().cpu()
                ablated.setdefault(site.layer, []).append(values)
        rows = [torch.cat(ablated[layer]) for layer in sorted(ablated)]
        maps[kind] = _drawn(pooled_rows(rows))
    return maps


def pooled_rows(rows: Sequence[Tensor]) -> Float[Tensor, "row column"]:
    """Rows of any lengths as one table of at most `MAX_COLUMNS` means; NaN: no unit."""
    longest = max(len(row) for row in rows)
    width = math.ceil(longest / MAX_COLUMNS)
    table = torch.full((len(rows), math.ceil(longest / width)), math.nan)
    for index, row in enumerate(rows):
        means = [piece.mean() for piece in row.split(width)]
        table[index, : len(means)] = torch.stack(means)
    return table


def _drawn(table: Float[Tensor, "row column"]) -> Float[Tensor, "height width 3"]:
    """Colours, each cell enlarged, and a dark line between rows."""
    n_rows, n_columns = table.shape
    height = max(4, min(ROW_HEIGHT, MAX_HEIGHT // n_rows))
    width = max(1, min(COLUMN_WIDTH, MAX_COLUMNS // n_columns))
    share = table.clamp(0.0, 1.0).sqrt().unsqueeze(-1)
    colours = torch.lerp(torch.tensor(KEPT), torch.tensor(ABLATED), share)
    colours = torch.where(share.isnan(), torch.tensor(NO_UNIT), colours)
    image = colours.repeat_interleave(height, 0).repeat_interleave(width, 1)
    if n_rows > 1:
        image[height - 1 :: height] = 0.0
    return image
