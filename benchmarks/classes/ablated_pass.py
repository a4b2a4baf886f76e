"""Time of a measured pass over tokens under an ablation against a plain forward pass.

    python benchmarks/classes/ablated_pass.py

The plain pass is one forward pass of the language model. The others also measure loss,
entropy, rank and scale of the final norm at every token, as `class_effects.py` does:
clean, and under masks that ablate as many neurons as SmolLM2 has of the class weakening
(104) and of conditional strengthening (3,850) in equal parts of all layers. Passes are
interleaved. Times are medians over rounds of the processor's time, ratios medians of
the ratio to the plain pass in the same round. SmolLM2's shape with random weights;
about two minutes on one CPU core.
Targets: zero <= 1.15, conditional kinds <= 1.30 times the plain pass.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from circuitcut.benchmarks.peak import check_device, device_name, median_ratio, seconds
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.neurons.rule import rule_of
from circuitcut.masks.neurons.values import rule_values
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.training.config import run_script
from circuitcut.weight_classes.tokens.token_measures import measured, scales_seen

Pass = Callable[[], None]
TARGETS = {"zero": 1.15, "zero, gate-/post+": 1.3, "mean, gate-": 1.3}


@dataclass(frozen=True)
class AblatedPassConfig:
    """Settings of the benchmark."""

    batch: int = field(default=2, metadata={"help": "texts in a pass"})
    length: int = field(default=256, metadata={"help": "tokens of a text"})
    layers: int = field(default=30, metadata={"help": "layers of the model"})
    rounds: int = field(default=5, metadata={"help": "interleaved rounds"})
    threads: int = field(default=1, metadata={"help": "torch threads"})
    n_ablated: list[int] = field(
        default_factory=lambda: [104, 3850], metadata={"help": "neurons ablated"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)


def main(config: AblatedPassConfig) -> dict[str, float]:
    """Print a table; return the ratios to the plain pass."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = _model(config).eval().requires_grad_(False).to(config.device)
    passes = _passes(model, config)
    times: dict[str, list[float]] = {name: [] for name in passes}
    clock = time.process_time if config.device == "cpu" else time.perf_counter
    with torch.no_grad():
        for number in range(config.rounds + 1):
            for name, run in passes.items():
                elapsed = seconds(run, config.device, clock)
                if number:  # the first round warms up
                    times[name].append(elapsed)
    plain = times["plain"]
    ratios = {name: median_ratio(of_pass, plain) for name, of_pass in times.items()}
    print(f"{device_name(config.device)}, {config.batch} x {config.length} tokens")
    for name, of_pass in times.items():
        target = TARGETS.get(name.partition(" of ")[2])
        wanted = f"  target {target:.2f}" if target else ""
        print(
            f"{name:36} {1e3 * statistics.median(of_pass):8.0f} ms"
            f"  {ratios[name]:.3f}{wanted}"
        )
    return ratios


def _model(config: AblatedPassConfig) -> nn.Module:
    """SmolLM2-135M's shape."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=config.layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        )
    )


def _passes(model: nn.Module, config: AblatedPassConfig) -> dict[str, Pass]:
    ids = torch.randint(5, 49152, (config.batch, config.length)).to(config.device)
    where = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    sites = sites_of(model, ["neurons"])

    def plain() -> None:
        model(input_ids=ids, use_cache=False)

    def of(mask: FrozenMask | None) -> Pass:
        def run() -> None:
            cut = nullcontext() if mask is None else mask.applied(model)
            with scales_seen(model) as scales, cut:
                logits = model(input_ids=ids, use_cache=False).logits
                scale = scales["log_scale"][:, :-1]
                measured(logits[:, :-1], ids[:, 1:], where, scale)

        return run

    passes: dict[str, Pass] = {"plain": plain, "plain, 2nd": plain, "clean": of(None)}
    for n in config.n_ablated:
        for name, values in _values(sites).items():
            passes[f"{n:,} of {name}"] = of(_mask(sites, values, n))
    return passes


def _values(sites: tuple[Site, ...]) -> dict[str, AblationValues]:
    flipped = [torch.rand(site.width) < 0.5 for site in sites]
    means = {site.name: 0.1 * torch.randn(site.width) for site in sites}
    return {
        "zero": zero_values(sites),
        "zero, gate-/post+": rule_values(
            rule_of("zero", None, "gate-/post+"), sites, flipped
        ),
        "mean, gate-": rule_values(
            rule_of("mean", None, "gate-"), sites, flipped, means
        ),
    }


def _mask(sites: tuple[Site, ...], values: AblationValues, n: int) -> FrozenMask:
    """`n` neurons, in equal parts of all layers."""
    keep = {}
    for number, site in enumerate(sites):
        here = n // len(sites) + (number < n % len(sites))
        keep[site.name] = torch.randperm(site.width) >= here
    return FrozenMask(keep, sites, values, (FIRST_POSITION,))


if __name__ == "__main__":
    run_script(main, AblatedPassConfig)
