"""Train the model that will be cut, once; later runs take it from the cache.

    python scripts/train_base.py --task ioi

Built-in models are trained from scratch (under 90 s on two cores); a pretrained model
with a new classification head is fine-tuned on the task's `base` split. The result lies
in the user's cache folder (CIRCUITCUT_CACHE), named by a hash of data, model, recipe.
"""

from dataclasses import dataclass
from typing import Any

from circuitcut.experiments.flags import TaskConfig, task_flags
from circuitcut.storage.command_lines import command
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class TrainBaseConfig(TaskConfig):
    """Settings of one base model."""


parse_first(__name__, TrainBaseConfig, __doc__)

from circuitcut.experiments.base_model import (
    longer_training,
    prepare,
    warning_of_base,
)
from circuitcut.reports.tables import format_table
from circuitcut.reports.words import score_name
from circuitcut.tasks.evaluation import evaluate


def main(config: TrainBaseConfig) -> dict[str, Any]:
    """Train or find the base model and show its scores."""
    experiment = prepare(config)
    base = experiment.base
    if not experiment.accelerator.is_main_process:
        return base
    if not base:
        print(f"{config.model_name} is used as loaded; --base always fine-tunes it")
        evaluation = evaluate(experiment.task, experiment.loaded.model, "heldout")
        base = {"heldout": evaluation.scores}
    metrics = {
        "concept_metric": vars(experiment.task.concept_metric),
        "retain_metric": vars(experiment.task.retain_metric),
    }
    rows = [
        {"score": score_name(metrics, key), "held out": value}
        for key, value in base["heldout"].items()
    ]
    print(format_table(rows, ["score", "held out"]))
    if "folder" in base:
        print(f"trained in {base['seconds']} s; kept in {base['folder']}")
    flags = {"task": config.task} | task_flags(config)
    following = command("train_mask", flags)
    if warning_of_base(experiment):
        following = longer_training(config, base)
    print(f"next: {following}")
    return base


if __name__ == "__main__":
    run_script(main, TrainBaseConfig)
