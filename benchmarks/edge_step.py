"""Time and memory of training gates on all edges, against a plain step of the model.

    python benchmarks/edge_step.py
    python benchmarks/edge_step.py --device cuda

A plain step is a forward and a backward pass down to the input embeddings with frozen
weights: sdpa, the shape of GPT-2 small, random weights. An edge step does the same with
a gate on every edge and computes the gradients of all gates. `stored`: the inputs of
all readers are stored for the backward pass. `recomputed`: they are recomputed in the
backward pass. `micro-batches`: recomputed, and the batch is split into micro-batches of
128 tokens with the same gates. `merged`: merged q, k, v; otherwise they are separate.
`EAP` and `EAP-IG` score all edges once, including the forward passes on the
counterfactual inputs. All steps are interleaved in one process. Times are medians over
rounds; ratios are medians of the ratio to the plain step in the same round. Memory is
the peak of torch's allocator during a step minus the memory allocated before the step.
It includes the buffers of writers and gradients. The copy of the attention weights that
a stack keeps between steps is printed separately. The floor is the ratio of the numbers
of multiplications. About 15 minutes on two cores.

`--encoder true` measures a BERT of MiniLM's shape (6 layers, 12 heads, d_model 384),
which has norms on its residual stream: half a minute.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from circuitcut.attribution.edge_integrated import input_moved
from circuitcut.benchmarks.peak import check_device, device_name, peak_bytes, seconds
from circuitcut.masks.edges.gating import (
    EdgeStack,
    edge_gated,
    record_writers,
    token_bytes,
)
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.training.config import run_script

Step = Callable[[], None]
MICRO_BATCH = 128
"""Tokens of a micro-batch."""
VOCAB, D_MODEL, D_MLP = 50_257, 768, 3072


@dataclass(frozen=True)
class EdgeStepConfig:
    """Settings of the benchmark."""

    sizes: list[str] = field(
        default_factory=lambda: ["4x32", "8x64", "4x256"],
        metadata={"help": "batch x tokens"},
    )
    layers: list[int] = field(
        default_factory=lambda: [12, 24], metadata={"help": "depths of the model"}
    )
    rounds: int = field(default=5, metadata={"help": "interleaved rounds"})
    threads: int = field(default=2, metadata={"help": "torch threads"})
    encoder: bool = field(
        default=False,
        metadata={"help": "measure a BERT of MiniLM's shape and not GPT-2, 8x64"},
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)


def main(config: EdgeStepConfig) -> None:
    """Print a table per size and depth."""
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(config.threads)
    if config.encoder:
        torch.manual_seed(config.seed)
        _table("BERT of MiniLM's shape, 8 x 64 tokens", *_encoder_steps(config), config)
        return
    for n_layers in config.layers:
        torch.manual_seed(config.seed)
        model = GPT2LMHeadModel(GPT2Config(n_layer=n_layers))
        model.eval().requires_grad_(False).to(config.device)
        for size in config.sizes:
            batch, length = (int(part) for part in size.split("x"))
            if n_layers > 12 and size != config.sizes[0]:
                continue  # the deeper model is measured at one size only
            _measure(model, batch, length, config)
    print(code_llama())


def _measure(
    model: GPT2LMHeadModel, batch: int, length: int, config: EdgeStepConfig
) -> None:
    ids = torch.randint(VOCAB, (batch, length)).to(config.device)
    n_layers = model.config.n_layer
    _table(
        f"{n_layers} layers, {batch} x {length} tokens",
        *_steps(model, ids),
        config,
        partial(_floor, n_layers, length),
    )
    estimates = [
        ids.numel() * token_bytes(ResidualModel(model), stored=stored, n_classes=VOCAB)
        for stored in (True, False)
    ]
    print(
        f"estimated before a run: {estimates[0] / 1e6:.0f} MB with reads stored, "
        f"{estimates[1] / 1e6:.0f} MB with reads recomputed in the backward pass"
    )


def _table(
    title: str,
    steps: dict[str, Step],
    stacks: Sequence[EdgeStack],
    config: EdgeStepConfig,
    floor: Callable[[str], float] = lambda _: math.nan,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for turn in range(config.rounds):
        names = list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]
        for name in names:
            times[name].append(seconds(steps[name], config.device))

    def forget() -> None:
        for stack in stacks:
            stack.forget_buffers()

    where = device_name(config.device)
    print(f"\n{title}, {where}, medians of {config.rounds} rounds")
    print(f"{'step':<24}{'ms':>8}{'time':>8}{'floor':>8}{'MB':>8}")
    for name, step in steps.items():
        base = "plain forward" if "forward" in name else "plain"
        ratio = statistics.median(
            time / plain for time, plain in zip(times[name], times[base], strict=True)
        )
        print(
            f"{name:<24}{1e3 * statistics.median(times[name]):>8.0f}{ratio:>8.2f}"
            f"{floor(name):>8.2f}"
            f"{peak_bytes(step, forget, config.device) / 1e6:>8.0f}"
        )
    folded = sum(
        weight.numel() * weight.element_size()
        for layer in stacks[0].layers
        for weight in (layer.read, layer.write)
    )
    print(f"folded attention weights: {folded / 1e6:.0f} MB per stack")


def _steps(
    model: GPT2LMHeadModel, ids: Tensor
) -> tuple[dict[str, Step], list[EdgeStack]]:
    def plain() -> None:
        embedded = model.transformer.wte(ids).requires_grad_()
        model(inputs_embeds=embedded, labels=ids).loss.backward()

    separate, merged = ResidualModel(model), ResidualModel(model, separate_qkv=False)
    stored = EdgeStack(separate, store_reads=True)
    recomputed = EdgeStack(separate, store_reads=False)
    merged_stack = EdgeStack(merged, store_reads=False)
    n_micro_batches = max(1, ids.numel() // MICRO_BATCH)

    def losses(n_micro_batches: int = 1) -> Iterator[Tensor]:
        for part in ids.chunk(n_micro_batches):
            yield model(input_ids=part, labels=part).loss * len(part) / len(ids)

    def run() -> None:
        model(input_ids=ids)

    graph = separate.graph
    half = _every_other(graph)
    merged_half = half[: merged.graph.n_edges]

    steps: dict[str, Step] = {
        "plain": plain,
        "plain, second time": plain,
        "edges, stored": _gated_step(stored, losses),
        "edges, recomputed": _gated_step(recomputed, losses),
        "edges, micro-batches": _gated_step(
            recomputed, partial(losses, n_micro_batches)
        ),
        "merged, recomputed": _gated_step(merged_stack, losses),
        "EAP": partial(_eap, recomputed, model, ids),
        "EAP-IG, 5 steps": partial(_eap_ig, recomputed, model, ids),
        "plain forward": torch.no_grad()(run),
        "forward, all edges": _gated_forward(recomputed, half, run),
        "forward, merged": _gated_forward(merged_stack, merged_half, run),
        "forward, 12 cut": _gated_forward(recomputed, _without_12(graph), run),
        "forward, 988 kept": _gated_forward(recomputed, circuit(graph, 988), run),
    }
    return steps, [stored, recomputed, merged_stack]


def _eap(stack: EdgeStack, model: GPT2LMHeadModel, ids: Tensor) -> None:
    """One EAP score of every edge; the paired inputs are `ids` in reverse order."""
    keep = torch.ones(stack.model.graph.n_edges).requires_grad_()
    ablated = record_writers(stack.model, {"input_ids": ids.flip(0)})
    with edge_gated(stack, keep, ablated):
        torch.autograd.grad(model(input_ids=ids, labels=ids).loss, keep)


def _eap_ig(
    stack: EdgeStack, model: GPT2LMHeadModel, ids: Tensor, n_steps: int = 5
) -> None:
    """One EAP-IG score of every edge; paired inputs as in `_eap`."""
    ablated = record_writers(stack.model, {"input_ids": ids.flip(0)})
    differences = record_writers(stack.model, {"input_ids": ids}).sub_(ablated)
    for number in range(n_steps):
        keep = torch.ones(stack.model.graph.n_edges).requires_grad_()
        shift = ((number + 0.5) / n_steps - 1) * differences[0]
        with (
            input_moved(stack, shift),
            edge_gated(stack, keep, differences=differences),
        ):
            torch.autograd.grad(model(input_ids=ids, labels=ids).loss, keep)


def _encoder_steps(
    config: EdgeStepConfig,
) -> tuple[dict[str, Step], list[EdgeStack]]:
    shape = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    model = BertModel(shape)
    model.eval().requires_grad_(False).to(config.device)
    embedded = torch.randn(8, 64, 384).to(config.device).requires_grad_()
    stacks = [
        EdgeStack(ResidualModel(model, separate_qkv=is_separate))
        for is_separate in (True, False)
    ]

    def loss() -> Tensor:
        embedded.grad = None
        return model(inputs_embeds=embedded).last_hidden_state.square().mean()

    def losses() -> Iterator[Tensor]:
        yield loss()

    def run() -> None:
        loss()

    def plain() -> None:
        loss().backward()

    separate, merged = stacks
    graph = separate.model.graph
    steps = {
        "plain": plain,
        f"edges ({graph.n_edges:,})": _gated_step(separate, losses),
        "merged": _gated_step(merged, losses),
        "plain forward": torch.no_grad()(run),
        "forward, all edges": _gated_forward(separate, _every_other(graph), run),
        "forward, 12 cut": _gated_forward(separate, _without_12(graph), run),
    }
    return steps, stacks


def _gated_step(stack: EdgeStack, losses: Callable[[], Iterator[Tensor]]) -> Step:
    """A forward and backward pass per micro-batch, with the same random gates."""
    device = next(stack.model.base.parameters()).device
    keep = torch.rand(stack.model.graph.n_edges).to(device).requires_grad_()

    def step() -> None:
        keep.grad = None
        with edge_gated(stack, keep):
            for loss in losses():
                loss.backward()

    return step


def _gated_forward(stack: EdgeStack, keep: Tensor, run: Step) -> Step:
    def step() -> None:
        with torch.no_grad(), edge_gated(stack, keep):
            run()

    return step


def _every_other(graph: ResidualGraph) -> Tensor:
    return torch.arange(graph.n_edges) % 2 == 0


def _without_12(graph: ResidualGraph) -> Tensor:
    keep = torch.ones(graph.n_edges, dtype=torch.bool)
    keep[torch.randperm(graph.n_edges)[:12]] = False
    return keep


def circuit(graph: ResidualGraph, n_edges: int) -> Tensor:
    """A connected circuit: `n_edges` edges between some random heads and MLPs.

    Random edges alone would rarely form a path to the logits.
    """
    keep = torch.zeros(graph.n_edges, dtype=torch.bool)
    order = torch.randperm(graph.n_writers - 1) + 1
    names, writers = list(graph.edges()), graph.writers()
    for n in range(1, graph.n_writers):
        nodes = {"input", *(writers[i] for i in order[:n].tolist())}
        between = [i for i, name in enumerate(names) if _is_between(name, nodes)]
        if len(between) >= n_edges:
            into_logits = between[-1 - n :]  # one per node; the last edges in the order
            keep[between[: n_edges - len(into_logits)]] = True
            keep[into_logits] = True
            break
    return keep


def _is_between(name: str, nodes: set[str]) -> bool:
    writer, reader = name.split("->")
    reader = reader.split("<")[0]
    return writer in nodes and (reader == "logits" or reader in nodes)


def _floor(n_layers: int, length: int, name: str) -> float:
    """Multiplications of an edge step divided by those of a plain step, per token."""
    graph = ResidualGraph(n_layers, 12, 12, separate_qkv="merged" not in name)
    block = 4 * D_MODEL**2 + 2 * D_MODEL * D_MLP + length * D_MODEL
    forward = n_layers * block + D_MODEL * VOCAB
    reads = graph.n_edges * D_MODEL
    if "plain" in name:
        return 1.0
    if "EAP" in name:
        n_steps, n_runs = (5, 2) if "IG" in name else (1, 1)
        # forward passes to record writers; then each step and the gates' gradients
        return (n_runs * forward + n_steps * (2 * forward + reads)) / (2 * forward)
    if "forward" in name:
        has_all_reads = name not in ("forward, 12 cut", "forward, 988 kept")
        return (forward + reads) / forward if has_all_reads else math.nan
    # forward once; backward once for the writers and once for the gates; recomputed
    # reads once more
    n_passes = 3 if "stored" in name else 4
    return (2 * forward + n_passes * reads) / (2 * forward)


def code_llama(tokens: int = 2048) -> str:
    """Estimated memory for training all edges of CodeLlama-13B's shape, as text."""
    n_layers, n_heads, d_model, d_mlp, vocab = 40, 40, 5120, 13_824, 32_016
    graph = ResidualGraph(n_layers, n_heads, n_heads)
    weights = n_layers * (4 * d_model**2 + 3 * d_model * d_mlp) + 2 * vocab * d_model
    folded = n_layers * 4 * d_model**2
    rows = 2 * (1 + graph.n_writers) * tokens * d_model
    reads = 2 * (graph.n_attention_readers + 1) * tokens * d_model
    # per layer: q, k, v and output of the heads, input and three activations of the
    # MLP; logits and their gradient in float32
    kept = n_layers * tokens * (4 * d_model + d_model + 3 * d_mlp)
    numbers = {
        "weights": 2 * weights,
        "folded attention weights": 2 * folded,
        "writers and their gradients": 2 * rows,
        "reads of one layer": 2 * reads,
        "stored for the backward pass": 2 * kept,
        "logits": 8 * tokens * vocab,
        "gates, gradient, Adam": 16 * graph.n_edges,
    }
    lines = [f"{name}: {n / 1e9:.1f} GB" for name, n in numbers.items()]
    total = sum(numbers.values()) / 1e9
    return (
        f"\nCodeLlama-13B's shape, bf16, {tokens} tokens per step, {graph.n_edges:,} "
        f"edges\n" + "\n".join(lines) + f"\ntotal: {total:.0f} GB; an H200 has 141 GB"
    )


if __name__ == "__main__":
    run_script(main, EdgeStepConfig)
