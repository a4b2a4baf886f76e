"""Time and memory of a mask-training step and of a frozen mask against a plain step.

    python benchmarks/mask_step.py
    python benchmarks/mask_step.py --device cuda

A plain step is a forward and a backward pass down to the input embeddings with frozen
weights. A mask step does the same with a gate on every neuron and head; it also samples
the gates, computes their price and updates them with Adam. All steps are interleaved in
one process. Times are medians over rounds, of the processor's time or, on a GPU, of the
clock's; ratios are medians of the ratio to the plain step in the same round.
Activations are the peak of torch's allocator during a step minus the memory before it;
the peak ratio includes the weights. Random weights; about 2 minutes on one CPU core.
Targets: zero <= 1.10, mean <= 1.15, frozen <= 1.03 times the plain time; peak <= 1.10
times the plain peak.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from circuitcut.benchmarks.peak import (
    check_device,
    device_name,
    interleaved,
    median_ratio,
    peak_bytes,
)
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.penalties import Price
from circuitcut.masks.registry import GateSettings
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.training.config import run_script

Step = Callable[[], None]


@dataclass(frozen=True)
class MaskStepConfig:
    """Settings of the benchmark."""

    shapes: list[str] = field(
        default_factory=lambda: ["minilm", "gpt2"],
        metadata={"help": "minilm (BERT, 6 x 384) and/or gpt2 (12 x 768)"},
    )
    batch: int = field(default=8, metadata={"help": "sequences per step"})
    length: int = field(default=64, metadata={"help": "tokens per sequence"})
    rounds: int = field(default=30, metadata={"help": "interleaved rounds"})
    threads: int = field(default=1, metadata={"help": "torch threads"})
    n_ablated: int = field(
        default=100, metadata={"help": "units that the frozen masks ablate"}
    )
    gate: str = field(default="hard_concrete", metadata={"help": "kind of gate"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)


def main(config: MaskStepConfig) -> dict[str, dict[str, dict[str, float]]]:
    """Print a table per shape and return its numbers."""
    torch.set_num_threads(config.threads)
    results = {}
    for shape in config.shapes:
        torch.manual_seed(config.seed)
        model = SHAPES[shape]().eval().requires_grad_(False).to(config.device)
        steps = _steps(model, config)
        results[shape] = _measure(model, steps, config)
        _print(shape, config, results[shape])
    return results


def _minilm() -> nn.Module:
    return BertModel(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        )
    )


def _gpt2() -> nn.Module:
    return GPT2Model(GPT2Config())


SHAPES: dict[str, Callable[[], nn.Module]] = {"minilm": _minilm, "gpt2": _gpt2}


def _steps(model: nn.Module, config: MaskStepConfig) -> dict[str, Step]:
    sites = sites_of(model, ["neurons", "heads"])
    width = next(model.parameters()).shape[1]  # width of the token embeddings
    embeddings = torch.randn(config.batch, config.length, width).to(config.device)
    embeddings.requires_grad_()
    means = AblationValues("mean", {s.name: torch.randn(s.width) for s in sites})

    def run() -> Tensor:
        embeddings.grad = None
        return model(inputs_embeds=embeddings).last_hidden_state.square().mean()

    def frozen(ablated: AblationValues) -> Step:
        mask = FrozenMask.random(
            sites, ablated, n_ablated=config.n_ablated, seed=config.seed
        )
        return lambda: _frozen_step(model, mask, run)

    return {
        "plain": lambda: run().backward(),
        "plain, 2nd": lambda: run().backward(),
        "mask, zero": _mask_step(model, sites, zero_values(sites), config, run),
        "mask, mean": _mask_step(model, sites, means, config, run),
        "frozen, zero": frozen(zero_values(sites)),
        "frozen, mean": frozen(means),
    }


def _frozen_step(model: nn.Module, mask: FrozenMask, run: Callable[[], Tensor]) -> None:
    with mask.applied(model):
        run().backward()


def _mask_step(
    model: nn.Module,
    sites: tuple[Site, ...],
    ablated: AblationValues,
    config: MaskStepConfig,
    run: Callable[[], Tensor],
) -> Step:
    masks = MaskSet(sites, config.gate, GateSettings()).to(config.device)
    price = Price(1e-3, direction="break")
    optimiser = torch.optim.Adam(masks.parameters(), lr=0.1)
    rng = torch.Generator().manual_seed(config.seed)

    def step() -> None:
        with gated(model, sites, masks.sample(rng), ablated):
            loss = run() + price(masks, 1.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        masks.project_()

    return step


def _measure(
    model: nn.Module, steps: dict[str, Step], config: MaskStepConfig
) -> dict[str, dict[str, float]]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    device = config.device
    peaks = {name: peak_bytes(step, device=device) for name, step in steps.items()}
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = interleaved(steps, config.rounds, device, clock)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times[name]),
            "time_ratio": median_ratio(times[name], times["plain"]),
            "activations_mb": peaks[name] / 1e6,
            "activations_ratio": peaks[name] / peaks["plain"],
            "peak_ratio": (weights + peaks[name]) / (weights + peaks["plain"]),
        }
        for name in steps
    }


def _print(
    shape: str, config: MaskStepConfig, rows: dict[str, dict[str, float]]
) -> None:
    size = f"{config.batch} x {config.length} tokens, {device_name(config.device)}"
    print(f"\n{shape}, {size}, medians of {config.rounds} interleaved rounds")
    print(f"{'step':<14}{'ms':>8}{'time':>8}{'MB':>8}{'act.':>8}{'peak':>8}")
    for name, row in rows.items():
        print(
            f"{name:<14}{row['milliseconds']:>8.1f}{row['time_ratio']:>8.3f}"
            f"{row['activations_mb']:>8.1f}{row['activations_ratio']:>8.3f}"
            f"{row['peak_ratio']:>8.3f}"
        )


if __name__ == "__main__":
    run_script(main, MaskStepConfig)
