"""The settings of a mask training: those of task, model and gate, then the flags."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from circuitcut.attribution.abilities import ABILITIES, able
from circuitcut.experiments.flags import units_of
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.gate_settings import (
    SETTINGS,
    Direction,
    Penalty,
    as_units,
    in_units,
)
from circuitcut.models.names import BUILTIN
from circuitcut.storage.errors import UserError
from circuitcut.tasks.settings.registry import DEFAULTS

WITHOUT_BUDGET: dict[str, Any] = {"lr": 0.15}
"""Of gates that a price or nothing keeps sparse."""
ISOLATED_SHARES = {False: (0.0125, 0.25), True: (0.005, 0.05)}
"""Smallest and largest k drawn in `isolate`, as shares of all edges; in large graphs
(True) smaller circuits are of interest."""

ISOLATED_EDGES: dict[str, Any] = {
    "n_steps": 300,
    # a norm undoes what a gate scales: only a gate near zero shows that it is needed
    "power": 5.0,
    "temperature_end": 0.05,
    # the loss of an edge shows in a few steps and must not slow all later ones
    "beta2": 0.98,
}
"""Planted circuits (benchmarks/planted_circuits.py) were missed without them."""
PRETRAINED_KL = 0.1
"""Cross-entropy alone hid a fall in fluency from perplexity 32 to 556 (SmolLM2)."""
LARGE_GRAPH = 2000
"""Edges of a graph above which scores start from EAP-IG: from equal ones nearly every
edge of a sample is closed, the cut model knows nothing, and nothing is learned for many
steps (docs/results/smollm2.md). In small graphs equal scores find planted circuits."""
FROM_RANKING: dict[str, Any] = {
    "start": "eap_ig",
    # noise of scale 1 fills half of a sample with edges that the ranking closes
    "noise_start": 0.3,
    "noise_end": 0.1,
    # with beta at 2/3 and so little noise, a sample of k edges is spread over 2.4 k
    # partly open ones, and the circuit of k edges is another than the trained one
    "stretch_temperature_end": 0.1,
    "power": 1.0,
    # the KL alone leaves logits of improbable rivals, and so faithfulness, to chance
    "concept_objective": "kl_margin",
    # of fewer prompts the gradient of most edges is noise (docs/results/smollm2.md)
    "batch_size": 32,
}
"""Of large graphs, where scores start from a ranking."""
ISOLATED_PRICE = 0.01
"""Nats an edge in small graphs; in large ones less in proportion, so that a price does
not cap circuits. Gates with a price are trained towards JS, which is
bounded: with KL, samples that ablate a part of the circuit have a very high loss, and
edges are then kept only because they lower this loss."""


def retain_kl_of(config: MaskConfig) -> float:
    """The limit of KL on retained text: what was asked for, or that of the model."""
    if config.retain_kl is not None:
        return config.retain_kl
    return math.inf if config.model_name in BUILTIN else PRETRAINED_KL


def settings_of(
    config: MaskConfig, n_units: int, *, paired: bool | None = None
) -> MaskSettings:
    """The recipe of task and model, with the flags that were given.

    Args:
        paired: The data have counterfactual inputs; None: the task can have them.
    """
    defaults = DEFAULTS[config.task]
    if paired is None:
        paired = defaults.has_pairs
    edges = "edges" in units_of(config)
    of_model = defaults.of(config.model_name)
    recipe = of_model.mask or defaults.mask
    if edges:
        recipe = of_model.mask_on_edges or defaults.mask_on_edges or recipe
    settings = adapted(
        MaskSettings(**recipe),
        gate=config.gate,
        penalty=config.penalty,
        direction=config.direction,
        edges=edges,
        paired=paired,
        n_units=n_units,
    )
    given = {
        f.name: getattr(config, f.name)
        for f in fields(MaskSettings)
        if getattr(config, f.name, None) is not None
    }
    for name in {"k_min", "k_max"} & given.keys():
        given[name] = as_units(float(given[name]), n_units)
    settings = replace(settings, **given)
    if edges and config.positions is None:  # as all published masks on edges
        settings = replace(settings, positions="all")
    if settings.retain_objective == "none":
        settings = replace(settings, retain_weight=0.0)  # it weighs nothing
    return settings


def adapted(
    recipe: MaskSettings,
    *,
    gate: str | None,
    penalty: Penalty | None = None,
    direction: Direction,
    edges: bool,
    paired: bool,
    n_units: int,
) -> MaskSettings:
    """A task's recipe, moved to another gate or direction, or to edges.

    Args:
        recipe: For a gate with a budget and `break`.
        gate: None stays with the recipe's.
        penalty: Likewise.
        paired: The task has counterfactual inputs.
        n_units: All units; the range of k is made to fit.
    """
    gate_settings = SETTINGS[gate or recipe.gate]
    if gate is not None and gate != recipe.gate:
        recipe = replace(recipe, gate=gate, **gate_settings.recipe)
    if penalty is not None:
        recipe = replace(recipe, penalty=penalty)
    has_budget = not gate_settings.has_threshold(recipe)
    if not has_budget:
        recipe = replace(recipe, **WITHOUT_BUDGET)
    recipe = replace(recipe, direction=direction)
    if direction == "isolate":
        recipe = replace(recipe, concept_objective="kl", retain_weight=0.0)
    if edges and direction == "isolate":
        is_large = n_units > LARGE_GRAPH
        low, high = (share * n_units for share in ISOLATED_SHARES[is_large])
        recipe = replace(recipe, **ISOLATED_EDGES, k_min=low, k_max=max(high, 16.0))
        if has_budget and is_large:
            recipe = replace(recipe, **FROM_RANKING)
        if not has_budget:
            price = ISOLATED_PRICE * min(1.0, LARGE_GRAPH / n_units)
            recipe = replace(recipe, price=price, concept_objective="js")
        if paired:
            recipe = replace(recipe, ablation="counterfactual")
    return in_units(recipe, n_units)


def methods_of(methods: Sequence[str], units: Sequence[str]) -> list[str]:
    """Attribution methods asked for; without any, the two usual ones of these units.

    Raises:
        UserError: When a method cannot rank the units.
    """
    possible = able(units)
    if not methods:
        usual = ("eap", "eap_ig", "gradient_margin", "probeless")
        return [name for name in usual if name in possible][:2]
    if "all" in methods:
        return sorted(m for m in possible if not ABILITIES[m].runs_each_unit)
    for method in methods:
        reason = None if method == "none" else ABILITIES[method].cannot_rank(units)
        if reason is not None:
            raise UserError(
                f"attribution method {method} {reason}; use one of "
                f"{', '.join(possible)}"
            )
    return [method for method in methods if method != "none"]


def chosen_settings(config: MaskConfig) -> dict[str, Any]:
    """What the flags amount to, as `--help` shows it: no model is loaded yet.

    Values that follow from the number of units are shares, or said to do so.
    """
    units = units_of(config)
    is_small = "edges" in units and config.model_name in BUILTIN
    sizes = (300, 1200) if is_small else (10**5, 10**6)
    some, more = (vars(settings_of(config, n)) for n in sizes)
    limit = retain_kl_of(config)
    chosen = {
        name: value if value == more[name] else _by_size(value, more[name], sizes)
        for name, value in some.items()
    }
    return chosen | {
        "retain_kl": limit if math.isfinite(limit) else "no limit",
        "attribution": methods_of([], units),
    }


def _by_size(some: Any, more: Any, sizes: tuple[int, int]) -> str:
    if isinstance(some, float) and math.isclose(some / sizes[0], more / sizes[1]):
        return f"{some / sizes[0]:g}, a share of all units"
    return "by the number of units"
