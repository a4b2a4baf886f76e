"""A whole checkpoint, layer by layer: classes, quartiles and shares outside chance.

In memory is one MLP at a time, in the data type of its file, beside the cosines and
norms of all neurons.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcut.storage.progress import shown
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.classes import binned, classify, counts, grouped
from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import mlp_blocks_of_layer
from circuitcut.weight_classes.names import COARSE, HALF_COARSE
from circuitcut.weight_classes.settings import WeightSettings
from circuitcut.weight_classes.significance import (
    beta_regions,
    mismatched_cosines,
    mismatched_regions,
    outside,
)

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """What is kept of a layer's weights."""

    cosines: Cosines
    mismatched: Mapping[str, Float[Tensor, "pair"]]
    d_model: int
    n_mlps: int
    """1, or the number of experts."""


@dataclass(frozen=True)
class Analysis:
    """The layers of a checkpoint and the settings they were read with."""

    layers: tuple[Layer, ...]
    settings: WeightSettings
    is_centred: bool
    """Whether the vectors were centred over d_model."""

    @property
    def n_units(self) -> int:
        """Number of neurons of the model."""
        return sum(layer.cosines.n_units for layer in self.layers)

    @property
    def is_gated(self) -> bool:
        """Whether the neurons have gates."""
        return self.layers[0].cosines.is_gated

    @property
    def n_dimensions(self) -> int:
        """In which the vectors can point: d_model, one less where they are centred."""
        return self.layers[0].d_model - self.is_centred

    def classes(self) -> list[Int[Tensor, "unit"]]:
        """The class of every neuron, layer by layer."""
        return [classify(layer.cosines, self.settings.tau) for layer in self.layers]

    def of_layers(self) -> list[Entry]:
        """One entry a layer, as results.json lists them."""
        pairs = zip(self.layers, self.classes(), strict=True)
        entries = []
        for number, (layer, classes) in enumerate(pairs):
            of_pairs = mismatched_regions(layer.mismatched, self.settings.alpha)
            entry = self._entry(layer.cosines, classes)
            entry["outside"]["mismatched"] = outside(layer.cosines, of_pairs)
            place = {"layer": number, "n_mlps": layer.n_mlps}
            entries.append(place | entry | {"mismatched_region": of_pairs})
        return entries

    def total(self) -> Entry:
        """The same entry for the neurons of all layers."""
        joined = Cosines.joined([layer.cosines for layer in self.layers])
        return self._entry(joined, torch.cat(self.classes()))

    def units(self) -> dict[str, Tensor]:
        """`layer`, `class`, cosines and norms, (unit,) each, over all layers."""
        joined = Cosines.joined([layer.cosines for layer in self.layers])
        sizes = [layer.cosines.n_units for layer in self.layers]
        numbers = torch.arange(len(sizes), dtype=torch.int16)
        return {
            "layer": numbers.repeat_interleave(torch.tensor(sizes)),
            "class": torch.cat(self.classes()).to(torch.uint8),
            **{name: value.float() for name, value in joined.by_name().items()},
        }

    def _entry(self, cosines: Cosines, classes: Int[Tensor, "unit"]) -> Entry:
        settings, counted = self.settings, counts(classes, gated=self.is_gated)
        corrected = settings.alpha / self.n_units
        regions = {
            "beta": self._beta(settings.alpha),
            "beta_corrected": self._beta(corrected),
        }
        return {
            "n_units": cosines.n_units,
            "classes": counted,
            "half_coarse": grouped(counted, HALF_COARSE),
            "coarse": grouped(counted, COARSE),
            "bins": {
                name: list(binned(value, settings.n_bins).values())
                for name, value in cosines.cosines().items()
            },
            "quartiles": {
                name: np.quantile(value.double().numpy(), QUARTILES).tolist()
                for name, value in cosines.by_name().items()
            },
            "outside": {key: outside(cosines, of) for key, of in regions.items()},
        }

    def _beta(self, alpha: float) -> dict[str, tuple[float, float]]:
        return beta_regions(self.n_dimensions, alpha, gated=self.is_gated)

    def beta(self) -> Entry:
        """The regions of independent Gaussian vectors, as results.json has them."""
        corrected = self.settings.alpha / self.n_units
        return {
            "alpha": self.settings.alpha,
            "corrected_alpha": corrected,
            "n_dimensions": self.n_dimensions,
            "region": self._beta(self.settings.alpha),
            "corrected_region": self._beta(corrected),
        }


def analyse(
    checkpoint: Checkpoint, settings: WeightSettings, *, seed: int = 0
) -> Analysis:
    """Read a checkpoint layer by layer.

    Args:
        seed: Of the mismatched pairs.

    Raises:
        UserError: When tensors are missing or their shapes do not fit.
    """
    numbers = range(n_layers_of(checkpoint.config))
    layers = tuple(
        _layer(checkpoint, number, settings, seed)
        for number in shown(numbers, f"weights of {checkpoint.name}", unit="layer")
    )
    is_centred = settings.convention == "folded" and checkpoint.layout.centred
    return Analysis(layers, settings, is_centred)


def _layer(
    checkpoint: Checkpoint, number: int, settings: WeightSettings, seed: int
) -> Layer:
    parts, pairs, d_model, n_mlps = [], [], 0, 0
    for n_units, blocks in mlp_blocks_of_layer(checkpoint, number, settings.convention):
        n_mlps += 1
        for weights in blocks:
            parts.append(Cosines.of(weights))
            n_pairs = math.ceil(settings.n_pairs * weights.n_units / n_units)
            pairs.append(
                mismatched_cosines(weights, n_pairs=n_pairs, seed=seed + 1000 * number)
            )
            d_model = weights.w_in.shape[1]
    mismatched = {name: torch.cat([p[name] for p in pairs]) for name in pairs[0]}
    return Layer(Cosines.joined(parts), mismatched, d_model, n_mlps)
