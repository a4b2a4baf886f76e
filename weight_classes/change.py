"""How far the vectors of each neuron turn between two checkpoints of one model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import shown
from circuitcut.weight_classes.analysis import QUARTILES, Entry
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.cosines import cosine, norms
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import MlpWeights, mlps_of_layer
from circuitcut.weight_classes.settings import Convention

VECTORS = ("gate", "w_in", "w_out")


def change_of_layers(
    first: Checkpoint, last: Checkpoint, convention: Convention
) -> list[Entry]:
    """Quartiles of the cosine between the same vector in both, by layer and vector.

    A checkpoint against itself has 1 everywhere. Signs are those of the files, not
    refactored.

    Raises:
        UserError: When the models have different shapes.
    """
    check_one_model([first, last])
    numbers = range(n_layers_of(last.config))
    return [
        {"layer": layer, "quartiles": _quartiles(first, last, layer, convention)}
        for layer in shown(numbers, "change", unit="layer")
    ]


def check_one_model(series: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints that differ in family or number of layers.

    Raises:
        UserError: Naming both.
    """
    kinds = {
        f"{checkpoint.config['model_type']} of {n_layers_of(checkpoint.config)} layers"
        for checkpoint in series
    }
    if len(kinds) > 1:
        raise UserError(
            f"--revisions must be of one model, got {' and '.join(sorted(kinds))}"
        )


def _quartiles(
    first: Checkpoint, last: Checkpoint, layer: int, convention: Convention
) -> dict[str, list[float]]:
    both = (
        mlps_of_layer(checkpoint, layer, convention) for checkpoint in (first, last)
    )
    found: dict[str, list[Tensor]] = {}
    for one, other in zip(*both, strict=True):
        for name, value in _turned(one, other).items():
            found.setdefault(name, []).append(value)
    return {
        name: np.quantile(torch.cat(parts).double().numpy(), QUARTILES).tolist()
        for name, parts in found.items()
    }


def _turned(one: MlpWeights, other: MlpWeights) -> dict[str, Float[Tensor, "unit"]]:
    if one.w_in.shape != other.w_in.shape:
        raise UserError(
            "--revisions must be of one model, got MLPs of shapes "
            f"{tuple(one.w_in.shape)} and {tuple(other.w_in.shape)}"
        )
    found = {}
    for name in VECTORS:
        before, after = getattr(one, name), getattr(other, name)
        if before is not None:
            found[name] = cosine(before, after, norms(before), norms(after))
    return found
