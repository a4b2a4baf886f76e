"""Classes of neurons by their cosines: what a neuron does to what it reads.

With sgn(x) = 1 above tau, -1 below -tau, else 0, a neuron's class has three parts: a =
sgn(cos(w_in, w_out)); b = |sgn(cos(w_gate, w_out))|; and c = 1, the typical case, if
sgn(cos(w_gate, w_in)) = a sgn(cos(w_gate, w_out)), or if a = b = 0. A plain neuron has
the part a alone.

Gerstner & Schuetze (2025), "Understanding Gated Neurons in Transformers from Their
Input-Output Functionality", https://arxiv.org/abs/2505.17936; tau is 0.5 there. None of
the parts changes when w_in and w_out are multiplied by -1.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.names import CLASSES, PARTS, PLAIN
from circuitcut.weight_classes.settings import TAU, check_tau


def classify(cosines: Cosines, tau: float = TAU) -> Int[Tensor, "unit"]:
    """The class of every neuron, as its place in `CLASSES`.

    Raises:
        UserError: When `tau` is not between 0 and 1.
    """
    check_tau(tau)
    a = _sign(cosines.in_out, tau)
    if cosines.gate_in is None or cosines.gate_out is None:
        b, c = a.abs(), torch.ones_like(a)  # `PLAIN`: strengthening, orthogonal, ...
    else:
        gate_out = _sign(cosines.gate_out, tau)
        b = gate_out.abs()
        is_typical = _sign(cosines.gate_in, tau) == a * gate_out
        c = (is_typical | ((a == 0) & (b == 0))).long()
    found = torch.full_like(a, -1)
    for number, name in enumerate(CLASSES):
        parts = PARTS[name]
        found[(a == parts[0]) & (b == parts[1]) & (c == parts[2])] = number
    assert (found >= 0).all(), "the classes are a partition"
    return found


def counts(classes: Int[Tensor, "unit"], *, gated: bool) -> dict[str, int]:
    """Number of neurons of every class, by name."""
    numbers = torch.bincount(classes, minlength=len(CLASSES)).tolist()
    found = dict(zip(CLASSES, numbers, strict=True))
    return found if gated else {name: found[name] for name in PLAIN}


def grouped(counted: Mapping[str, int], groups: Mapping[str, str]) -> dict[str, int]:
    """Counts of classes added up by the groups that they belong to."""
    sums: dict[str, int] = {}
    for name, number in counted.items():
        sums[groups[name]] = sums.get(groups[name], 0) + number
    return sums


def binned(cosine: Float[Tensor, "unit"], n_bins: int = 10) -> dict[float, int]:
    """Number of neurons by the lower end of their bin, floor(x n / 2) 2 / n.

    The bins are [-1, -1 + 2/n), ...; 1 itself belongs to the last one.

    Args:
        n_bins: An even number.
    """
    low = -n_bins // 2
    places = (cosine.double() * n_bins / 2).floor().long() - low
    numbers = torch.bincount(places.clamp(0, n_bins - 1), minlength=n_bins).tolist()
    return {(low + k) * 2 / n_bins: number for k, number in enumerate(numbers)}


def _sign(cosine: Float[Tensor, "unit"], tau: float) -> Int[Tensor, "unit"]:
    return (cosine > tau).long() - (cosine < -tau).long()
