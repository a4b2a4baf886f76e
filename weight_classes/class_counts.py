"""Where a set of neurons falls among the classes, beside sets drawn at random.

Of n neurons drawn without replacement from N, the number in a class of K is
hypergeometric: mean n K / N. A method that prefers some layers finds their classes
without looking at them; therefore the same with as many neurons drawn in every layer,
whose number is a sum of independent hypergeometric ones. Both are exact; intervals are
the central 95 %. p is two-sided, 2 min(P(X <= x), P(X >= x)), at most 1, of the draw by
layer, and not corrected for the number of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom
from torch import Tensor

from circuitcut.weight_classes.names import CLASSES
from circuitcut.weight_classes.selection import Chosen

_TAIL = 0.025


@dataclass(frozen=True)
class Chance:
    """The number of neurons of a class in a random set."""

    expected: float
    interval: tuple[int, int]


@dataclass(frozen=True)
class ClassCount:
    """Neurons of one class in a set, and how many chance would give."""

    name: str
    n_class: int
    n: int
    by_chance: Chance
    by_layer: Chance
    p: float


def count_by_class(
    classes: Sequence[Int[Tensor, "_unit"]], chosen: Chosen, names: Sequence[str]
) -> list[ClassCount]:
    """One entry a class, in the order of `names`.

    Args:
        classes: Of every neuron, layer by layer; see `classes.classify`.
        chosen: The set, one bool a neuron.
        names: The classes that the model can have.
    """
    found = []
    for name in names:
        sizes, inside, n = [], [], 0
        for of_layer, here in zip(classes, chosen, strict=True):
            in_class = of_layer == CLASSES.index(name)
            sizes.append((len(of_layer), int(in_class.sum()), int(here.sum())))
            inside.append(int((in_class & here).sum()))
        n = sum(inside)
        whole = probabilities([tuple(int(s) for s in np.sum(sizes, axis=0))])
        of_layers = probabilities(sizes)
        below, above = of_layers[: n + 1].sum(), of_layers[n:].sum()
        found.append(
            ClassCount(
                name,
                sum(k for _, k, _ in sizes),
                n,
                _chance(whole),
                _chance(of_layers),
                float(min(1.0, 2 * min(below, above))),
            )
        )
    return found


def probabilities(
    sizes: Sequence[tuple[int, ...]],
) -> Float[np.ndarray, "number"]:
    """P(X = 0), P(X = 1), ... of a sum of independent hypergeometric numbers.

    Args:
        sizes: Of each: neurons, those in the class, those drawn.
    """
    found = np.ones(1)
    for n_all, n_class, n_drawn in sizes:
        numbers = np.arange(min(n_class, n_drawn) + 1)
        found = np.convolve(found, hypergeom(n_all, n_class, n_drawn).pmf(numbers))
    return found / found.sum()


def _chance(p: Float[np.ndarray, "number"]) -> Chance:
    up_to = p.cumsum()
    low, high = (int(np.searchsorted(up_to, end)) for end in (_TAIL, 1 - _TAIL))
    return Chance(float(p @ np.arange(len(p))), (low, high))
