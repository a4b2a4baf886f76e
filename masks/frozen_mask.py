"""FrozenMask: the final result of a mask search, without trainable parameters."""

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.baking import bake_sites_
from circuitcut.masks.edges.sites import check_one_graph, edge_names
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_files import (
    MaskHeader,
    check_model,
    read_mask_files,
    site_dict,
    write_mask_files,
)
from circuitcut.models.sites import Site, split_by_site
from circuitcut.storage.errors import UserError


@runtime_checkable
class TrainedGates(Protocol):
    """Deterministic gates by site, as a trained `MaskSet` gives them."""

    sites: tuple[Site, ...]

    def values(self) -> dict[str, Tensor]:
        """Gates in [0, 1], (n_units,) by site name."""
        ...


@dataclass(frozen=True)
class FrozenMask:
    """The kept (True) and ablated (False) units, and the ablation values.

    A saved and reloaded mask is equal to the original. `provenance` records its origin:
    `model`, `revision`, `config_hash`, `weights_hash`, `task`, `gate`, `direction`,
    `code_version`, ...

    Raises:
        UserError: When `keep` does not hold one bool vector per site.
    """

    keep: Mapping[str, Bool[Tensor, "_unit"]]
    sites: tuple[Site, ...]
    ablated: AblationValues
    special_ids: tuple[int, ...] = ()
    """The mask does not act at positions with these `input_ids`; see `gated`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.keep) != {site.name for site in self.sites}:
            raise UserError(
                f"argument keep must name exactly the sites, got {sorted(self.keep)} "
                f"for {sorted(site.name for site in self.sites)}"
            )
        for site in self.sites:
            kept = self.keep[site.name]
            if kept.dtype != torch.bool or kept.shape != (site.n_units,):
                raise UserError(
                    f"argument keep must hold {site.n_units} bools at {site.name}, got "
                    f"{kept.dtype} of shape {tuple(kept.shape)}"
                )

    @classmethod
    def from_threshold(
        cls,
        mask_set: TrainedGates,
        ablated: AblationValues,
        *,
        threshold: float = 0.5,
        special_ids: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> "FrozenMask":
        """Keep the units whose deterministic gate is above `threshold`.

        Raises:
            UserError: When the threshold or a gate is not a number.
        """
        if math.isnan(threshold):
            raise UserError("argument threshold must be a number, got NaN")
        values = {name: gate.detach() for name, gate in mask_set.values().items()}
        _check_numbers("mask_set", "gates", values)
        keep = {name: (gate > threshold).cpu() for name, gate in values.items()}
        return cls(
            keep, mask_set.sites, ablated, tuple(special_ids), dict(provenance or {})
        )

    @classmethod
    def exactly_k(
        cls,
        scores: Mapping[str, Tensor],
        sites: Sequence[Site],
        ablated: AblationValues,
        *,
        n_ablated: SupportsIndex | float,
        special_ids: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> "FrozenMask":
        """Ablate the `n_ablated` units with the lowest scores over all sites.

        Of units with equal scores the first ones are ablated.

        Raises:
            UserError: When `n_ablated` is no integer, is negative or above the number
                of units, or a score is not a number.
        """
        joined = torch.cat(
            [scores[site.name].detach().cpu().double() for site in sites]
        )
        n_ablated = _checked_count(n_ablated, joined.numel())
        _check_numbers(
            "scores", "scores", {site.name: scores[site.name] for site in sites}
        )
        order = joined.sort(stable=True).indices
        keep = _keep_all_but(order[:n_ablated], sites)
        return cls(
            keep, tuple(sites), ablated, tuple(special_ids), dict(provenance or {})
        )

    @classmethod
    def random(
        cls,
        sites: Sequence[Site],
        ablated: AblationValues,
        *,
        n_ablated: SupportsIndex | float,
        seed: int,
        special_ids: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> "FrozenMask":
        """Ablate `n_ablated` units drawn uniformly from the units of all sites.

        Raises:
            UserError: When `n_ablated` is no integer, is negative or above the number
                of units.
        """
        n_units = sum(site.n_units for site in sites)
        n_ablated = _checked_count(n_ablated, n_units)
        rng = torch.Generator().manual_seed(seed)
        keep = _keep_all_but(torch.randperm(n_units, generator=rng)[:n_ablated], sites)
        return cls(
            keep, tuple(sites), ablated, tuple(special_ids), dict(provenance or {})
        )

    @property
    def n_units(self) -> int:
        """Number of units at all sites."""
        return sum(site.n_units for site in self.sites)

    @property
    def n_ablated(self) -> int:
        """Number of ablated units at all sites."""
        return sum(self.n_ablated_at.values())

    @property
    def n_ablated_at(self) -> dict[str, int]:
        """Number of ablated units by site name."""
        return {
            site.name: int((~self.keep[site.name]).sum().item()) for site in self.sites
        }

    def edges(self, *, kept: bool) -> list[str]:
        """Names (`a0.h1->m3`) of the kept or of the ablated edges, in graph order."""
        return edge_names(self.sites, self.keep, kept=kept)

    def overlap(self, other: "FrozenMask") -> float:
        """Jaccard index of the two sets of ablated units; 1 when both are empty.

        Raises:
            UserError: When the masks are on edges of two different graphs.
        """
        check_one_graph([*self.sites, *other.sites])
        shared = sum(
            int((~kept & ~other.keep[name]).sum().item())
            for name, kept in self.keep.items()
            if name in other.keep
        )
        union = self.n_ablated + other.n_ablated - shared
        return shared / union if union else 1.0

    def random_like(self, seed: int) -> "FrozenMask":
        """A control mask: random units, the same number ablated at each site."""
        rng = torch.Generator().manual_seed(seed)
        keep = {
            site.name: self.keep[site.name][torch.randperm(site.n_units, generator=rng)]
            for site in self.sites
        }
        provenance = {**self.provenance, "random_like_seed": seed}
        return FrozenMask(keep, self.sites, self.ablated, self.special_ids, provenance)

    def applied(
        self, model: nn.Module, *, ablated: AblationValues | None = None
    ) -> AbstractContextManager[None]:
        """Cut `model` in a `with` block; afterwards it is bit-identical to before.

        A mask on edges allows no key-value cache there: `generate` runs the whole text
        for every token, and a forward pass that gets a cache raises a `UserError`. Do
        not copy or pickle the model in the block: that raises a `UserError` too.

        Args:
            ablated: Ablation values of this batch, required for a counterfactual mask
                (`record_values` on the paired inputs).
        """
        values = self.ablated if ablated is None else ablated
        return gated(model, self.sites, self.keep, values, special_ids=self.special_ids)

    def bake_(self, model: nn.Module) -> None:
        """Write the cut into the model's weights, so that it needs no hooks.

        Raises:
            UserError: When weights cannot represent the cut; the message names the site
                and the reason, and the model is unchanged.
        """
        bake_sites_(model, self.sites, self.keep, self.ablated, self.special_ids)

    def save(self, folder: Path) -> None:
        """Write `mask.safetensors` and `mask.json` into `folder`, each atomically."""
        header = MaskHeader(
            sites=[site_dict(site) for site in self.sites],
            ablation=self.ablated.kind,
            special_ids=list(self.special_ids),
            n_ablated=self.n_ablated,
            n_units=self.n_units,
            provenance=dict(self.provenance),
        )
        write_mask_files(folder, header, self.keep, self.ablated)

    @classmethod
    def load(
        cls,
        path: Path,
        model: nn.Module | None = None,
        *,
        model_name: str | None = None,
        config_hash: str | None = None,
        allow_other_weights: bool = False,
    ) -> "FrozenMask":
        """Read a mask and check that it fits a model.

        Args:
            path: The folder, or one of its two files.
            model: Its sites, their widths and its weights are checked; None: no check.
            model_name: Name of the model, for the message.
            config_hash: Must equal the hash in the mask file.
            allow_other_weights: Accept a model of the same shape with other weights.

        Raises:
            UserError: When a file is missing, truncated or inconsistent, or the mask is
                for another model; the message names the file or all differences.
        """
        header, keep, ablated = read_mask_files(path)
        sites, special_ids = header.site_tuple(), tuple(header.special_ids)
        if model is not None:
            check_model(
                sites,
                header.provenance,
                path,
                model,
                model_name=model_name,
                config_hash=config_hash,
                allow_other_weights=allow_other_weights,
            )
        return cls(keep, sites, ablated, special_ids, header.provenance)


def _keep_all_but(index: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
    kept = torch.ones(sum(site.n_units for site in sites), dtype=torch.bool)
    kept[index] = False
    return {name: p.clone() for name, p in split_by_site(kept, sites).items()}


def _checked_count(n_ablated: SupportsIndex | float, n_units: int) -> int:
    """An integer of any kind, numpy's too, as an int; a float is none, even 3.0."""
    count = None
    if isinstance(n_ablated, SupportsIndex) and not isinstance(n_ablated, bool):
        with suppress(TypeError):  # a tensor of floats has the method and no value
            count = operator.index(n_ablated)
    if count is None:
        raise UserError(
            "argument n_ablated must be an integer, a number of units, got "
            f"{n_ablated!r} of type {type(n_ablated).__name__}"
        )
    if not 0 <= count <= n_units:
        raise UserError(
            "argument n_ablated must lie between 0 and the number of units "
            f"({n_units}), got {count}"
        )
    return count


def _check_numbers(argument: str, what: str, values: Mapping[str, Tensor]) -> None:
    wrong = {
        name: int(v.isnan().sum()) for name, v in values.items() if v.isnan().any()
    }
    if wrong:
        first = next(iter(wrong))
        raise UserError(
            f"argument {argument} must hold {what} that are numbers, got "
            f"{sum(wrong.values())} NaN, the first at {first}; train again with a "
            "smaller learning rate, or leave these units out"
        )
