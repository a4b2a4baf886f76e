"""A site is a place where a model can be cut: a module path, an axis and its units."""

from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["neurons", "heads", "hidden", "weights"]
UNIT_KINDS: tuple[UnitKind, ...] = ("neurons", "heads", "hidden", "weights")


@dataclass(frozen=True)
class Site:
    """One gateable tensor.

    `neurons` and `heads` gate the input of `module` (last axis: the units side by side,
    each `unit_size` wide); `hidden` gates the output of `module` (last axis); `weights`
    gates `module.weight`, unit i being entry i of the flattened parameter as stored.
    """

    kind: UnitKind
    module: str
    layer: int
    """0 is the first block; -1 the embedding level of `hidden` sites."""
    n_units: int
    unit_size: int = 1

    @property
    def name(self) -> str:
        """Unique key of the site in masks and files, e.g. `h.0.mlp.c_proj:neurons`."""
        return f"{self.module}:{self.kind}"

    @property
    def width(self) -> int:
        """Size of the gated axis."""
        return self.n_units * self.unit_size
