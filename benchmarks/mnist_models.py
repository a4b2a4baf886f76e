"""Digit classifiers for the weight-mask benchmark, trained once and saved to disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.models.builtin import BuiltinSizes, build_builtin
from circuitcut.models.loaded import LoadedModel
from circuitcut.storage.atomic import read_tensors, write_tensors
from circuitcut.tasks.mnist import DigitCorpus, MnistTask
from circuitcut.training.fit_arguments import Watch
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.loop import fit
from circuitcut.training.schedules import Schedule

BATCH, LR = 64, 1e-3


def base_model(
    corpus: DigitCorpus,
    path: Path,
    *,
    d_hidden: int,
    n_steps: int,
    schedule: Schedule,
    seed: int,
    accelerator: Accelerator,
) -> LoadedModel:
    """A frozen MLP of 784, `d_hidden` and n_classes units, from `path` or trained."""
    loaded = build_builtin(
        "mlp",
        head="image_classification",
        labels=corpus.labels,
        sizes=BuiltinSizes(n_pixels=corpus.n_pixels, d_hidden=d_hidden),
        seed=seed,
    )
    model = loaded.model
    if path.exists():
        model.load_state_dict(read_tensors(path))
    else:
        fit(
            dict(model.named_parameters()),
            _cross_entropy(corpus, model, seed),
            FitSettings(n_steps=n_steps, lr=LR, schedule=schedule, seed=seed),
            accelerator=accelerator,
            watch=Watch(progress=path.stem),
        )
        write_tensors(path, model.state_dict(), None)
    model.eval().requires_grad_(False)
    return loaded


def without_concept(corpus: DigitCorpus) -> DigitCorpus:
    """The same corpus without images of the concept in `base`."""
    base = corpus.index["base"]
    digits = torch.tensor(corpus.concept_digits)
    kept = base[~torch.isin(corpus.images.digits[base], digits)]
    return replace(corpus, index=corpus.index | {"base": kept})


def _cross_entropy(
    corpus: DigitCorpus, model: nn.Module, seed: int
) -> Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]:
    task = MnistTask(corpus)

    def step_loss(step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        del rng  # nothing is drawn
        batch = task.finetune_batch("base", step, size=BATCH, seed=seed)
        return task.finetune_loss(model, batch), {}

    return step_loss
