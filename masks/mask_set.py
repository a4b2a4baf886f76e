"""One gate vector over all units of a run, split by site."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.registry import GATES, GateSettings
from circuitcut.models.sites import Site, split_by_site
from circuitcut.storage.errors import UserError


class MaskSet(nn.Module):
    """The trainable masks of a run, outside the model and in float32.

    Soft top-k needs a single threshold, so the sites share one gate vector.

    Args:
        sites: The gated sites; their units are counted in this order.
        gate: A name in `GATES`.
        settings: Settings of the gate.
        trainable: A superset mask: only the units that it ablates get a gate; the gates
            of all other units are fixed at 1. None trains every unit.

    Raises:
        UserError: When the gate is unknown, there are no sites or a site twice, or the
            superset mask has other sites or ablates nothing.
    """

    averaged: Tensor
    n_averaged: Tensor
    trainable_index: Tensor | None

    def __init__(
        self,
        sites: Sequence[Site],
        gate: str,
        settings: GateSettings,
        *,
        trainable: FrozenMask | None = None,
    ):
        super().__init__()
        if gate not in GATES:
            raise UserError(
                f"argument gate must be one of {sorted(GATES)}, got {gate!r}"
            )
        _check_sites(sites)
        self.sites = tuple(sites)
        self.n_units = sum(site.n_units for site in self.sites)
        index = None if trainable is None else _ablated_index(self.sites, trainable)
        self.register_buffer("trainable_index", index)
        n_trainable = self.n_units if index is None else index.numel()
        self.gate_name = gate
        self.gate = GATES[gate](n_trainable, settings)
        self.register_buffer("averaged", torch.zeros(n_trainable))
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64))

    def start_from(self, ranking: Mapping[str, Float[Tensor, "_unit"]]) -> None:
        """Set the scores by the order of a ranking; the highest are kept longest.

        The scores become logit(rank / n), so that k gates of n are open at the
        threshold logit(1 - k / n) whatever the ranking's own scale. Gates without a
        budget keep their first mean: the scores are added to it.

        Args:
            ranking: Scores by site name.

        Raises:
            UserError: When the gates are numbers in [0, 1] themselves.
        """
        if not self.gate.ranks_freely:
            raise UserError(
                f"gate {self.gate_name} cannot start from a ranking: its scores are "
                "gates in [0, 1]; use hard_concrete or topk, or --start equal"
            )
        flat = torch.cat([ranking[site.name].detach().cpu() for site in self.sites])
        if self.trainable_index is not None:
            flat = flat[self.trainable_index.cpu()]
        order = flat.double().argsort(stable=True).argsort(stable=True)
        quantiles = (order + 0.5) / len(flat)
        scores = self.gate.scores()
        with torch.no_grad():
            scores += quantiles.logit().to(scores)

    def sample(self, rng: torch.Generator) -> dict[str, Float[Tensor, "_unit"]]:
        """One sample of all gates by site name; `rng` is a CPU generator."""
        return self.split(self._expand(self.gate.sample(rng)))

    def values(self, n_ablated: int | None = None) -> dict[str, Float[Tensor, "_unit"]]:
        """The deterministic gates by site name.

        Args:
            n_ablated: Of gates with a budget, those that ablate so many units; None:
                the middle of their range.
        """
        if n_ablated is None:
            return self.split(self._expand(self.gate.values()))
        return self.split(self._expand(self.gate.values_ablating(n_ablated)))

    def keep_probs(self) -> dict[str, Float[Tensor, "_unit"]]:
        """Expected gates by site name: probability or degree of being kept."""
        return self.split(self._expand(self.gate.keep_probs()))

    def split(self, vector: Float[Tensor, "all_units"]) -> dict[str, Tensor]:
        """A vector over all units, split into one piece per site name."""
        return split_by_site(vector, self.sites)

    def expected_ablated(self) -> Float[Tensor, ""]:
        """Expected number of ablated units, in closed form."""
        return (1.0 - self.gate.keep_probs()).sum()

    def expected_kept(self) -> Float[Tensor, ""]:
        """Expected number of kept units, including units with gates fixed at 1."""
        return self.n_units - self.expected_ablated()

    def average_(self, decay: float) -> None:
        """Update average = decay * average + (1 - decay) * scores.

        The first call copies the scores.
        """
        with torch.no_grad():
            weight = 1.0 if self.n_averaged.item() == 0 else 1.0 - decay
            self.averaged.lerp_(self.gate.scores().detach(), weight)
            self.n_averaged += 1

    def ranking(self) -> Float[Tensor, "all_units"]:
        """Averaged scores, if any, else the scores; infinity for gates fixed at 1."""
        scores = self.gate.scores() if self.n_averaged.item() == 0 else self.averaged
        return self._expand(scores.detach(), held=float("inf"))

    def anneal(self, progress: float) -> None:
        """Set the gate's schedules to `progress` in [0, 1] of the run."""
        self.gate.anneal(progress)

    def project_(self) -> None:
        """Clamp the gate's parameters to their range after an optimiser step."""
        self.gate.project_()

    def round_(self) -> None:
        """Round gates that are parameters at 0.5."""
        self.gate.round_()

    def saturated_share(self) -> float:
        """Share of trainable gates with (almost) no gradient."""
        return self.gate.saturated_share()

    def _expand(self, vector: Tensor, held: float = 1.0) -> Tensor:
        if self.trainable_index is None:
            return vector
        full = vector.new_full((self.n_units,), held)
        return full.index_copy(0, self.trainable_index, vector)


def _ablated_index(sites: tuple[Site, ...], superset: FrozenMask) -> Tensor:
    if set(superset.keep) != {site.name for site in sites}:
        raise UserError(
            "argument trainable must be a mask of the same sites, got "
            f"{len(superset.sites)} sites for {len(sites)}; use the sites of that mask"
        )
    ablated = torch.cat([~superset.keep[site.name] for site in sites])
    if not ablated.any():
        raise UserError(
            "argument trainable must ablate at least one unit, got 0; only the units "
            "it ablates are trained"
        )
    return ablated.nonzero().squeeze(1)


def _check_sites(sites: Sequence[Site]) -> None:
    names = [site.name for site in sites]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"argument sites must hold at least one site and each once, got {names}"
        )
