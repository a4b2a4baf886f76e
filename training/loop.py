"""The one optimisation loop: on accelerate, resumable to the same bits.

A step is a function of the parameters, the seed and its number alone: batches are drawn
by number and all noise is seeded from (seed, number), so that a checkpoint needs no
state of iterators or generators.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.storage.checkpoints import save_state
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import Progress
from circuitcut.storage.provenance import PROVENANCE, differences
from circuitcut.training.fit_arguments import (
    NO_CHECKPOINTS,
    NO_WATCH,
    Ascent,
    Checkpoints,
    Watch,
)
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.fit_state import FitState, load_fit, saved_steps
from circuitcut.training.interruption import interruption, stop_request

StepLoss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


def fit(
    parameters: Mapping[str, nn.Parameter],
    step_loss: StepLoss,
    settings: FitSettings,
    *,
    accelerator: Accelerator | None = None,
    ascent: Ascent | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    watch: Watch = NO_WATCH,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> None:
    """Minimise `step_loss` over `parameters`, in place.

    Args:
        parameters: What is minimised, by name; plain parameters, not wrapped in DDP.
        step_loss: (step, rng) -> (scalar loss, numbers to log). `rng` is a CPU
            generator seeded from (seed, step), the same on every process; torch's
            global generator (dropout) is seeded likewise, differently on every process.
            Nothing else may be random. On several processes each should read its own
            share of the batch: gradients are averaged.
        accelerator: Device, precision and processes; made if None. Its autocast holds
            around `step_loss`.
        ascent: Parameters that are maximised by the same steps; None means none.
        buffers: Tensors that the callbacks update in place; part of a checkpoint.
        watch: Callbacks and the progress bar.
        checkpoints: Where the state is saved, and whether to continue from there.

    Raises:
        UserError: When an argument is wrong, a checkpoint does not fit, or the loss or
            a gradient is not finite; the optimiser has not used it then.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the current step was finished and
            a checkpoint written.
    """
    accelerator = accelerator or Accelerator()
    state = FitState(parameters, ascent, buffers or {}, settings, accelerator)
    start, folder = _start(state, checkpoints, settings.n_steps), checkpoints.folder
    is_main, n_steps = accelerator.is_main_process, settings.n_steps
    bar = Progress(watch.progress if is_main else None, start, n_steps)
    with _restored_random_state(accelerator), stop_request() as stop, bar:
        for step in range(start, n_steps):
            loss, numbers = _backward(step, step_loss, settings.seed, accelerator)
            value, norm, stopping = state.reduce_(loss, stop.is_set())
            _check_finite(value, norm, step, folder)
            rate = state.step_(step, norm)
            if watch.after_step is not None:
                watch.after_step(step)
            if watch.on_log is not None and is_main:
                numbers = {**numbers, "loss": value, "grad_norm": norm, "lr": rate}
                watch.on_log(step, numbers)
            bar.advance(step, value)
            done = step + 1
            is_last, every = done == n_steps, settings.checkpoint_every
            stopping = stopping or (is_last and stop.is_set())
            due = checkpoints.at_end if is_last else every and done % every == 0
            if is_main and folder and (due or stopping):
                origin = {PROVENANCE: dict(checkpoints.provenance)}
                save_state(folder, done, state.tree() | origin)
            if stopping:
                raise interruption(done, folder, stop.number)
    accelerator.wait_for_everyone()


def mixed_seed(seed: int, step: int) -> int:
    """A seed in [0, 2^62) for one step of a run, unrelated to its neighbours'."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _start(state: FitState, checkpoints: Checkpoints, n_steps: int) -> int:
    """Number of the steps already done, whose outcome is read from the checkpoint."""
    folder = checkpoints.folder
    latest = None if folder is None else load_fit(folder)
    if folder is None or latest is None:
        return 0
    if not checkpoints.resume:
        raise UserError(
            f"{folder} holds a checkpoint; continue it with --resume, or name an "
            "empty folder"
        )
    step, tree = latest
    if found := differences(tree.get(PROVENANCE, {}), checkpoints.provenance):
        raise UserError(
            f"the checkpoint in {folder} was made with other inputs: "
            f"{', '.join(found)}; resume with what the run was begun with"
        )
    state.restore_(tree, folder)
    if step > n_steps:
        raise UserError(
            f"the checkpoint in {folder} is that of {step} steps, got n_steps "
            f"{n_steps}; give at least as many"
        )
    return step


def _backward(
    step: int, step_loss: StepLoss, seed: int, accelerator: Accelerator
) -> tuple[Tensor, dict[str, float]]:
    """Loss and numbers of a step, whose noise is seeded here; fills the gradients."""
    mixed = mixed_seed(seed, step)
    _seed_global(mixed + accelerator.process_index, accelerator.device)
    with accelerator.autocast():
        loss, numbers = step_loss(step, torch.Generator().manual_seed(mixed))
    accelerator.backward(loss)
    return loss.detach(), numbers


def _check_finite(loss: float, norm: float, step: int, folder: Path | None) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = "gradient" if math.isfinite(loss) else "loss"
    saved = saved_steps(folder) if folder else 0
    last = f"the last checkpoint is that of {saved} steps" if saved else "none is saved"
    raise UserError(
        f"the {what} is not finite at step {step} (loss {loss}, gradient norm {norm}); "
        f"{last}; try a lower learning rate, and check data and model for NaN"
    )


def _seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`.

    `torch.manual_seed` would also keep a list of calls (with tracebacks, a millisecond
    each) for every kind of device that was not used so far.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        backend = getattr(torch, device.type)
        getattr(backend, "manual_seed_all", backend.manual_seed)(seed)


@contextmanager
def _restored_random_state(accelerator: Accelerator) -> Iterator[None]:
    """Leave torch's global generators as they were before."""
    device = accelerator.device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield
