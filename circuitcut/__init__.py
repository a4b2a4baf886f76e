"""Find the units of a concept with a trainable mask, cut them, measure relearning.

The names below are what a notebook needs; they are loaded when first used. The packages
(`circuitcut.masks`, ...) are the folders beside this one.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

_MODULE_OF = {
    # your own model and loss
    "learn_mask": "experiments.learn_mask",
    "LearnedMask": "experiments.learn_mask",
    "MaskSettings": "experiments.settings",
    "module_site": "models.module_sites",
    "sites_of": "models.architectures",
    "Site": "models.sites",
    "zero_values": "masks.ablation",
    "mean_values": "masks.ablation",
    "record_values": "masks.ablation",
    "AblationValues": "masks.ablation",
    "FrozenMask": "masks.frozen_mask",
    "gated": "masks.gating",
    "finetune_": "relearning.finetune",
    "FitSettings": "training.fit_settings",
    "Checkpoints": "training.fit_arguments",
    # a task of the table, step by step
    "MaskConfig": "experiments.mask_config",
    "load": "experiments.load",
    "plan": "experiments.plan",
    "with_base_model": "experiments.base_model",
    "ablation_values": "experiments.gate_training",
    "train_gates": "experiments.gate_training",
    "freeze": "experiments.freeze",
    "finish": "experiments.finish",
    "describe": "experiments.describe",
    "score": "experiments.scores",
    "evaluate": "tasks.evaluation",
    "RunDirectory": "storage.run_directory",
    "write_report": "reports.html",
    "UserError": "storage.errors",
    # what a model knows
    "FactNeurons": "experiments.knowledge.fact_neurons",
    # the tables
    "TASKS": "tasks.registry",
    "GATES": "masks.registry",
    "METHODS": "attribution.registry",
    "ARCHITECTURES": "models.architectures",
}
__all__ = list(_MODULE_OF)

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file():  # a checkout: its folders are the packages
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'circuitcut' has no attribute {name!r}")
    return getattr(import_module(f"circuitcut.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
