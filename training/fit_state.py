"""What one optimisation changes: parameters, multipliers, buffers and moments."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from circuitcut.storage.checkpoints import latest_step, load_latest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import check_type
from circuitcut.training.fit_arguments import Ascent
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.schedules import learning_rate_factor

_MAY_CHANGE_ON_RESUME = ("n_steps", "checkpoint_every")
_MOMENTS = {"exp_avg", "exp_avg_sq", "step"}
_FUSED_ON = ("cpu", "cuda")


class FitState:
    """The tensors of one optimisation, and the optimiser that moves them.

    Args:
        minimised: Parameters by name; on several processes all of them start from those
            of the first.
        ascent: Parameters that are maximised, if any, and their learning rate.
        buffers: Further tensors that belong to a checkpoint.

    Raises:
        UserError: When there is nothing to train, or an argument is wrong.
    """

    def __init__(
        self,
        minimised: Mapping[str, nn.Parameter],
        ascent: Ascent | None,
        buffers: Mapping[str, Tensor],
        settings: FitSettings,
        accelerator: Accelerator,
    ):
        _check_arguments(minimised, accelerator)
        maximised = ascent.parameters if ascent else {}
        rates = [settings.lr, ascent.lr] if ascent else [settings.lr]
        self._tensors: dict[str, Mapping[str, Tensor]] = {
            "parameters": minimised,
            "maximised": maximised,
            "buffers": buffers,
        }
        self._minimised = list(minimised.values())
        self._maximised = list(maximised.values())
        self._settings = settings
        self._accelerator = accelerator
        self._rates = rates if maximised else rates[:1]
        self._optimiser = _make_optimiser(self._minimised, self._maximised, settings)
        if accelerator.num_processes > 1:
            for tensors in self._tensors.values():
                for tensor in tensors.values():
                    broadcast(tensor.data)

    def reduce_(self, loss: Tensor, stop: bool) -> tuple[float, float, bool]:
        """Average gradients over processes; return loss, gradient norm, and if to stop.

        The norm is that of the minimised parameters, NaN if the gradient of a maximised
        one is not finite. A process that was asked to stop stops all of them.
        """
        if self._accelerator.num_processes > 1:
            for parameter in [*self._minimised, *self._maximised]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
            status = torch.stack([loss.float(), torch.full_like(loss, stop).float()])
            loss, stops = self._accelerator.reduce(status, "mean")
            stop = stops.item() > 0
        norm = _norm(_gradients(self._minimised))
        if self._maximised:
            # zero times what is not finite is NaN
            norm += 0 * _norm(_gradients(self._maximised))
        return loss.item(), norm, stop

    def step_(self, step: int, norm: float) -> float:
        """Clip gradients of norm `norm`, move the parameters; return the rate."""
        settings = self._settings
        factor = learning_rate_factor(
            settings.schedule, step, settings.n_steps, settings.warmup
        )
        if settings.clip_norm is not None and norm > settings.clip_norm:
            for gradient in _gradients(self._minimised):
                gradient.mul_(settings.clip_norm / norm)
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
        """Read the contents of a checkpoint from `folder` into the tensors.

        Raises:
            UserError: When it was written with other settings or for other tensors.
        """
        _check_settings(asdict(self._settings), tree["settings"], folder)
        n_parameters = len(self._minimised) + len(self._maximised)
        if not {int(key) for key in tree["optimiser"]} <= set(range(n_parameters)):
            raise UserError(
                f"the checkpoint in {folder} has moments of more than the "
                f"{n_parameters} parameters; resume with the flags of the run"
            )
        for kind, tensors in self._tensors.items():
            _check_shapes(kind, tensors, tree[kind], folder)
        parameters = [*self._minimised, *self._maximised]
        for key, entry in tree["optimiser"].items():
            _check_moments(key, entry, parameters[int(key)], folder)
        with torch.no_grad():
            for kind, tensors in self._tensors.items():
                for name, tensor in tensors.items():
                    tensor.copy_(tree[kind][name])
        optimiser = self._optimiser.state_dict()
        optimiser["state"] = {int(i): entry for i, entry in tree["optimiser"].items()}
        self._optimiser.load_state_dict(optimiser)


def load_fit(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Steps done and contents of the newest whole checkpoint; None without one.

    Raises:
        UserError: When there are checkpoints and all of them are damaged.
    """
    return load_latest(folder, _check_tree)


def saved_steps(folder: Path) -> int:
    """Steps done in the newest whole checkpoint, 0 without one; see `load_fit`."""
    return latest_step(folder, _check_tree)


def _check_tree(step: int, tree: Mapping[str, Any]) -> None:
    """Refuse a checkpoint without the moments that the optimiser has after a step."""
    kinds = {"settings", "parameters", "maximised", "buffers", "optimiser"}
    if not kinds <= tree.keys():
        raise UserError(f"it lacks {', '.join(sorted(kinds - tree.keys()))}")
    check_type(tree["settings"], dict[str, Any], "its settings")
    check_type(tree["optimiser"], dict[str, Any], "its optimiser")
    for kind in sorted(kinds - {"settings"}):
        _check_tensors(kind, tree[kind])
    settings, entries = tree["settings"], tree["optimiser"]
    has_moments = settings.get("optimiser") != "sgd" or settings.get("momentum")
    if step and has_moments and not entries:
        raise UserError(f"its optimiser has no moments after {step} steps")
    if settings.get("optimiser") == "sgd":
        return
    if lacking := [key for key, entry in entries.items() if entry.keys() != _MOMENTS]:
        raise UserError(f"its optimiser lacks the moments of parameter {lacking[0]}")


def _check_tensors(kind: str, tree: Any) -> None:
    """Refuse anything but tensors by name; of the optimiser, by parameter and name."""
    groups = tree.values() if kind == "optimiser" else [tree]
    for group in groups:
        is_named = isinstance(group, Mapping)
        if not is_named or not all(isinstance(t, Tensor) for t in group.values()):
            raise UserError(f"its {kind} are not tensors by name")
    if kind == "optimiser" and not all(key.isdecimal() for key in tree):
        raise UserError("its optimiser does not number the parameters")


def _make_optimiser(
    minimised: list[nn.Parameter], maximised: list[nn.Parameter], settings: FitSettings
) -> torch.optim.Optimizer:
    decay, rate, optimiser = settings.weight_decay, settings.lr, settings.optimiser
    groups: list[dict[str, Any]] = [{"params": minimised, "weight_decay": decay}]
    if maximised:
        groups.append({"params": maximised, "weight_decay": 0.0, "maximize": True})
    betas = 0.9, settings.beta2
    # one pass over each parameter and its moments; the other kernels take five times
    # as long on a CPU, and memory for whole copies of the parameters
    fused = all(
        p.is_floating_point() and p.device.type in _FUSED_ON
        for p in (*minimised, *maximised)
    )
    match optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=betas, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
        case _:
            assert_never(optimiser)


def _check_arguments(
    minimised: Mapping[str, nn.Parameter], accelerator: Accelerator
) -> None:
    if not minimised:
        raise UserError("nothing to train: no parameter is left; check what is frozen")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"mixed_precision must be no or bf16, got {accelerator.mixed_precision!r}: "
            "float16 would need a loss scaler"
        )


def _check_settings(
    settings: Mapping[str, Any], saved: Mapping[str, Any], folder: Path
) -> None:
    for name, value in settings.items():
        if name not in _MAY_CHANGE_ON_RESUME and saved.get(name) != value:
            raise UserError(
                f"the checkpoint in {folder} was written with {name} "
                f"{saved.get(name)!r}, got {value!r}; resume with the flags of the run"
            )


def _check_shapes(
    kind: str, tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path
) -> None:
    if different := sorted(tensors.keys() ^ saved.keys()):
        raise UserError(
            f"the checkpoint in {folder} is for other {kind}: {different[0]!r} is only "
            "on one side; resume with the flags of the run"
        )
    for name, tensor in tensors.items():
        stored = saved[name]
        if (tensor.shape, tensor.dtype) != (stored.shape, stored.dtype):
            raise UserError(
                f"the checkpoint in {folder} has {kind} {name!r} of shape "
                f"{tuple(stored.shape)} ({stored.dtype}), got {tuple(tensor.shape)} "
                f"({tensor.dtype}); resume with the flags of the run"
            )


def _check_moments(
    key: str, entry: Mapping[str, Tensor], parameter: Tensor, folder: Path
) -> None:
    for name, moment in entry.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if moment.shape != shape or not moment.is_floating_point():
            raise UserError(
                f"the checkpoint in {folder} has the moment {name} of parameter {key} "
                f"with shape {tuple(moment.shape)} ({moment.dtype}), expected "
                f"{tuple(shape)}; resume with the flags of the run"
            )


def _norm(gradients: list[Tensor]) -> float:
    """Euclidean norm of all entries together.

    As `torch.nn.utils.get_total_norm`, which takes several times as long.
    """
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    if len(norms) == 1:
        return norms[0].item()
    device = norms[0].device if norms else None
    parts = [norm.float().to(device) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(parts)).item() if parts else 0.0


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
