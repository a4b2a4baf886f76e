"""Norms on the stream itself, as maps that carry every writer's share through them.

With the mean and deviation of the whole stream given, a layer norm is affine, so a
share h of the stream goes to (h - mean of h) * gain / deviation, and the norm's bias is
one more share. Let G_p be the product of the gains of the first p norms, and s_p that
of their 1 / deviation (a number a token). A share h written after p norms is, after q,

    y = s_q G_q * [h / (s_p G_p) - sum over norms p <= j < q of b_j / G_j],

where b_j, what norm j subtracts, is an inner product of h / s_p and a fixed vector.
*Carried* values are the bracket before its sum, h / (s_p G_p), with all b_j at its end.
They are those of every place: nothing of them changes when a norm is passed, sums of
them are carried as well, and what a place sees of them is one linear map of its own
times s_q. Here s_p is left to the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class CarriedLayer(FoldedLayer):
    """A block's attention that reads and writes carried values, in place of d_model."""

    plain_write: Float[Tensor, "d_heads d_stream"]
    """The output projection as it is, for the stream itself."""
    plain_bias: Float[Tensor, "d_stream"] | None


class CarriedNorms:
    """The norms of one model. Norm 2l follows attention of layer l, 2l + 1 its MLP.

    A place is the number of norms passed. Carried values have width d_model + n_norms.

    Args:
        plain: Weights of the blocks' attention that read and write the stream itself.

    Raises:
        UserError: When products of gains leave the range of the model's precision.
    """

    def __init__(self, model: ResidualModel, plain: Sequence[FoldedLayer]):
        self.plain = plain
        norms = [
            model.norm(layer, name)
            for layer in range(model.graph.n_layers)
            for name in model.parts.norms_on_stream or ()
        ]
        self.norms: list[Any] = norms
        self.d_model, self.n_norms = model.d_model, len(norms)
        dtype = norms[0].weight.dtype
        gains = torch.stack([model.gain(norm).detach().double() for norm in norms])
        # lest one divides by zero; far below what the precision can tell from zero
        smallest = torch.finfo(dtype).eps ** 2
        signs = torch.where(gains < 0, -1.0, 1.0).to(gains)
        products = _products(signs * gains.abs().clamp(min=smallest))
        _check_range(products, dtype)
        self.gains = products.to(dtype)
        self.inverse = products.reciprocal().to(dtype)
        self.means = _means(products).to(dtype)
        self.back = _back(products).to(dtype)
        biases = torch.stack([norm.bias for norm in norms]).detach()
        self.biases: Float[Tensor, "norm width"] = torch.stack(
            [self.carried(1 + place, bias) for place, bias in enumerate(biases)]
        )

    @property
    def width(self) -> int:
        """Of carried values."""
        return self.d_model + self.n_norms

    def carried(
        self, place: int, values: Float[Tensor, "*any d_model"]
    ) -> Float[Tensor, "*any width"]:
        """Shares written at `place`."""
        scaled = values * self.inverse[place]
        return torch.cat([scaled, scaled @ self.means[place]], -1)

    def through_carried(
        self, place: int, grad: Float[Tensor, "*any width"]
    ) -> Float[Tensor, "*any d_model"]:
        """Gradient of the shares, of that of what `carried` gives."""
        stream, means = grad.split([self.d_model, self.n_norms], -1)
        return (stream + means @ self.means[place].T) * self.inverse[place]

    def seen(
        self, place: int, carried: Float[Tensor, "*any width"]
    ) -> Float[Tensor, "*any d_model"]:
        """What a reader at `place` sees of carried values."""
        stream, means = carried.split([self.d_model, self.n_norms], -1)
        return stream * self.gains[place] + means @ self.back[place]

    def through_seen(
        self, place: int, grad: Float[Tensor, "*any d_model"]
    ) -> Float[Tensor, "*any width"]:
        """Gradient of carried values, of that of what `seen` gives."""
        return torch.cat([grad * self.gains[place], grad @ self.back[place].T], -1)

    def fold(self, layer: int) -> CarriedLayer:
        """Weights that read and write carried values, of those for the stream."""
        folded = self.plain[layer]
        place, bias = 2 * layer, folded.write_bias
        return CarriedLayer(
            self.through_seen(place, folded.read.mT).mT,
            folded.read_bias,
            self.carried(place, folded.write),
            None if bias is None else self.carried(place, bias),
            folded.write.flatten(0, 1),
            bias,
        )


def _products(
    gains: Float[Tensor, "norm d_model"],
) -> Float[Tensor, "place d_model"]:
    """G of every place, up to a factor that cancels: 1 at the middle place.

    From there, products of gains below 1 grow on one side and shrink on the other.
    """
    middle = len(gains) // 2
    before = gains[:middle].flip(0).cumprod(0).flip(0).reciprocal()
    return torch.cat([before, torch.ones_like(gains[:1]), gains[middle:].cumprod(0)])


def _means(
    products: Float[Tensor, "place d_model"],
) -> Float[Tensor, "place d_model norm"]:
    """Vectors whose inner products with h / G_p are the b_j of a share.

    Norm j subtracts b_j = mean of G_j * (h / G_p - sum over p <= i < j of b_i / G_i): a
    triangular system.
    """
    own = products[:-1] / products.shape[1]  # (norm, d_model)
    n = len(own)
    system = (own @ products[:-1].reciprocal().T).tril(-1) + torch.eye(n).to(own)
    means = own.new_zeros(n + 1, products.shape[1], n)
    for place in range(n):
        means[place, :, place:] = torch.linalg.solve_triangular(
            system[place:, place:], own[place:], upper=False, unitriangular=True
        ).T
    return means


def _back(
    products: Float[Tensor, "place d_model"],
) -> Float[Tensor, "place norm d_model"]:
    """What each b_j takes at a place: -G_q / G_j of the norms passed."""
    n = len(products) - 1
    taken = -products[:, None] / products[:-1]
    passed = torch.arange(n) < torch.arange(n + 1)[:, None]
    return taken * passed[..., None].to(products)


def _check_range(products: Float[Tensor, "place d_model"], dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    sizes = products.abs()
    if sizes.min() < limits.tiny**0.75 or sizes.max() > limits.max**0.75:
        raise UserError(
            "gains of this model's layer norms multiply to between "
            f"{float(sizes.min()):.1e} and {float(sizes.max()):.1e} in one channel, "
            f"too far apart for {dtype}; load the model in double precision"
        )
