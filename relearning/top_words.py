"""What single units respond to: their top words before the cut and after relearning.

Lo et al. (2024), "Large Language Models Relearn Removed Concepts",
https://arxiv.org/abs/2401.01814: for a hidden dimension, whose sign means nothing, the
words of largest mean absolute z-score. Departures: tokens instead of words, only those
that occur at least twice; for neurons and heads those of the largest mean activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.masks.ablation import record_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Split, Task, to_device
from circuitcut.tasks.lengths import parts_by_length

MIN_COUNT = 2
"""Occurrences below which a token's mean says too little."""
UNWORDED = {
    "toxicity": "The words of toxic texts are left out: they may be offensive.",
    "mnist": "Images have no words.",
}
"""Tasks whose units are shown without words, and why."""


@dataclass(frozen=True)
class Unit:
    """One unit of a site."""

    site: Site
    index: int


@dataclass(frozen=True)
class Activations:
    """Activations of some units at the real tokens of a split."""

    ids: Int[Tensor, "position"]
    values: Float[Tensor, "position unit"]


def activations(
    task: Task,
    model: nn.Module,
    units: Sequence[Unit],
    *,
    split: Split = "heldout",
    max_positions: int = 20_000,
    size: int = 64,
) -> Activations:
    """Activations of `units` at about the first `max_positions` real tokens.

    A head's activation is the norm of its vector. Whatever mask is on stays on, and an
    ablated unit has its ablation value.
    """
    sites = list(dict.fromkeys(unit.site for unit in units))
    device = next(model.parameters()).device
    ids: list[Tensor] = []
    values: list[Tensor] = []
    with evaluating(model):
        for batch in task.evaluation_batches(split, size=size):
            for rows in parts_by_length(batch):
                inputs = task.inputs(to_device(rows, device))
                recorded = record_values(model, sites, inputs).values
                columns = [_of_unit(recorded[unit.site.name], unit) for unit in units]
                ids.append(rows["input_ids"][rows["real"]])
                values.append(torch.stack(columns, -1).cpu()[rows["real"]])
            if sum(map(len, ids)) >= max_positions:
                break
    return Activations(torch.cat(ids), torch.cat(values))


def _of_unit(recorded: Tensor, unit: Unit) -> Tensor:
    width = unit.site.unit_size
    vector = recorded[..., unit.index * width : (unit.index + 1) * width].float()
    return vector.squeeze(-1) if width == 1 else vector.norm(dim=-1)


def top_tokens(
    recorded: Activations, unit: int, n_tokens: int, *, signed: bool = True
) -> list[tuple[int, float]]:
    """The tokens that activate a unit most, as (id, mean activation).

    Ordered by the mean of the unit's z-score over a token's occurrences, of its
    absolute value unless `signed`; none for a constant unit.
    """
    values = recorded.values[:, unit].double()
    spread = values.std(correction=0)
    if len(values) == 0 or spread <= 1e-6 * values.abs().max():
        return []
    z = (values - values.mean()) / spread
    z = z if signed else z.abs()
    kinds, of_position, n = recorded.ids.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(2, len(kinds), dtype=torch.float64)
    sums.index_add_(1, of_position, torch.stack([z, values]))
    score, mean = sums / n
    order = score.argsort(descending=True, stable=True).tolist()
    often = [k for k in order if n[k] >= MIN_COUNT]
    return [(int(kinds[k]), float(mean[k])) for k in often[:n_tokens]]


def top_units_of_kinds(
    scores: Mapping[str, Tensor], sites: Sequence[Site], n_units: int
) -> list[Unit]:
    """The `n_units` highest-scoring units of every kind, the highest first.

    Single weights have no activation and are left out.
    """
    chosen: list[Unit] = []
    for kind in dict.fromkeys(site.kind for site in sites if site.kind != "weights"):
        units = [
            (float(score), Unit(site, index))
            for site in sites
            if site.kind == kind
            for index, score in enumerate(scores[site.name].tolist())
        ]
        units.sort(key=lambda entry: entry[0], reverse=True)
        chosen += [unit for _, unit in units[:n_units]]
    return chosen


def top_words(
    task: Task,
    tokenizer: Any,
    models: Mapping[str, nn.Module],
    scores: Mapping[str, Mapping[str, Tensor]],
    mask: FrozenMask,
    *,
    n_units: int = 4,
    n_words: int = 5,
) -> list[dict[str, Any]]:
    """What the concept's units respond to on held-out text, in every model.

    Args:
        task: Gives the held-out texts; none of `UNWORDED`.
        tokenizer: Turns ids into words.
        models: By moment: `before` the cut and `after` relearning, its mask on.
        scores: The ranking of the units at each of these moments, highest for the
            concept's; the top `n_units` of every kind at either moment are shown.
        mask: The cut.

    Returns:
        One entry a unit and moment of being at the top: `top` (the moment), `site`,
        `kind`, `layer`, `unit`, `ablated` (by the mask), and `words`: by moment a list
        of `{"word", "activation"}`, the word that activates it most first; empty for
        a unit that is constant, such as a held one.
    """
    chosen = [
        (moment, unit)
        for moment, ranked in scores.items()
        for unit in top_units_of_kinds(ranked, mask.sites, n_units)
    ]
    units = list(dict.fromkeys(unit for _, unit in chosen))
    if not units:
        return []
    recorded = {name: activations(task, model, units) for name, model in models.items()}
    return [
        {
            "top": moment,
            "site": unit.site.name,
            "kind": unit.site.kind,
            "layer": unit.site.layer,
            "unit": unit.index,
            "ablated": not bool(mask.keep[unit.site.name][unit.index]),
            "words": {
                name: [
                    {"word": as_word(tokenizer, token), "activation": mean}
                    for token, mean in top_tokens(
                        values,
                        units.index(unit),
                        n_words,
                        signed=unit.site.kind != "hidden",
                    )
                ]
                for name, values in recorded.items()
            },
        }
        for moment, unit in chosen
    ]


def as_word(tokenizer: Any, token: int) -> str:
    """A token as text; as the tokenizer names it where the text is blank."""
    text = tokenizer.decode([token]).strip()
    return text or str(tokenizer.convert_ids_to_tokens(token))
