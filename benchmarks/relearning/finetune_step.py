"""Time and memory of a step of relearning against a plain step of fine-tuning.

    python benchmarks/relearning/finetune_step.py
    python benchmarks/relearning/finetune_step.py --device cuda

A plain step is what one writes by hand: one padded batch, logits at all positions,
their cross-entropy, `clip_grad_norm_` and `torch.optim.AdamW` as it comes. `relearning`
is `finetune_` with a mask held: logits at targets alone, fused AdamW, and the weights
behind the ablated heads restored. `distance` is `weight_distance`, once a measurement.
Half of the texts have a third of the length, as prompts among sentences. All steps are
interleaved in one process; ratios are medians of the ratio to the plain step of the
same round; peaks are those of torch's allocator, weights included. Random weights of
SmolLM2's shape; about 4 minutes. Target: no slower than the plain step.
"""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from circuitcut.benchmarks.knowledge_ig import SHAPES
from circuitcut.benchmarks.peak import (
    check_device,
    device_name,
    interleaved,
    median_ratio,
    peak_bytes,
)
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.relearning.finetune import finetune_
from circuitcut.relearning.redistribution import weight_distance
from circuitcut.tasks.base import NO_TARGET
from circuitcut.tasks.selected_logits import logits_at
from circuitcut.training.config import run_script
from circuitcut.training.fit_settings import FitSettings

N_ABLATED = 3
"""Heads, as in the circuit of indirect objects."""


@dataclass(frozen=True)
class FinetuneStepConfig:
    """Settings of the benchmark."""

    batch: int = field(default=8, metadata={"help": "sequences per step"})
    length: int = field(default=48, metadata={"help": "tokens of the longer half"})
    steps: int = field(default=3, metadata={"help": "steps that are timed together"})
    rounds: int = field(default=3, metadata={"help": "interleaved rounds"})
    threads: int = field(default=1, metadata={"help": "torch threads"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)


def main(config: FinetuneStepConfig) -> dict[str, dict[str, float]]:
    """Print a table and return its numbers."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    base = SHAPES["smollm2"]().to(config.device)
    rows = _measure(base, _steps(base, config), config)
    size = f"{config.batch} x {config.length} tokens, {device_name(config.device)}"
    print(f"\nSmolLM2's shape, {size}, medians of {config.rounds} interleaved rounds")
    print(f"{'':<14}{'ms':>9}{'time':>8}{'peak':>8}")
    for name, row in rows.items():
        print(
            f"{name:<14}{row['milliseconds']:>9.0f}{row['time_ratio']:>8.2f}"
            f"{row['peak_ratio']:>8.2f}"
        )
    return rows


def _steps(
    base: nn.Module, config: FinetuneStepConfig
) -> dict[str, Callable[[], None]]:
    inputs, targets = _batch(base, config)
    plain_model, own_model = deepcopy(base), deepcopy(base)
    sites = sites_of(own_model, ["heads"])
    means = AblationValues("mean", {s.name: torch.zeros(s.width) for s in sites})
    mask = FrozenMask.random(sites, means, n_ablated=N_ABLATED, seed=config.seed)
    settings = FitSettings(
        n_steps=config.steps,
        lr=5e-5,
        optimiser="adamw",
        weight_decay=0.01,
        clip_norm=1.0,
        checkpoint_every=0,
    )
    where = targets != NO_TARGET

    def loss(model: nn.Module, step: int) -> Tensor:
        del step
        return functional.cross_entropy(
            logits_at(model, inputs, where).float(), targets[where]
        )

    def relearning() -> None:
        finetune_(own_model, loss, settings, mask=mask)

    def distance() -> None:
        weight_distance(own_model, base)

    return {
        "plain": lambda: _plain(plain_model, inputs, targets, config.steps),
        "plain, 2nd": lambda: _plain(plain_model, inputs, targets, config.steps),
        "relearning": relearning,
        "distance": distance,
    }


def _batch(model: Any, config: FinetuneStepConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and next tokens; every second row ends after a third of the length."""
    shape = config.batch, config.length
    ids = torch.randint(1000, model.config.vocab_size, shape)
    real = torch.ones(shape, dtype=torch.bool)
    real[::2, config.length // 3 :] = False
    targets = torch.full(shape, NO_TARGET)
    targets[:, :-1] = ids[:, 1:]
    targets[:, :-1][~real[:, 1:]] = NO_TARGET
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    moved = {name: value.to(config.device) for name, value in inputs.items()}
    return moved, targets.to(config.device)


def _plain(
    model: nn.Module, inputs: dict[str, Tensor], targets: Tensor, n_steps: int
) -> None:
    """Begins with a new optimiser, as `finetune_` does."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    model.train()
    for _ in range(n_steps):
        logits = model(**inputs).logits
        functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET
        ).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()


def _measure(
    base: nn.Module,
    steps: dict[str, Callable[[], None]],
    config: FinetuneStepConfig,
) -> dict[str, dict[str, float]]:
    """Times are of one step, of several that run together; the distance is one."""
    weights = sum(p.numel() * p.element_size() for p in base.parameters())
    device = config.device
    peaks = {name: peak_bytes(step, device=device) for name, step in steps.items()}
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = {
        name: [t / (1 if name == "distance" else config.steps) for t in taken]
        for name, taken in interleaved(steps, config.rounds, device, clock).items()
    }
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times[name]),
            "time_ratio": median_ratio(times[name], times["plain"]),
            "peak_ratio": (weights + peaks[name]) / (weights + peaks["plain"]),
        }
        for name in steps
    }


if __name__ == "__main__":
    run_script(main, FinetuneStepConfig)
