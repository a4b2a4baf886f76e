"""The mask training method of the published digit experiment, for comparison.

M. Li, X. Davies and M. Nadeau (2023), "Circuit Breaking: Removing Model Behaviors with
Targeted Ablation", https://arxiv.org/abs/2309.05973. With z the gates of all weights (1
keeps), L = L_train - 0.3 L_bad + mean(sqrt(1.01 - z)) min(step, 8000) / 10. L_train is
the mean cross-entropy of 64 training images, L_bad that of all images of the behaviour
to remove.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from circuitcut.experiments.load import Experiment
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GateSettings
from circuitcut.models.sites import Site
from circuitcut.tasks.mnist import MnistTask
from circuitcut.training.fit_arguments import Watch
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.loop import fit

N_STEPS, LR, BATCH = 12_000, 0.3, 64
BAD_WEIGHT, RAMP_STEPS, RAMP_DIVISOR = 0.3, 8000, 10.0


def published_mask(
    experiment: Experiment,
    task: MnistTask,
    sites: Sequence[Site],
    ablated: AblationValues,
    seed: int,
) -> FrozenMask:
    """Clamped gates trained with the published loss and rounded at 0.5.

    The images of the behaviour are the concept images of the split `mask`.
    """
    model = experiment.loaded.model
    masks = MaskSet(sites, "clamped", GateSettings())
    bad = task.concept_batch("mask")
    n_bad = len(bad["targets"])

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        train = task.finetune_batch("base", step, size=BATCH, seed=seed)
        keep = masks.sample(rng)
        with gated(model, sites, keep, ablated):
            logits = model(torch.cat([bad["pixels"], train["pixels"]])).logits
        bad_loss = functional.cross_entropy(logits[:n_bad], bad["targets"])
        train_loss = functional.cross_entropy(logits[n_bad:], train["targets"])
        gates = torch.cat(list(keep.values()))
        price = (1.01 - gates).sqrt().mean() * min(step, RAMP_STEPS) / RAMP_DIVISOR
        return train_loss - BAD_WEIGHT * bad_loss + price, {}

    fit(
        dict(masks.named_parameters()),
        step_loss,
        FitSettings(n_steps=N_STEPS, lr=LR, seed=seed),
        accelerator=experiment.accelerator,
        buffers=dict(masks.named_buffers()),
        watch=Watch(after_step=lambda _: masks.project_(), progress="published"),
    )
    return FrozenMask.from_threshold(masks, ablated)
