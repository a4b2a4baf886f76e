"""What TensorBoard shows of a mask training: numbers, histograms and maps of the gates.

A map is a picture of a mask: one row a layer, one column a unit or a few, bright is
ablated. No plotting library is needed while a mask is trained.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
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
LEFT, TOP, BOTTOM, RIGHT = 64, 44, 44, 24
"""Pixels around a map, for its labels."""
LEAST_WIDTH = 330
"""Pixels of a map's heading."""
FONT_SIZE = 13


def watched(tracker: Tracker, settings: MaskSettings) -> GateWatch:
    """Every step's numbers, and losses averaged over the last tenth of the steps.

    Histograms and maps are shown about ten times in a run. The losses of single steps
    jump, as every step draws its own number of units.
    """
    every = max(1, settings.n_steps // 10)
    recent = deque(tracker.run.metrics(), maxlen=every)  # of a resumed run, not empty

    def on_log(step: int, numbers: dict[str, float]) -> None:
        tracker.scalars(step, numbers)
        recent.append(numbers)
        tracker.show(step, _mean_losses(recent, f"mean_of_{every}_steps"))

    def on_step(step: int, masks: MaskSet) -> None:
        if step % every == 0 or step == settings.n_steps - 1:
            for name, values in masks.values().items():
                tracker.histogram(step, f"gates/{name}", values.detach())
            show_maps(tracker, step, "gates", masks.keep_probs(), masks.sites)

    return GateWatch(on_log=on_log, on_step=on_step)


def _mean_losses(entries: Iterable[Mapping[str, Any]], group: str) -> dict[str, float]:
    """Means of the losses that are known, named `group/loss`."""
    means = {}
    for name in ("concept_loss", "retain_loss", "loss"):
        known = [e[name] for e in entries if e.get(name) is not None]
        if known:
            means[f"{group}/{name}"] = sum(known) / len(known)
    return means


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
        of_kind = [site for site in sites if site.kind == kind]
        tracker.image(step, f"ablated_{kind}/{what}", labelled(image, of_kind, what))


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


def labelled(
    image: Float[Tensor, "height width 3"], sites: Sequence[Site], what: str
) -> Float[Tensor, "taller wider 3"]:
    """A map on white, with its title, layers at the left, units below and colours.

    Args:
        sites: Those of the map, of one kind.
        what: `gates` or `frozen`.
    """
    n_units: dict[int, int] = {}
    for site in sites:
        n_units[site.layer] = n_units.get(site.layer, 0) + site.n_units
    height, width, _ = image.shape
    size = LEFT + max(width, LEAST_WIDTH) + RIGHT, TOP + height + BOTTOM
    page = Image.new("RGB", size, "white")
    pixels = (255 * image).round().to(torch.uint8).numpy()
    page.paste(Image.fromarray(pixels), (LEFT, TOP))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        draw.text((x, y), text, fill="black", font=font, anchor=anchor)

    kind = sites[0].kind
    title = {"gates": "expected gates", "frozen": "frozen mask"}.get(what, what)
    write(LEFT, 4, f"{kind}: {title}", "la")
    x = LEFT
    for colour, name in ((ABLATED, "ablated"), (KEPT, "kept"), (NO_UNIT, "no unit")):
        filling = tuple(round(255 * part) for part in colour)
        draw.rectangle((x, 26, x + 12, 38), fill=filling)
        write(x + 17, 32, name, "lm")
        x += 33 + round(draw.textlength(name, font))
    layers = sorted(n_units)
    names = {site.layer: "logits" for site in sites if site.is_logits} | {-1: "emb."}
    row = height / len(layers)
    every = math.ceil((FONT_SIZE + 2) / row)
    for place, layer in list(enumerate(layers))[::every]:
        name = names.get(layer, str(layer))
        write(LEFT - 6, TOP + (place + 0.5) * row, name, "rm")
    write(4, TOP - 4, "layer", "ls")
    last = max(n_units.values()) - 1
    write(LEFT, TOP + height + 4, "0", "la")
    write(LEFT + width, TOP + height + 4, f"{last:,}", "ra")
    pooled = math.ceil((last + 1) / MAX_COLUMNS)
    note = f", means of {pooled}" if pooled > 1 else ""
    write(LEFT, TOP + height + 22, f"unit of the layer{note}", "la")
    return torch.from_numpy(np.array(page)).float() / 255


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
