"""Cut neurons of a class, or controls: a run that evaluate and relearn accept.

    python scripts/select_mask.py --task ioi --model smollm2 --classes weakening
    python scripts/select_mask.py --task ioi --model smollm2 --classes weakening \
        --control frequency --seed 1
    python scripts/select_mask.py --task ioi --model smollm2 --classes weakening \
        --ablation mean --when gate-/post+

Classes are those of weight_classes.py, from the weights of the task's model. All
neurons of the class are ablated, or --n_ablated of them, a --fraction, or --as_many_as
another class has. --control ablates as many neurons of the same layers that are outside
the class, drawn with --seed, and with `frequency` on about as often. --when ablates at
the tokens with these signs alone. Writes a new run under runs/ with mask.safetensors,
mask.json and results.json; as long as it takes to load the model and measure means and
frequencies on the task's split `mask`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.experiments.flags import TaskConfig, run_dir_flag
from circuitcut.masks.gate_settings import AblationKind
from circuitcut.masks.neurons.rule import EVERYWHERE, Rule, rule_of
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import Headings, flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script
from circuitcut.weight_classes.selection_flags import WHEN_HELP, ChoiceFlags, RuleFlags


@dataclass(frozen=True)
class SelectConfig(RuleFlags, ChoiceFlags, TaskConfig):
    """Which neurons, and for which task and model."""

    heading: ClassVar[str] = "what is cut"
    headings: ClassVar[Headings] = {
        "neurons": ("control",),
        "ablation": ("when", "mean_over", "positions"),
    }

    control: Literal["none", "layer", "frequency"] = flag(
        "none",
        "instead of them, as many neurons of each layer outside the classes; "
        "frequency: that are also on about as often",
    )
    ablation: Literal[
        "zero", "mean", "counterfactual", "fixed", "cap", "relu", "scale"
    ] = flag(
        "zero",
        "what replaces an activation x: 0, its mean, that on the paired input, --theta "
        "(fixed), min(x, theta) (cap), max(x, 0) (relu) or theta x (scale)",
    )
    when: str = flag(EVERYWHERE, WHEN_HELP)
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    positions: Literal["words", "all"] = flag(
        "words", "words: special tokens and a causal model's first position stay uncut"
    )
    name: Path | None = flag(None, "name of the run directory; default: generated")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice()
        self.check_rule(self.ablation, [self.when], self.max_length)
        if self.ablation == "counterfactual" and (self.when, self.at_positions) != (
            EVERYWHERE,
            [],
        ):
            raise UserError(
                "--when and --at_positions cannot be given with --ablation "
                "counterfactual; take another ablation, or leave them out"
            )

    @property
    def rule(self) -> Rule | None:
        """The rule of the ablation; None: one value for all tokens."""
        if self.ablation == "counterfactual":
            return None
        rule = rule_of(self.ablation, self.theta, self.when, tuple(self.at_positions))
        return None if rule in (Rule("zero"), Rule("mean")) else rule

    @property
    def needs_frequency(self) -> bool:
        """Whether neurons are chosen by how often they are on."""
        return self.control == "frequency" or self.take != "drawn"


parse_first(__name__, SelectConfig, __doc__)

import torch
from torch import Tensor

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.describe import header, per_site
from circuitcut.experiments.freeze import provenance
from circuitcut.experiments.gate_training import (
    ablation_values,
    mean_batches,
    special_ids,
)
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import check_pairs
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import new_run, save_frozen
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.neurons.values import (
    check_gates,
    conditional_means,
    rule_values,
)
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.weight_classes.activity import Activity, activity_of
from circuitcut.weight_classes.checkpoint import Checkpoint, checkpoint_of
from circuitcut.weight_classes.selection import (
    Chosen,
    choose,
    classes_of,
    control_by,
    flipped_of,
    frozen_mask,
    n_chosen,
)


def main(config: SelectConfig) -> Path:
    """Classify, choose, measure ablation values, save the mask as a run."""
    config.check_given()
    RunDirectory.check(config.run_dir, config.name)
    experiment = load(config)
    check_pairs(experiment.task, config.ablation)
    experiment = resolved(with_base_model(experiment), config)
    checkpoint = checkpoint_of(experiment.loaded.model, experiment.loaded.name)
    sites = sites_of(experiment.loaded.model, ["neurons"])
    chosen, selection = _chosen(config, experiment, checkpoint, sites)
    mask = _mask(config, experiment, checkpoint, sites, chosen)
    run = new_run(
        experiment,
        config,
        "select_mask",
        name=config.name,
        made_with=provenance_of(experiment),
    )
    with run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        save_frozen(mask, None, run.path)
        results = header("select_mask", experiment, mask=mask) | {
            "selection": selection,
            "per_site": per_site(mask),
            "next": command("evaluate", {"mask": run.path, **run_dir_flag(config)}),
        }
        run.write_results(results)
    print(f"{mask.n_ablated:,} of {mask.n_units:,} neurons ablated: {_words(config)}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


def _chosen(
    config: SelectConfig,
    experiment: Experiment,
    checkpoint: Checkpoint,
    sites: tuple[Site, ...],
) -> tuple[Chosen, dict[str, Any]]:
    """The neurons to ablate, and what results.json says of them."""
    if not checkpoint.layout.is_gated:
        print(
            f"{checkpoint.config['model_type']} has no gated MLPs: its neurons are "
            "classified by cos(w_in, w_out) alone"
        )
    classes = classes_of(checkpoint, config.tau, config.convention)
    rng = torch.Generator().manual_seed(config.seed)
    active = None
    if config.needs_frequency:
        active = _activity(config, experiment, checkpoint, sites)

    def frequency() -> list[Tensor]:
        assert active is not None
        return active.on()

    chosen, whole = choose(config, classes, frequency, rng)
    if config.control != "none":
        chosen = control_by(
            config.control, chosen, whole, frequency, config.tolerance, rng
        )
    return chosen, {
        **config.described(),
        "n_of_classes": n_chosen(whole),
        "control": config.control,
        "gated": checkpoint.layout.is_gated,
        "when": config.when,
        "theta": config.theta,
        "at_positions": config.at_positions,
        "on": active and {"ablated": active.mean_on(chosen)},
    }


def _activity(
    config: SelectConfig,
    experiment: Experiment,
    checkpoint: Checkpoint,
    sites: tuple[Site, ...],
) -> Activity:
    """How often every neuron is on, at the real tokens of the split `mask`."""
    settings = _settings(config)
    flipped = flipped_of(checkpoint, config.convention)
    batches = mean_batches(experiment, "real", settings.mean_positions, False)
    return activity_of(experiment.loaded.model, sites, batches, flipped)


def _settings(config: SelectConfig) -> MaskSettings:
    kinds: dict[str, AblationKind] = {
        "mean": "mean",
        "counterfactual": "counterfactual",
    }
    return MaskSettings(
        gate="none",
        direction="break",
        ablation=kinds.get(config.ablation, "zero"),
        mean_over=config.mean_over,
        positions=config.positions,
        seed=config.seed,
    )


def _mask(
    config: SelectConfig,
    experiment: Experiment,
    checkpoint: Checkpoint,
    sites: tuple[Site, ...],
    chosen: Chosen,
) -> FrozenMask:
    settings = _settings(config)
    return frozen_mask(
        chosen,
        sites,
        _values(config, experiment, checkpoint, sites),
        special_ids=special_ids(experiment, settings),
        provenance=provenance(experiment, settings),
    )


def _values(
    config: SelectConfig,
    experiment: Experiment,
    checkpoint: Checkpoint,
    sites: tuple[Site, ...],
) -> AblationValues:
    settings, rule = _settings(config), config.rule
    if rule is None:
        return ablation_values(experiment, sites, settings)
    check_gates(experiment.loaded.model, sites, rule)
    flipped, means = flipped_of(checkpoint, config.convention), None
    if rule.kind == "mean":
        key = "retain" if config.mean_over == "retain" else "real"
        batches = mean_batches(experiment, key, settings.mean_positions, False)
        means = conditional_means(
            experiment.loaded.model, sites, batches, rule, flipped
        )
    return rule_values(rule, sites, flipped, means)


def _words(config: SelectConfig) -> str:
    names = " and ".join(config.class_names)
    where = "" if config.when == EVERYWHERE else f", at tokens with {config.when}"
    if config.control == "none":
        return names + where
    as_often = ", on as often" if config.control == "frequency" else ""
    return f"as many in each layer as are {names}, outside the class{as_often}{where}"


if __name__ == "__main__":
    run_script(main, SelectConfig)
