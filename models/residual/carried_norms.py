"""Norms on the stream itself, as maps that carry every writer's share through them.

With the mean and the deviation sigma of the whole stream given, a layer norm is affine,
so a share h of the stream goes to (h - mean of h) * gain / sigma, and the norm's bias
is one more share. Let G_p be the product of the gains of the first p norms, and s_p
that of their 1 / sigma (a number a token). A share h written after p norms is, after q,

    s_q G_q * [h / (s_p G_p) - sum over norms p <= j < q of m_j / G_j],

where s_j m_j is the mean that norm j subtracts; m_j is an inner product of h / s_p and
a fixed vector. *Carried* values are the first term of the bracket, h / (s_p G_p), with
all m_j after it. They are the same at every place: passing a norm does not change them,
and sums of them are carried values too. What a reader at place q reads is s_q times a
linear map of them. Here s_p and s_q are left to the caller:

    K_p h = [h / G_p, (h / G_p) @ M_p]       `carried`, M_p is `means[p]`
    V_q [c, m] = c G_q + m @ B_q             `read`, B_q is `back[q]`

Derivation: docs/edge_engine.md, section 9.
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
    """A block's attention that reads and writes carried values, not the stream."""

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
        # gains of zero are raised to this, so that 1 / G is finite; it is far below
        # what the precision can tell from zero
        smallest = torch.finfo(dtype).eps ** 2
        signs = torch.where(gains < 0, -1.0, 1.0).to(gains)
        products = _products(signs * gains.abs().clamp(min=smallest))
        _check_range(products, dtype)
        self.gains = products.to(dtype)  # G   (place, d_model)
        self.inverse = products.reciprocal().to(dtype)  # 1 / G   (place, d_model)
        self.means = _means(products).to(dtype)  # M   (place, d_model, norm)
        self.back = _back(products).to(dtype)  # B   (place, norm, d_model)
        # K_{j+1} bias_j: a norm's bias is written at the place after it
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
        """K_p h of shares h written at `place` p: [h / G_p, (h / G_p) @ M_p]."""
        scaled = values * self.inverse[place]
        return torch.cat([scaled, scaled @ self.means[place]], -1)

    def through_carried(
        self, place: int, grad: Float[Tensor, "*any width"]
    ) -> Float[Tensor, "*any d_model"]:
        """K_p^T grad, the gradient of the shares: (d_c + d_m @ M_p^T) / G_p."""
        stream, means = grad.split([self.d_model, self.n_norms], -1)
        return (stream + means @ self.means[place].T) * self.inverse[place]

    def read(
        self, place: int, carried: Float[Tensor, "*any width"]
    ) -> Float[Tensor, "*any d_model"]:
        """V_q of carried values [c, m], what is read at `place` q: c G_q + m @ B_q."""
        stream, means = carried.split([self.d_model, self.n_norms], -1)
        return stream * self.gains[place] + means @ self.back[place]

    def through_read(
        self, place: int, grad: Float[Tensor, "*any d_model"]
    ) -> Float[Tensor, "*any width"]:
        """V_q^T grad, the gradient of carried values: [grad G_q, grad @ B_q^T]."""
        return torch.cat([grad * self.gains[place], grad @ self.back[place].T], -1)

    def fold(self, layer: int) -> CarriedLayer:
        """Weights that read and write carried values: V_q^T A, K_p of O, b_O, k."""
        folded = self.plain[layer]
        place = 2 * layer
        constants = (folded.write_bias, folded.head_bias, folded.always_bias)
        b_o, of_heads, always = (
            None if c is None else self.carried(place, c) for c in constants
        )
        # of shapes (reader, width, d_head) and (head, d_head, width)
        return CarriedLayer(
            self.through_read(place, folded.read.mT).mT,
            folded.read_bias,
            self.carried(place, folded.write),
            b_o,
            of_heads,
            always,
            folded.write.flatten(0, 1),
            folded.write_bias,
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
    """M_p, vectors whose inner products with h / G_p are the m_j of a share.

    m_j is the mean of G_j * (h / G_p - sum over p <= i < j of m_i / G_i), which makes a
    triangular system:
    m_j + sum over p <= i < j of <G_j / d, 1 / G_i> m_i = <G_j / d, h / G_p>.
    """
    averages = products[:-1] / products.shape[1]  # G_j / d   (norm, d_model)
    n = len(averages)
    # <G_j / d, 1 / G_i> of i < j, and 1 on the diagonal   (norm, norm)
    system = (averages @ products[:-1].reciprocal().T).tril(-1)
    system = system + torch.eye(n).to(averages)
    means = averages.new_zeros(n + 1, products.shape[1], n)
    for place in range(n):  # norms before it subtract nothing of the share: 0
        means[place, :, place:] = torch.linalg.solve_triangular(
            system[place:, place:], averages[place:], upper=False, unitriangular=True
        ).T
    return means


def _back(
    products: Float[Tensor, "place d_model"],
) -> Float[Tensor, "place norm d_model"]:
    """B_q, what a place q reads of each m_j: -G_q / G_j of the norms j < q, else 0."""
    n = len(products) - 1
    ratios = -products[:, None] / products[:-1]  # (place, norm, d_model)
    is_passed = torch.arange(n) < torch.arange(n + 1)[:, None]
    return ratios * is_passed[..., None].to(products)


def _check_range(products: Float[Tensor, "place d_model"], dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    sizes = products.abs()
    if sizes.min() < limits.tiny**0.75 or sizes.max() > limits.max**0.75:
        raise UserError(
            "gains of this model's layer norms multiply to between "
            f"{float(sizes.min()):.1e} and {float(sizes.max()):.1e} in one channel, "
            f"too far apart for {dtype}; load the model in double precision"
        )
