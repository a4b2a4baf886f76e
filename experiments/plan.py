"""What a mask run does where no flag says otherwise: settings chosen on `tune`."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

from torch import nn

from circuitcut.attribution.registry import METHODS, able
from circuitcut.experiments.gates import MaskSettings
from circuitcut.experiments.micro_batches import check_memory
from circuitcut.masks.edges.sites import check_one_graph
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gate import Direction
from circuitcut.masks.mask_set import MaskSet
from circuitcut.models.architectures import sites_of
from circuitcut.models.loading import LoadedModel
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import AttentionBias, Position
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task
from circuitcut.tasks.registry import TASKS

REAL_ENCODER = MaskSettings()
"""CALIBRATION: soft top-k, margin hinge, KL to the uncut model on the other words."""
TINY = MaskSettings(ablation="mean", k_min=8.0, k_max=320.0, lr=0.2)
"""The small built-in models carry a concept in attention too."""
RECIPES: dict[str, MaskSettings] = {
    "locations": REAL_ENCODER,
    "ioi": MaskSettings(
        ablation="mean",
        concept_objective="uniform",
        k_min=1.0,
        k_max=64.0,
        retain_weight=16.0,
    ),
    "toxicity": MaskSettings(
        concept_objective="ascent",
        token_cap=10.0,  # with less, the tokens of a weak model have no gradient
        retain_objective="cross_entropy",
        retain_weight=2.7,
        k_min=20.0,
        k_max=300.0,
        n_steps=500,
        batch_size=48,
    ),
    "mnist": MaskSettings(
        ablation="mean",
        margin_floor=6.0,
        retain_weight=6.0,
        k_min=100.0,
        k_max=1500.0,
        n_steps=1500,
        batch_size=128,
    ),
}
OF_MODEL: dict[tuple[str, str], MaskSettings] = {
    ("locations", "tiny-encoder"): TINY,
    ("locations", "tiny-decoder"): TINY,
}
UNITS: dict[str, list[str]] = {
    "locations": ["neurons"],
    "ioi": ["neurons", "heads"],
    "toxicity": ["neurons", "heads"],
    "mnist": ["weights"],
}
UNITS_OF_MODEL: dict[tuple[str, str], list[str]] = {
    ("locations", "tiny-encoder"): ["neurons", "heads"],
    ("locations", "tiny-decoder"): ["neurons", "heads"],
}


EDGES: dict[str, MaskSettings] = {
    # a real encoder has thousands, and a concept is carried by dozens of them
    "locations": replace(REAL_ENCODER, k_min=4.0, k_max=400.0),
    "toxicity": replace(
        RECIPES["toxicity"],
        ablation="mean",
        retain_weight=2.0,
        k_min=2.0,
        k_max=64.0,
        n_steps=300,
    ),
    "ioi": MaskSettings(
        ablation="mean",
        concept_objective="uniform",
        k_min=1.0,
        k_max=16.0,
        retain_weight=4.0,
    ),
}
"""Where edges are cut, if not by the task's own recipe."""
ISOLATED_SHARES = 0.0125, 0.25
"""Smallest and largest k drawn in `isolate`, as shares of all edges."""

ISOLATED_EDGES: dict[str, Any] = {
    "price": 0.01,
    "n_steps": 300,
    # a norm undoes what a gate scales: only a gate near zero shows that it is needed
    "power": 5.0,
    "temperature_end": 0.05,
    # what an edge has to say comes in a few steps and must not slow all later ones
    "beta2": 0.98,
}
"""Planted circuits (benchmarks/planted_circuits.py) were missed without them."""


class HasRecipe(Protocol):
    """Flags of a script that cuts units."""

    @property
    def task(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def units(self) -> list[str]: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def merged_qkv(self) -> bool: ...
    @property
    def attention_bias(self) -> AttentionBias: ...
    @property
    def position_node(self) -> Position: ...


def units_of(config: HasRecipe) -> Sequence[str]:
    """Kinds of unit asked for, or those of the task and model."""
    key = config.task, config.model_name
    return config.units or UNITS_OF_MODEL.get(key, UNITS[config.task])


def sites_for(config: HasRecipe, model: nn.Module) -> tuple[Site, ...]:
    """The sites that the flags ask for.

    Raises:
        UserError: When the model cannot be cut there.
    """
    sites = sites_of(
        model,
        units_of(config),
        config.layers or None,
        merged_qkv=config.merged_qkv,
        attention_bias=config.attention_bias,
        position_node=config.position_node,
    )
    if any(site.kind == "edges" for site in sites):
        ResidualModel(model)  # refuses a model that lacks a module
    return sites


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
        return sorted(possible)
    for method in methods:
        told = None if method == "none" else METHODS[method].cannot_rank(units)
        if told is not None:
            raise UserError(
                f"attribution method {method} {told}; use one of {', '.join(possible)}"
            )
    return [method for method in methods if method != "none"]


def settings_of(config: Any, n_units: int) -> MaskSettings:
    """The recipe of task and model with the flags of `train_mask` that were given.

    Raises:
        UserError: When the range of k does not fit the number of units.
    """
    recipe = OF_MODEL.get((config.task, config.model_name), RECIPES[config.task])
    edges = "edges" in units_of(config)
    if edges:
        recipe = EDGES.get(config.task, recipe)
    recipe = adapted(
        recipe,
        gate=config.gate,
        direction=config.direction,
        edges=edges,
        paired=has_pairs(config.task),
        n_units=n_units,
    )
    given = {
        f.name: getattr(config, f.name)
        for f in fields(MaskSettings)
        if getattr(config, f.name, None) is not None
    }
    settings = replace(recipe, **given)
    if edges:  # an edge carries all positions
        settings = replace(settings, positions="all")
    if not 0 < settings.k_min <= settings.k_max < n_units:
        raise UserError(
            f"--k_min and --k_max must satisfy 0 < k_min <= k_max < {n_units} (all "
            f"units), got {settings.k_min:g} and {settings.k_max:g}"
        )
    if settings.penalty == "lagrangian" and settings.target_ablated > n_units:
        raise UserError(
            f"--target_ablated must be at most the {n_units} units, got "
            f"{settings.target_ablated:g}"
        )
    return settings


def adapted(
    recipe: MaskSettings,
    *,
    gate: str | None,
    direction: Direction,
    edges: bool,
    paired: bool,
    n_units: int,
) -> MaskSettings:
    """A task's recipe, moved to another gate or direction, or to edges.

    Args:
        recipe: For soft top-k and `break`.
        gate: None stays with the recipe's.
        paired: The task has counterfactual inputs.
        n_units: All units; the range of k is made to fit.
    """
    if gate not in (None, "topk"):
        recipe = replace(recipe, gate=gate, penalty="price", lr=0.15)
    gate = recipe.gate
    recipe = replace(recipe, direction=direction)
    if direction == "isolate":
        recipe = replace(recipe, concept_objective="kl", retain_weight=0.0)
    if edges and direction == "isolate":
        low, high = (share * n_units for share in ISOLATED_SHARES)
        recipe = replace(recipe, **ISOLATED_EDGES, k_min=low, k_max=max(high, 16.0))
        if gate != "topk":
            # bounded: with KL, noise that breaks the circuit makes edges worth keeping
            # that only make a broken circuit's answers less wrong
            recipe = replace(recipe, concept_objective="js")
        if paired:
            recipe = replace(recipe, ablation="counterfactual")
    recipe = replace(recipe, k_max=min(recipe.k_max, n_units / 2))
    return replace(recipe, k_min=min(recipe.k_min, recipe.k_max / 4))


def plan(
    config: Any, superset: FrozenMask | None, loaded: LoadedModel
) -> tuple[tuple[Site, ...], MaskSettings]:
    """What is cut and how; `config` is that of `train_mask`.

    Raises:
        UserError: When the model or the task cannot follow a flag.
    """
    units = units_of(config)
    methods_of(config.attribution, units)
    sites = sites_for(config, loaded.model)
    n_units = sum(site.n_units for site in sites)
    for name, sizes in (
        ("n_ablated", [config.n_ablated or 0]),
        ("curve_sizes", config.curve_sizes),
    ):
        if any(not 0 <= size <= n_units for size in sizes):
            raise UserError(
                f"--{name} must be at most the {n_units} units of {' and '.join(units)}"
                f" in {config.model_name}, got {', '.join(map(str, sizes))}"
            )
    settings = settings_of(config, n_units)
    check_pairs(config.task, settings.ablation)
    if settings.per_position and TASKS[config.task].head == "image_classification":
        raise UserError(
            f"--per_position needs a sequence, which --task {config.task} has not; "
            "leave it out"
        )
    if superset is not None and superset.sites != sites:
        check_one_graph([*superset.sites, *sites])
        raise UserError(
            "--superset must be a mask of the units that are trained, got one of "
            f"{', '.join(site.name for site in superset.sites)}; repeat its --units, "
            "--layers and --model"
        )
    check_memory(
        loaded.model,
        sites,
        config.max_length,
        counterfactual=settings.ablation == "counterfactual",
    )
    MaskSet(sites, settings.gate, settings.gate_settings())  # refuses its settings
    return sites, settings


def check_pairs(task: str, ablation: str) -> None:
    """Refuse counterfactual ablation where a task has no paired inputs.

    Raises:
        UserError: Naming the tasks that have them.
    """
    if ablation == "counterfactual" and not has_pairs(task):
        able = " and ".join(name for name in TASKS if has_pairs(name))
        raise UserError(
            f"--ablation counterfactual needs paired inputs, which {able} have and "
            f"{task} has not; use mean or zero"
        )


def has_pairs(task: str) -> bool:
    """Whether the task's inputs have counterfactuals."""
    return TASKS[task].counterfactual is not Task.counterfactual
