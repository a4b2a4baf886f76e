"""Fine-tuning under a held mask, for any model and any loss.

While it runs, ablated units have their ablation values and the weights behind them keep
theirs (`holding.held`). The protocol of relearning trains by the same `HeldModel`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.holding import Frozen, check_holdable, held
from circuitcut.relearning.trained import trained_parameters
from circuitcut.storage.errors import UserError
from circuitcut.training.fit_arguments import (
    NO_CHECKPOINTS,
    NO_WATCH,
    Checkpoints,
    Watch,
)
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.loop import fit

Loss = Callable[[nn.Module, int], Tensor]
"""(model, step) -> scalar loss; the model is in training mode."""


def finetune_(
    model: nn.Module,
    loss: Loss,
    settings: FitSettings,
    *,
    mask: FrozenMask | None = None,
    trained: str = "all",
    watch: Watch = NO_WATCH,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    accelerator: Accelerator | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> None:
    """Minimise `loss` over the weights of `model`, in place, with `mask` held.

    Weights behind ablated units keep their values bit for bit after every optimiser
    step, and their gradients enter neither `clip_norm` nor momentum. Afterwards, also
    after an exception, the model has no hooks, and every parameter has the
    `requires_grad` and every module the mode (train or eval) it had before. To run the
    result with the cut on, use `mask.applied(model)`.

    Args:
        model: Any module that holds the sites of `mask`.
        loss: (model, step) -> scalar. Batches should be functions of the step; torch's
            global generator (dropout) is seeded from (seed, step), and nothing else may
            be random. On several processes each reads its own share of a batch.
        settings: Steps, learning rate, optimiser and schedule.
        mask: The cut to hold; None trains the model as it is.
        trained: Which parameters train: see `trained.trained_parameters`. `all`
            suits every module.
        watch: Callbacks and the progress bar. `after_step` comes after the weights
            behind ablated units were restored.
        checkpoints: Where the state is saved, and whether to continue from there.
        accelerator: Device, precision and processes; made if None. The model is not
            moved.
        buffers: Tensors that `loss` or the callbacks update; part of a checkpoint.

    Raises:
        UserError: When the mask cannot be held, `trained` matches nothing, `loss` gives
            no scalar, or the loss or a gradient is not finite; the optimiser has not
            used it then.
        KeyboardInterrupt: See `fit`.
    """
    if mask is not None:
        check_holdable(mask, {"lasting"})
    with held_model(model, mask, trained) as tuned:
        tuned.fit_(
            loss,
            settings,
            watch=watch,
            checkpoints=checkpoints,
            accelerator=accelerator,
            buffers=buffers,
        )


@dataclass(frozen=True)
class HeldModel:
    """A model ready to train, with its mask on: what `held_model` gives."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    """The parameters that train, by name."""
    frozen: tuple[Frozen, ...]
    """The entries behind ablated units, which keep their values."""

    def fit_(
        self,
        loss: Loss,
        settings: FitSettings,
        *,
        watch: Watch = NO_WATCH,
        checkpoints: Checkpoints = NO_CHECKPOINTS,
        accelerator: Accelerator | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Minimise `loss`; arguments and errors are those of `finetune_`."""

        def step_loss(
            step: int, rng: torch.Generator
        ) -> tuple[Tensor, dict[str, float]]:
            del rng  # only dropout is random, from the global generator
            self.model.train()
            value = loss(self.model, step)
            if value.numel() != 1:
                raise UserError(
                    f"loss must return a scalar, got shape {tuple(value.shape)}; "
                    "average over the batch"
                )
            return value, {}

        def after_step(step: int) -> None:
            for entry in self.frozen:
                entry.restore_()
            if watch.after_step is not None:
                watch.after_step(step)

        fit(
            self.parameters,
            step_loss,
            settings,
            accelerator=accelerator,
            buffers=buffers,
            watch=replace(watch, after_step=after_step),
            checkpoints=checkpoints,
        )


@contextmanager
def held_model(
    model: nn.Module, mask: FrozenMask | None, trained: str
) -> Iterator[HeldModel]:
    """The mask held and the parameters chosen by `trained` ready to train.

    Afterwards the model has its weights alone changed: hooks are removed, modes and
    `requires_grad` restored.

    Args:
        mask: None holds nothing.
        trained: See `trained.trained_parameters`.
    """
    with (
        _restored_modes(model),
        # gradients on first: `held` zeroes those of frozen entries only where they are
        trained_alone(model, trained) as parameters,
        held(model, mask) if mask else nullcontext(()) as frozen,
    ):
        yield HeldModel(model, parameters, frozen)


@contextmanager
def trained_alone(model: nn.Module, trained: str) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train, with gradients on; all other parameters have them off.

    The trained parameters have no gradient (`grad` is None) at the beginning and at the
    end, and every parameter ends with the `requires_grad` it had before.
    """
    parameters = trained_parameters(model, trained)
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in parameters)
        _clear_gradients(parameters)
        yield parameters
    finally:
        _clear_gradients(parameters)
        for parameter, required in before:
            parameter.requires_grad_(required)


def _clear_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


@contextmanager
def _restored_modes(model: nn.Module) -> Iterator[None]:
    """Every module ends in the mode, train or eval, in which it came."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
