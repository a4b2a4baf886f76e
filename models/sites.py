"""A site is a place where a model can be cut: a module path, an axis and its units."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from circuitcut.models.names import UnitKind
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class Site:
    """One tensor that can be gated.

    `neurons` and `heads` gate the input of `module` (last axis: `n_units` units, each
    `unit_size` wide). `hidden` gates the output of `module` (last axis). `weights`
    gates `module.weight`; unit i is entry i of the flattened parameter as stored.
    `edges` gates the output of each earlier writer separately for each reader in the
    block `module`, in the order of `graph`; the last site, at the final norm, holds the
    edges into the logits.
    """

    kind: UnitKind
    module: str
    layer: int
    """0 is the first block, -1 the embedding level (`hidden`), and the number of blocks
    is the layer of the logits (`edges`)."""
    n_units: int
    unit_size: int = 1
    graph: ResidualGraph | None = None
    """The complete residual graph of a site of `edges`."""

    @property
    def name(self) -> str:
        """Unique key of the site in masks and files, e.g. `h.0.mlp.c_proj:neurons`."""
        return f"{self.module}:{self.kind}"

    @property
    def is_logits(self) -> bool:
        """Whether these are the edges into the logits."""
        return self.graph is not None and self.layer == self.graph.n_layers

    @property
    def width(self) -> int:
        """Size of the gated axis."""
        return self.n_units * self.unit_size

    def check_width(self, x: Tensor) -> None:
        """Refuse activations that a mask of this site is not for.

        Raises:
            UserError: When their last axis has another width.
        """
        if x.shape[-1] != self.width:
            raise UserError(
                f"{self.name} has activations of width {x.shape[-1]}, the mask is for "
                f"width {self.width}; this mask is for another model"
            )


def split_by_site(vector: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    """A vector over the units of all sites, cut into one piece per site name."""
    pieces = vector.split([site.n_units for site in sites])
    return {site.name: piece for site, piece in zip(sites, pieces, strict=True)}
