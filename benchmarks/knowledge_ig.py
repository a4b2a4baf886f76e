"""Time and memory of integrated gradients of a prompt's neurons in all layers.

    python benchmarks/knowledge_ig.py
    python benchmarks/knowledge_ig.py --shapes bert --lengths 8 16 32

One prompt, one thread, random weights, float32. `forward` is one forward pass of the
prompt, the unit of all ratios. `all layers` is `integrated_gradients` with --n_steps
midpoints; `gauss` has --n_nodes Gauss-Legendre nodes instead. `loop` is what the
published programs do: for every layer a batch of --n_steps copies through the whole
model with a hook, and a backward pass. All are interleaved in one process; times are
the processor's, medians over rounds; ratios are medians of the ratio to the forward
pass of the same round. Peak is weights plus the peak of torch's allocator, relative to
that of the forward pass. About 4 minutes. Targets: all layers <= 20 forward passes on
BERT-base's shape, <= 30 on SmolLM2's, peak <= 2.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from circuitcut.attribution.knowledge.gradients import integrated_gradients
from circuitcut.attribution.knowledge.grids import grid_of
from circuitcut.attribution.knowledge.prompts import Prompt
from circuitcut.benchmarks.peak import median_ratio, peak_bytes
from circuitcut.models.architectures import sites_of
from circuitcut.storage.modes import weights_frozen
from circuitcut.training.config import run_script

Step = Callable[[], object]


@dataclass(frozen=True)
class KnowledgeConfig:
    """Settings of the benchmark."""

    shapes: list[str] = field(
        default_factory=lambda: ["bert", "smollm2"],
        metadata={"help": "bert (12 x 768) and/or smollm2 (Llama, 30 x 576)"},
    )
    lengths: list[int] = field(
        default_factory=lambda: [8, 16], metadata={"help": "tokens of the prompt"}
    )
    n_steps: int = field(default=20, metadata={"help": "steps of a layer"})
    n_nodes: int = field(default=6, metadata={"help": "nodes of the row gauss"})
    rounds: int = field(default=3, metadata={"help": "interleaved rounds"})
    loop: bool = field(default=True, metadata={"help": "run the loop over layers"})
    threads: int = field(default=1, metadata={"help": "torch threads"})
    seed: int = 0


def main(config: KnowledgeConfig) -> dict[str, dict[str, dict[str, float]]]:
    """Print a table per shape and length, and return its numbers."""
    torch.set_num_threads(config.threads)
    results = {}
    for shape in config.shapes:
        torch.manual_seed(config.seed)
        model = SHAPES[shape]().eval().requires_grad_(False)
        for length in config.lengths:
            steps = _steps(model, _prompt(model, length), config)
            rows = _measure(model, steps, config)
            results[f"{shape}, {length} tokens"] = rows
            _print(f"{shape}, {length} tokens", config, rows)
    return results


def _bert() -> nn.Module:
    return BertForMaskedLM(BertConfig())


def _smollm2() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            intermediate_size=1536,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
        )
    )


SHAPES: dict[str, Callable[[], nn.Module]] = {"bert": _bert, "smollm2": _smollm2}


def _prompt(model: Any, length: int) -> Prompt:
    ids = torch.randint(1000, model.config.vocab_size, (length,)).tolist()
    is_masked = model.config.model_type == "bert"
    return Prompt(tuple(ids), (length // 2 if is_masked else length - 1,), (2000,))


def _steps(
    model: nn.Module, prompt: Prompt, config: KnowledgeConfig
) -> dict[str, Step]:
    run = partial(integrated_gradients, model, [prompt])
    loop = {"loop": lambda: _loop(model, prompt, config.n_steps)} if config.loop else {}
    return {
        "forward": lambda: _forward(model, prompt),
        "forward, 2nd": lambda: _forward(model, prompt),
        "all layers": lambda: run(n_steps=config.n_steps),
        "gauss": lambda: run(grid="gauss", n_steps=config.n_nodes),
        **loop,
    }


def _forward(model: nn.Module, prompt: Prompt) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt.ids])).logits


def _loop(model: nn.Module, prompt: Prompt, n_steps: int) -> list[Tensor]:
    """The published way: every layer's copies run through the whole model."""
    position, found = prompt.positions[0], []
    shares = torch.tensor(grid_of("midpoints", n_steps)[0])
    for site in sites_of(model, ["neurons"]):
        module = model.get_submodule(site.module)
        seen: list[Tensor] = []
        keep = module.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        _forward(model, prompt)
        keep.remove()
        a = seen[0][0, position]
        scaled = (shares[:, None] * a).requires_grad_()

        def put(_: Any, args: tuple[Tensor, ...], scaled: Tensor = scaled) -> Any:
            x = args[0].clone()
            x[:, position] = scaled
            return (x,)

        hook = module.register_forward_pre_hook(put)
        ids = torch.tensor([prompt.ids]).repeat(n_steps, 1)
        with weights_frozen(model):
            logits = model(input_ids=ids).logits[:, position]
            p = logits.softmax(-1)[:, prompt.answer[0]]
            gradient = torch.autograd.grad(p.sum(), scaled)[0]
        hook.remove()
        found.append(a * gradient.mean(0))
    return found


def _measure(
    model: nn.Module, steps: dict[str, Step], config: KnowledgeConfig
) -> dict[str, dict[str, float]]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = {name: peak_bytes(partial(_run, step)) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.rounds):
        for name, step in steps.items():
            n = 5 if name.startswith("forward") else 1
            began = time.process_time()
            for _ in range(n):
                step()
            times[name].append((time.process_time() - began) / n)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times[name]),
            "time_ratio": median_ratio(times[name], times["forward"]),
            "peak_mb": peaks[name] / 1e6,
            "peak_ratio": (weights + peaks[name]) / (weights + peaks["forward"]),
        }
        for name in steps
    }


def _run(step: Step) -> None:
    step()


def _print(
    title: str, config: KnowledgeConfig, rows: dict[str, dict[str, float]]
) -> None:
    print(
        f"\n{title}, {config.n_steps} steps ({config.n_nodes} nodes), "
        f"{config.threads} thread(s), medians of {config.rounds} interleaved rounds"
    )
    print(f"{'':<14}{'ms':>9}{'forwards':>10}{'MB':>8}{'peak':>7}")
    for name, row in rows.items():
        print(
            f"{name:<14}{row['milliseconds']:>9.0f}{row['time_ratio']:>10.1f}"
            f"{row['peak_mb']:>8.0f}{row['peak_ratio']:>7.2f}"
        )


if __name__ == "__main__":
    run_script(main, KnowledgeConfig)
