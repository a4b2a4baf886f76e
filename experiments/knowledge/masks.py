"""The neurons that learned masks, or masks of attribution, cut first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from circuitcut.attribution.knowledge.unit_sets import Unit
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.saved_runs import (
    RANKING_FILE,
    check_fit,
    checked_ranking,
    mask_at,
    ranking_of_run,
)
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError


def orders_of(
    paths: Sequence[Path], experiment: Experiment
) -> dict[str, tuple[Unit, ...]]:
    """The neurons of every mask in the order of its ranking, by the mask's method.

    The method is the gate or, of a mask of `attribute`, the ranking; a second mask of
    one method is `METHOD 2`.

    Raises:
        UserError: When a mask is of another model, has no neurons or no ranking.
    """
    layers = {
        site.name: layer
        for layer, site in enumerate(sites_of(experiment.loaded.model, ["neurons"]))
    }
    orders: dict[str, tuple[Unit, ...]] = {}
    for path in paths:
        mask = mask_at(path)
        check_fit(mask, path, experiment)
        names = [site.name for site in mask.sites if site.kind == "neurons"]
        if not names:
            raise UserError(
                f"--mask {path} must cut neurons, got "
                f"{' and '.join(sorted({site.kind for site in mask.sites}))}"
            )
        ranking = _ranking(path, mask)
        # the lowest are cut first; what a circuit keeps longest is its concept
        sign = -1 if mask.provenance.get("direction") == "isolate" else 1
        order = sorted(
            (sign * value, (layers[name], number))
            for name in names
            for number, value in enumerate(ranking[name].tolist())
        )
        method = str(mask.provenance.get("gate") or "mask")
        n_before = sum(name.split()[0] == method for name in orders)
        name = f"{method} {n_before + 1}" if n_before else method
        orders[name] = tuple(unit for _, unit in order)
    return orders


def _ranking(path: Path, mask: FrozenMask) -> Mapping[str, Tensor]:
    """That of a training beside the mask, or of `attribute` above it."""
    if (path / RANKING_FILE).exists():
        return ranking_of_run(path, mask)
    gate = mask.provenance.get("gate")
    of_attribute = path.resolve().parent.parent / f"{gate}.{RANKING_FILE}"
    if of_attribute.exists():
        return checked_ranking(of_attribute, mask)
    raise UserError(
        f"--mask {path} has no ranking, which tells the units that it cuts first; name "
        "a run of train_mask, or a mask in a run of attribute"
    )
