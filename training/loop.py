"""The one optimisation loop: on accelerate, resumable to the same bits.

A step is a function of the parameters, the seed and its number alone: batches are drawn by
number and all noise is seeded from (seed, number), so that a checkpoint needs no state of
iterators or generators.
"""

import hashlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from storage.checkpoints import latest_step, load_latest, save_state
from storage.errors import UserError
from storage.run_directory import run_holding
from training.schedules import Schedule, learning_rate_factor

Optimiser = Literal["adam", "adamw", "sgd"]
StepLoss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]
N_LOG_LINES = 10
"""Log lines of one loop where there is no terminal for a progress bar."""

_MAY_CHANGE_ON_RESUME = ("n_steps", "checkpoint_every")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How parameters are moved."""

    n_steps: int
    lr: float
    optimiser: Optimiser = "adam"
    weight_decay: float = 0.0
    """Coupled (L2) for adam and sgd, decoupled for adamw."""
    momentum: float = 0.0
    """Of sgd."""
    schedule: Schedule = "constant"
    warmup: int = 0
    """Steps over which the learning rate rises."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all minimised parameters together."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one only at the end and when interrupted."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(Optimiser):
            known = list(get_args(Optimiser))
            raise UserError(f"optimiser must be one of {known}, got {self.optimiser!r}")
        for name in ("n_steps", "weight_decay", "momentum", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr must be positive and finite, got {self.lr}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm must be positive, got {self.clip_norm}")
        learning_rate_factor(self.schedule, 0, self.n_steps, self.warmup)


def fit(
    parameters: Mapping[str, nn.Parameter],
    step_loss: StepLoss,
    settings: FitSettings,
    *,
    accelerator: Accelerator | None = None,
    maximised: Mapping[str, nn.Parameter] | None = None,
    lr_maximised: float | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    after_step: Callable[[int], None] | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: str | None = None,
) -> None:
    """Minimise `step_loss` over `parameters`, in place.

    Args:
        parameters: What is minimised, by name; plain parameters, not wrapped in DDP.
        step_loss: (step, rng) -> (scalar loss, numbers to log). `rng` is a CPU generator
            seeded from (seed, step), the same on every process; torch's global generator
            (dropout) is seeded likewise, differently on every process. Nothing else may be
            random. On several processes each should read its own share of the batch:
            gradients are averaged.
        accelerator: Device, precision and processes; made if None. bf16 autocast holds
            around `step_loss`.
        maximised: Parameters that ascend instead (Lagrange multipliers), with
            `lr_maximised`, the same schedule, no weight decay and no clipping.
        buffers: Tensors that `after_step` updates in place; part of a checkpoint.
        after_step: Called with the step's number after the optimiser moved (projection,
            running averages).
        on_log: Called on the main process with every step's number and `step_loss`'s
            numbers, `loss`, `grad_norm` (before clipping) and `lr`.
        checkpoints: Folder of checkpoints; None writes none. It must hold none before,
            unless `resume`.
        resume: Continue from the newest whole checkpoint, if there is one.
        progress: Label of the progress bar (on a terminal) or the log lines (elsewhere);
            None shows neither.

    Raises:
        UserError: When an argument is wrong, a checkpoint does not fit, or the loss or a
            gradient is not finite; the optimiser has not used it then.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the step at work was finished and
            a checkpoint written.
    """
    accelerator = accelerator or Accelerator()
    state = _FitState(
        parameters, maximised or {}, lr_maximised, buffers or {}, settings, accelerator
    )
    start = _start(state, checkpoints, resume)
    generator = torch.Generator()
    bar = _Progress(progress, start, settings.n_steps, accelerator)

    def save(step: int) -> None:
        if checkpoints is not None and accelerator.is_main_process:
            save_state(checkpoints, step, state.tree())

    with _own_random_state(accelerator), _stop_request() as stop, bar:
        for step in range(start, settings.n_steps):
            seed = mixed_seed(settings.seed, step)
            torch.manual_seed(seed + accelerator.process_index)
            try:
                with accelerator.autocast():
                    loss, numbers = step_loss(step, generator.manual_seed(seed))
                accelerator.backward(loss)
            except KeyboardInterrupt:  # nothing has moved in this step
                save(step)
                raise _interruption(step, checkpoints) from None
            value, norm, stopping = state.reduce_(loss.detach(), stop.is_set())
            _check_finite(value, norm, step, checkpoints)
            rate = state.step_(step, norm)
            if after_step is not None:
                after_step(step)
            if on_log is not None and accelerator.is_main_process:
                on_log(step, {**numbers, "loss": value, "grad_norm": norm, "lr": rate})
            bar.advance(step, value)
            done = step + 1
            due = settings.checkpoint_every and done % settings.checkpoint_every == 0
            if stopping or due or done == settings.n_steps:
                save(done)
            if stopping:
                raise _interruption(done, checkpoints)
        if stop.is_set():
            raise _interruption(settings.n_steps, checkpoints)
    accelerator.wait_for_everyone()


def mixed_seed(seed: int, step: int) -> int:
    """A seed in [0, 2^62) for one step of a run, unrelated to its neighbours'."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


class _FitState:
    """Everything that a step changes, and how it does so."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        maximised: Mapping[str, nn.Parameter],
        lr_maximised: float | None,
        buffers: Mapping[str, Tensor],
        settings: FitSettings,
        accelerator: Accelerator,
    ):
        _check_arguments(parameters, maximised, lr_maximised, accelerator)
        self._tensors: dict[str, Mapping[str, Tensor]] = {
            "parameters": parameters,
            "maximised": maximised,
            "buffers": buffers,
        }
        self._minimised = list(parameters.values())
        self._maximised = list(maximised.values())
        self._settings = settings
        self._accelerator = accelerator
        rates = [settings.lr] + ([lr_maximised] if lr_maximised and maximised else [])
        self._rates = rates
        self._optimiser = _make_optimiser(
            self._minimised, self._maximised, rates, settings
        )
        if accelerator.num_processes > 1:
            for tensors in self._tensors.values():
                for tensor in tensors.values():
                    broadcast(tensor.data)

    def reduce_(self, loss: Tensor, stop: bool) -> tuple[float, float, bool]:
        """Average gradients over processes; return loss, gradient norm, and who stops.

        The norm is of the minimised parameters' gradients, NaN if a maximised parameter's
        is not finite. One process that was asked to stop stops all of them.
        """
        if self._accelerator.num_processes > 1:
            for parameter in [*self._minimised, *self._maximised]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
            status = torch.stack([loss.float(), loss.new_tensor(float(stop)).float()])
            loss, stops = self._accelerator.reduce(status, "mean")
            stop = stops.item() > 0
        norm = get_total_norm(_gradients(self._minimised)).item()
        if self._maximised:
            norm += 0 * get_total_norm(_gradients(self._maximised)).item()
        return loss.item(), norm, stop

    def step_(self, step: int, norm: float) -> float:
        """Clip, move the parameters and clear the gradients; return the learning rate."""
        settings = self._settings
        factor = learning_rate_factor(
            settings.schedule, step, settings.n_steps, settings.warmup
        )
        if settings.clip_norm is not None:
            total = torch.tensor(norm)
            clip_grads_with_norm_(self._minimised, settings.clip_norm, total)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimiser.step()
        self._optimiser.zero_grad()
        return settings.lr * factor

    def tree(self) -> dict[str, Any]:
        """The contents of a checkpoint."""
        state = self._optimiser.state_dict()["state"]
        return {
            "settings": asdict(self._settings),
            **{kind: dict(tensors) for kind, tensors in self._tensors.items()},
            "optimiser": {str(index): dict(entry) for index, entry in state.items()},
        }

    def restore_(self, tree: Mapping[str, Any], folder: Path) -> None:
        """Take over the contents of a checkpoint from `folder`.

        Raises:
            UserError: When it was written by other settings or for other tensors.
        """
        for name, value in asdict(self._settings).items():
            saved = tree["settings"].get(name)
            if saved != value and name not in _MAY_CHANGE_ON_RESUME:
                raise UserError(
                    f"the checkpoint in {folder} was written with {name}={saved!r}, got "
                    f"{value!r}; resume with the settings of the run, or start a new one"
                )
        for kind, tensors in self._tensors.items():
            _check_shapes(kind, tensors, tree[kind], folder)
        with torch.no_grad():
            for kind, tensors in self._tensors.items():
                for name, tensor in tensors.items():
                    tensor.copy_(tree[kind][name])
        optimiser = self._optimiser.state_dict()
        optimiser["state"] = {int(i): entry for i, entry in tree["optimiser"].items()}
        self._optimiser.load_state_dict(optimiser)


class _Progress:
    """A bar on a terminal, a few log lines elsewhere, nothing without a label."""

    def __init__(
        self, label: str | None, start: int, n_steps: int, accelerator: Accelerator
    ):
        shown = label is not None and accelerator.is_main_process
        self._bar = tqdm(
            desc=label, initial=start, total=n_steps, disable=None if shown else True
        )
        self._label = label if shown and self._bar.disable else None
        self._n_steps = n_steps
        self._every = max(1, n_steps // N_LOG_LINES)

    def advance(self, step: int, loss: float) -> None:
        """One step more is done."""
        done = step + 1
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update()
        elif self._label is not None and (
            done % self._every == 0 or done == self._n_steps
        ):
            _log.info(
                "%s: step %d/%d, loss %.4g", self._label, done, self._n_steps, loss
            )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _start(state: _FitState, checkpoints: Path | None, resume: bool) -> int:
    """Number of steps done before; their outcome is taken over."""
    latest = None if checkpoints is None else load_latest(checkpoints)
    if latest is None:
        return 0
    if not resume:
        raise UserError(
            f"{checkpoints} holds a checkpoint; continue it with --resume, or name an "
            "empty folder"
        )
    assert checkpoints is not None
    step, tree = latest
    state.restore_(tree, checkpoints)
    return step


def _make_optimiser(
    minimised: list[nn.Parameter],
    maximised: list[nn.Parameter],
    rates: list[float],
    settings: FitSettings,
) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": minimised, "weight_decay": decay}]
    if maximised:
        groups.append({"params": maximised, "weight_decay": 0.0, "maximize": True})
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    match settings.optimiser:
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum)


def _check_arguments(
    parameters: Mapping[str, nn.Parameter],
    maximised: Mapping[str, nn.Parameter],
    lr_maximised: float | None,
    accelerator: Accelerator,
) -> None:
    if not parameters:
        raise UserError("nothing to train: no parameter is left; check what is frozen")
    if both := sorted(parameters.keys() & maximised.keys()):
        raise UserError(f"parameters cannot be both minimised and maximised: {both}")
    if maximised and not (lr_maximised and lr_maximised > 0):
        raise UserError(f"lr_maximised must be positive, got {lr_maximised}")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"mixed_precision must be no or bf16, got {accelerator.mixed_precision!r}: "
            "float16 would need a loss scaler"
        )


def _check_shapes(
    kind: str, tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path
) -> None:
    if different := sorted(tensors.keys() ^ saved.keys()):
        raise UserError(
            f"the checkpoint in {folder} is for other {kind}: {different[0]!r} is only on "
            "one side; resume with the flags of the run"
        )
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise UserError(
                f"the checkpoint in {folder} has {kind} {name!r} of shape "
                f"{tuple(saved[name].shape)} ({saved[name].dtype}), got "
                f"{tuple(tensor.shape)} ({tensor.dtype}); resume with the flags of the run"
            )


def _check_finite(
    value: float, norm: float, step: int, checkpoints: Path | None
) -> None:
    if math.isfinite(value) and math.isfinite(norm):
        return
    what = "loss" if not math.isfinite(value) else "gradient"
    saved = 0 if checkpoints is None else latest_step(checkpoints)
    kept = f"the checkpoint of step {saved} is whole; " if saved else ""
    raise UserError(
        f"the {what} is not finite at step {step} (loss {value}, gradient norm {norm}); "
        f"{kept}try a lower learning rate, and check the data for what is not a number"
    )


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@contextmanager
def _own_random_state(accelerator: Accelerator) -> Iterator[None]:
    """Leave torch's global generators as they were before."""
    device = accelerator.device
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second of them interrupts at once.

    Between steps is the only place where all that a step changes belongs together.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        _log.info("stopping after this step; once more to stop at once")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _interruption(step: int, checkpoints: Path | None) -> KeyboardInterrupt:
    if checkpoints is None:
        return KeyboardInterrupt(f"interrupted after {step} steps, none of them saved")
    run = run_holding(checkpoints) or checkpoints
    return KeyboardInterrupt(f"{step} steps are saved; continue with --resume {run}")
