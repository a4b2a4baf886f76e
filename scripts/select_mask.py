"""Cut neurons of a class, or controls: a run that evaluate and relearn accept.

    python scripts/select_mask.py --task ioi --model smollm2 --classes weakening
    python scripts/select_mask.py --task ioi --model smollm2 --classes weakening \
        --control layer --seed 1

Classes are those of weight_classes.py, from the weights of the task's model. All
neurons of the class are ablated, or --n_ablated of them, a --fraction, or --as_many_as
another class has. --control ablates as many neurons of the same layers that are outside
the class, drawn with --seed. Writes a new run under runs/ with mask.safetensors,
mask.json and results.json; as long as it takes to load the model and measure means.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from circuitcut.experiments.flags import TaskConfig, run_dir_flag
from circuitcut.masks.gate_settings import AblationKind
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import POSITIVE_SHARE, PROBABILITY, UNITS
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script
from circuitcut.weight_classes.names import CLASSES, class_named
from circuitcut.weight_classes.settings import TAU, Convention


@dataclass(frozen=True)
class SelectConfig(TaskConfig):
    """Which neurons, and for which task and model."""

    heading: ClassVar[str] = "what is cut"

    classes: list[str] = flag(
        [],
        "classes whose neurons are ablated: "
        + ", ".join(name.replace(" ", "_") for name in CLASSES),
    )
    n_ablated: int | None = flag(
        None, "only so many of them, drawn with --seed", within=UNITS
    )
    fraction: float | None = flag(
        None, "only this share of them, drawn with --seed", within=POSITIVE_SHARE
    )
    as_many_as: str | None = flag(
        None, "only as many of them as this class has, drawn with --seed"
    )
    control: Literal["none", "layer"] = flag(
        "none",
        "layer: instead of them, as many neurons of each layer outside the classes",
    )
    tau: float = flag(TAU, "threshold of the classes", within=PROBABILITY)
    convention: Convention = flag(
        "folded", "weights with the gain of the norm before the MLP, or raw"
    )
    ablation: Literal["zero", "mean", "counterfactual"] = flag(
        "zero", "what replaces an ablated activation"
    )
    mean_over: Literal["retain", "all"] = flag(
        "retain", "positions over which means are taken"
    )
    positions: Literal["words", "all"] = flag(
        "words", "words: special tokens and a causal model's first position stay uncut"
    )
    name: Path | None = flag(None, "name of the run directory; default: generated")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.classes, *filter(None, [self.as_many_as])):
            if class_named(name) is None:
                raise UserError(
                    f"--classes and --as_many_as must name some of {', '.join(CLASSES)}"
                    f" (with _ for blanks), got {name!r}"
                )
        sizes = {
            "n_ablated": self.n_ablated,
            "fraction": self.fraction,
            "as_many_as": self.as_many_as,
        }
        given = [f"--{name}" for name, value in sizes.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same; give one of them")

    @property
    def class_names(self) -> list[str]:
        """The classes by their own names, each once."""
        names = [class_named(name) for name in self.classes]
        return list(dict.fromkeys(name for name in names if name is not None))


parse_first(__name__, SelectConfig, __doc__)

import torch

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.describe import header, per_site
from circuitcut.experiments.freeze import provenance
from circuitcut.experiments.gate_training import ablation_values, special_ids
from circuitcut.experiments.load import Experiment, load, provenance_of
from circuitcut.experiments.plan import check_pairs
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.saved_runs import new_run, save_frozen
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.selection import (
    Chosen,
    classes_of,
    control,
    drawn,
    frozen_mask,
    members,
    n_chosen,
    number_of,
)


def main(config: SelectConfig) -> Path:
    """Classify, choose, measure ablation values, save the mask as a run."""
    if not config.classes:
        raise UserError(
            "--classes must name the classes to ablate, for instance weakening"
        )
    RunDirectory.check(config.run_dir, config.name)
    experiment = load(config)
    check_pairs(experiment.task, config.ablation)
    experiment = resolved(with_base_model(experiment), config)
    chosen, selection = _chosen(config, experiment)
    mask = _mask(config, experiment, chosen)
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
    config: SelectConfig, experiment: Experiment
) -> tuple[Chosen, dict[str, Any]]:
    """The neurons to ablate, and what results.json says of them."""
    loaded = experiment.loaded
    checkpoint = checkpoint_of(loaded.model, loaded.name)
    if not checkpoint.layout.is_gated:
        print(
            f"{checkpoint.config['model_type']} has no gated MLPs: its neurons are "
            "classified by cos(w_in, w_out) alone"
        )
    classes = classes_of(checkpoint, config.tau, config.convention)
    whole = members(classes, config.class_names)
    other = config.as_many_as and class_named(config.as_many_as)
    n_of_other = n_chosen(members(classes, [other])) if other else None
    n = number_of(n_chosen(whole), config.n_ablated, config.fraction, n_of_other)
    rng = torch.Generator().manual_seed(config.seed)
    chosen = whole if n == n_chosen(whole) else drawn(whole, n, rng)
    if config.control == "layer":
        chosen = control(chosen, whole, rng)
    return chosen, {
        "classes": config.class_names,
        "n_of_classes": n_chosen(whole),
        "control": config.control,
        "tau": config.tau,
        "convention": config.convention,
        "gated": checkpoint.layout.is_gated,
    }


def _mask(config: SelectConfig, experiment: Experiment, chosen: Chosen) -> FrozenMask:
    sites = sites_of(experiment.loaded.model, ["neurons"])
    kind: AblationKind = config.ablation
    settings = MaskSettings(
        gate="none",
        direction="break",
        ablation=kind,
        mean_over=config.mean_over,
        positions=config.positions,
        seed=config.seed,
    )
    return frozen_mask(
        chosen,
        sites,
        ablation_values(experiment, sites, settings),
        special_ids=special_ids(experiment, settings),
        provenance=provenance(experiment, settings),
    )


def _words(config: SelectConfig) -> str:
    names = " and ".join(config.class_names)
    if config.control == "layer":
        return f"as many in each layer as are {names}, outside the class"
    return names


if __name__ == "__main__":
    run_script(main, SelectConfig)
