"""Cosines between the vectors of each neuron, after the refactor, and their norms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.weight_classes.mlp_weights import MlpWeights, signs

COSINES = ("gate_in", "gate_out", "in_out")
"""Names of the cosines; a plain MLP has the last one alone."""
NORMS = ("norm_gate", "norm_in", "norm_out")


@dataclass(frozen=True)
class Cosines:
    """cos(w_gate, w_in) >= 0, cos(w_gate, w_out), cos(w_in, w_out) and three norms.

    Those of the gate are None in a plain MLP. A vector of zeros has cosine 0.
    """

    gate_in: Float[Tensor, "unit"] | None
    gate_out: Float[Tensor, "unit"] | None
    in_out: Float[Tensor, "unit"]
    norm_gate: Float[Tensor, "unit"] | None
    norm_in: Float[Tensor, "unit"]
    norm_out: Float[Tensor, "unit"]

    @classmethod
    def of(cls, weights: MlpWeights) -> "Cosines":
        """The cosines of one MLP; its weights stay as they are."""
        norm_in, norm_out = norms(weights.w_in), norms(weights.w_out)
        in_out = cosine(weights.w_in, weights.w_out, norm_in, norm_out)
        if weights.gate is None:
            return cls(None, None, in_out, None, norm_in, norm_out)
        gate, norm_gate = weights.gate, norms(weights.gate)
        sign = signs(gate, weights.w_in)
        return cls(
            cosine(gate, weights.w_in, norm_gate, norm_in) * sign,
            cosine(gate, weights.w_out, norm_gate, norm_out) * sign,
            in_out,
            norm_gate,
            norm_in,
            norm_out,
        )

    @classmethod
    def joined(cls, parts: Sequence["Cosines"]) -> "Cosines":
        """Of several MLPs, one after the other: the experts of a layer."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].by_name()
        values: Any = dict.fromkeys((*COSINES, *NORMS))
        values |= {k: torch.cat([p.by_name()[k] for p in parts]) for k in names}
        return cls(**values)

    @property
    def n_units(self) -> int:
        """Number of neurons."""
        return len(self.in_out)

    @property
    def is_gated(self) -> bool:
        """Whether the neurons have a gate."""
        return self.gate_in is not None

    def by_name(self) -> Mapping[str, Float[Tensor, "unit"]]:
        """The cosines and norms that there are, by the names of the fields."""
        return {k: v for k in (*COSINES, *NORMS) if (v := getattr(self, k)) is not None}

    def cosines(self) -> Mapping[str, Float[Tensor, "unit"]]:
        """The cosines that there are, by the names of the fields."""
        return {
            name: value for name, value in self.by_name().items() if name in COSINES
        }


def cosines_of_layer(mlps: Iterable[MlpWeights]) -> Cosines:
    """The cosines of a layer, of which one MLP is in memory at a time."""
    return Cosines.joined([Cosines.of(weights) for weights in mlps])


def cosine(
    one: Float[Tensor, "unit d_model"],
    other: Float[Tensor, "unit d_model"],
    norms_of_one: Float[Tensor, "unit"],
    norms_of_other: Float[Tensor, "unit"],
) -> Float[Tensor, "unit"]:
    """Of the vectors in the same row; 0 where one of them is zero."""
    product = norms_of_one * norms_of_other
    dot = torch.linalg.vecdot(one, other)
    return torch.where(product > 0, dot / product.clamp_min(1e-38), 0.0).clamp(-1, 1)


def norms(vectors: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit"]:
    return torch.linalg.vector_norm(vectors, dim=1)
