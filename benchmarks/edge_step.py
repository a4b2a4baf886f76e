"""Time and memory of training gates on all edges, against a plain step of the model.

    python benchmarks/edge_step.py
    python benchmarks/edge_step.py --shape smollm2 --sizes 4x32
    python benchmarks/edge_step.py --device cuda

A plain step is a forward and a backward pass down to the input embeddings with frozen
weights: sdpa, random weights, the shape of GPT-2 small or (`--shape smollm2`) that of
SmolLM2-135M: 30 layers, grouped queries, a gated MLP. An edge step does the same with
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
of multiplications; that of a finished mask is the count of the plan that is chosen for
it. About 15 minutes on two cores; SmolLM2's shape at 4x32 three minutes.

`forward, all edges`: every other edge is closed. `12 cut`: all edges but 12 are kept.
`988 kept`, `5,000 kept`: a circuit of that many edges. `--long_row 512` adds the memory
of steps on the batch with one of its rows of that length, the others padded to it.

`--encoder true` measures a BERT of MiniLM's shape (6 layers, 12 heads, d_model 384),
which has norms on its residual stream: half a minute.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging as transformers_logging

from circuitcut.attribution.edge_integrated import input_moved
from circuitcut.benchmarks.peak import (
    check_device,
    device_name,
    interleaved,
    median_ratio,
    peak_bytes,
)
from circuitcut.masks.edges.gating import (
    EdgeStack,
    block_cost,
    edge_gated,
    plan_of,
    record_writers,
    token_bytes,
)
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.training.config import run_script

Step = Callable[[], None]
MICRO_BATCH = 128
"""Tokens of a micro-batch."""


def _gpt2(n_layers: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=n_layers))


def _smollm2(n_layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=n_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


SHAPES: dict[str, tuple[Callable[[int], Any], list[int]]] = {
    "gpt2": (_gpt2, [12, 24]),
    "smollm2": (_smollm2, [30]),
}
"""A model of a given depth, and the depths measured by default."""


@dataclass(frozen=True)
class EdgeStepConfig:
    """Settings of the benchmark."""

    sizes: list[str] = field(
        default_factory=lambda: ["4x32", "8x64", "4x256"],
        metadata={"help": "batch x tokens"},
    )
    shape: Literal["gpt2", "smollm2"] = field(
        default="gpt2", metadata={"help": "whose shape the model has"}
    )
    layers: list[int] = field(
        default_factory=list,
        metadata={"help": "depths of the model; default 12 24 (gpt2), 30 (smollm2)"},
    )
    steps: str = field(
        default="", metadata={"help": "only steps with this in their name; all: ''"}
    )
    long_row: int = field(
        default=0, metadata={"help": "tokens of one long row, for its memory; 0: none"}
    )
    rounds: int = field(default=5, metadata={"help": "interleaved rounds"})
    threads: int = field(default=2, metadata={"help": "torch threads"})
    cpu_time: bool = field(
        default=False,
        metadata={
            "help": "measure the processor's time and not the clock's: with "
            "--threads 1 the other programs of a busy machine then count less"
        },
    )
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
    make, layers = SHAPES[config.shape]
    for n_layers in config.layers or layers:
        torch.manual_seed(config.seed)
        model = make(n_layers)
        model.eval().requires_grad_(False).to(config.device)
        for size in config.sizes:
            batch, length = (int(part) for part in size.split("x"))
            if n_layers > 12 and size != config.sizes[0]:
                continue  # the deeper model is measured at one size only
            _measure(model, batch, length, config)
    print(code_llama())


def _measure(model: Any, batch: int, length: int, config: EdgeStepConfig) -> None:
    vocab = model.config.vocab_size
    ids = torch.randint(vocab, (batch, length)).to(config.device)
    steps, stacks = _steps(model, ids)
    _table(
        f"{config.shape}, {model.config.num_hidden_layers} layers, "
        f"{batch} x {length} tokens",
        steps,
        stacks,
        config,
        _Floors(stacks[0].model, stacks[-1].model, length),
    )
    estimates = [
        ids.numel() * token_bytes(ResidualModel(model), stored=stored, n_classes=vocab)
        for stored in (True, False)
    ]
    print(
        f"estimated before a run: {estimates[0] / 1e6:.0f} MB with reads stored, "
        f"{estimates[1] / 1e6:.0f} MB with reads recomputed in the backward pass"
    )
    if config.long_row:
        _print_long_row(model, ids, config)


def _print_long_row(model: Any, ids: Tensor, config: EdgeStepConfig) -> None:
    """Peak memory with one row of many tokens, the others padded to its length."""
    long = torch.randint(model.config.vocab_size, (len(ids), config.long_row))
    mask = torch.zeros_like(long)
    mask[:, : ids.shape[1]] = 1
    mask[0] = 1
    inputs = {"input_ids": long, "attention_mask": mask}
    inputs = {name: values.to(config.device) for name, values in inputs.items()}
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    def loss(n_micro_batches: int = 1, trimmed: bool = False) -> Iterator[Tensor]:
        everything = (*inputs.values(), labels)
        for number in range(n_micro_batches):
            part, mask, target = (
                values.chunk(n_micro_batches)[number] for values in everything
            )
            n = int(mask.sum(1).max()) if trimmed else mask.shape[1]
            yield model(
                input_ids=part[:, :n], attention_mask=mask[:, :n], labels=target[:, :n]
            ).loss

    separate = ResidualModel(model)
    print(
        f"one row of {config.long_row} tokens, {len(ids) - 1} of {ids.shape[1]} tokens:"
    )
    for name, stores, n_parts, trimmed in (
        ("edges, stored", True, 1, False),
        ("edges, recomputed", False, 1, False),
        ("a micro-batch a row", False, len(ids), False),
        ("the same, not padded", False, len(ids), True),
    ):
        stack = EdgeStack(separate, store_reads=stores)
        step = _gated_step(stack, partial(loss, n_parts, trimmed))
        peak = peak_bytes(step, stack.forget_buffers, config.device)
        print(f"{name:<24}{peak / 1e6:>8.0f} MB")
        del step, stack


def _table(
    title: str,
    steps: dict[str, Step],
    stacks: Sequence[EdgeStack],
    config: EdgeStepConfig,
    floor: Callable[[str], float] = lambda _: math.nan,
) -> None:
    steps = {
        name: step
        for name, step in steps.items()
        if name in ("plain", "plain forward") or config.steps in name
    }
    for step in steps.values():
        step()
    clock = time.process_time if config.cpu_time else time.perf_counter
    times = interleaved(steps, config.rounds, config.device, clock)

    def forget() -> None:
        for stack in stacks:
            stack.forget_buffers()

    where = device_name(config.device)
    print(f"\n{title}, {where}, medians of {config.rounds} rounds")
    print(f"{'step':<24}{'ms':>8}{'time':>8}{'floor':>8}{'MB':>8}")
    for name, step in steps.items():
        base = "plain forward" if "forward" in name else "plain"
        ratio = median_ratio(times[name], times[base])
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


def _steps(model: Any, ids: Tensor) -> tuple[dict[str, Step], list[EdgeStack]]:
    def plain() -> None:
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        model(inputs_embeds=embedded, labels=ids).loss.backward()

    separate, merged = ResidualModel(model), ResidualModel(model, separate_qkv=False)
    stored = EdgeStack(separate, store_reads=True)
    recomputed = EdgeStack(separate, store_reads=False)
    merged_stored = EdgeStack(merged, store_reads=True)
    merged_stack = EdgeStack(merged, store_reads=False)
    n_micro_batches = max(1, ids.numel() // MICRO_BATCH)

    def losses(n_micro_batches: int = 1) -> Iterator[Tensor]:
        for part in ids.chunk(n_micro_batches):
            yield model(input_ids=part, labels=part).loss * len(part) / len(ids)

    def run() -> None:
        model(input_ids=ids)

    masks = _masks(separate.graph)
    merged_half = _every_other(merged.graph)

    steps: dict[str, Step] = {
        "plain": plain,
        "plain, second time": plain,
        "edges, stored": _gated_step(stored, losses),
        "edges, recomputed": _gated_step(recomputed, losses),
        "edges, micro-batches": _gated_step(
            recomputed, partial(losses, n_micro_batches)
        ),
        "merged, stored": _gated_step(merged_stored, losses),
        "merged, recomputed": _gated_step(merged_stack, losses),
        "EAP": partial(_eap, recomputed, model, ids),
        "EAP-IG, 5 steps": partial(_eap_ig, recomputed, model, ids),
        "plain forward": torch.no_grad()(run),
        "forward, merged": _gated_forward(merged_stack, merged_half, run),
    }
    for name, keep in masks.items():
        steps[name] = _gated_forward(recomputed, keep, run)
    return steps, [stored, recomputed, merged_stored, merged_stack]


def _masks(graph: ResidualGraph) -> dict[str, Tensor]:
    """Finished masks, by the name of their step; the same ones at every call."""
    rng = torch.Generator().manual_seed(0)
    return {
        "forward, all edges": _every_other(graph),
        "forward, 12 cut": _without_12(graph, rng),
        "forward, 988 kept": circuit(graph, 988, rng),
        "forward, 5,000 kept": circuit(graph, 5000, rng),
    }


def _eap(stack: EdgeStack, model: Any, ids: Tensor) -> None:
    """One EAP score of every edge; the paired inputs are `ids` in reverse order."""
    keep = torch.ones(stack.model.graph.n_edges).requires_grad_()
    ablated = record_writers(stack.model, {"input_ids": ids.flip(0)})
    with edge_gated(stack, keep, ablated):
        torch.autograd.grad(model(input_ids=ids, labels=ids).loss, keep)


def _eap_ig(stack: EdgeStack, model: Any, ids: Tensor, n_steps: int = 5) -> None:
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
        "forward, 12 cut": _gated_forward(
            separate, _without_12(graph, torch.Generator().manual_seed(0)), run
        ),
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


def _without_12(graph: ResidualGraph, rng: torch.Generator) -> Tensor:
    keep = torch.ones(graph.n_edges, dtype=torch.bool)
    keep[torch.randperm(graph.n_edges, generator=rng)[:12]] = False
    return keep


def circuit(graph: ResidualGraph, n_edges: int, rng: torch.Generator) -> Tensor:
    """A connected circuit: `n_edges` edges between some random heads and MLPs.

    Random edges alone would rarely form a path to the logits.
    """
    keep = torch.zeros(graph.n_edges, dtype=torch.bool)
    order = torch.randperm(graph.n_writers - 1, generator=rng) + 1
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


class _Floors:
    """Multiplications a token of a step, divided by those of the plain step.

    Args:
        separate: The model with separate queries, keys and values.
        merged: The same model with merged ones.
        length: Tokens of a row, for attention's own products.
    """

    def __init__(self, separate: ResidualModel, merged: ResidualModel, length: int):
        self.separate, self.merged = separate, merged
        graph, config = separate.graph, separate.base.config
        attention = graph.n_layers * graph.n_heads * separate.d_head * length
        self.outside = attention + config.hidden_size * config.vocab_size
        self.forward = block_cost(separate) + self.outside
        self.masks = _masks(graph)

    def __call__(self, name: str) -> float:
        plain = self.forward if "forward" in name else 2 * self.forward
        return self._cost(name) / plain

    def _cost(self, name: str) -> float:
        if "plain" in name:
            return self.forward if "forward" in name else 2 * self.forward
        if "forward" in name:
            if name in self.masks:
                plan = plan_of(self.separate, self.masks[name])
                return plan.cost[plan.form] + self.outside
            return self._gated_forward(self.merged) + self._reads(self.merged)
        reads = self._reads(self.separate)
        if "EAP" in name:
            n_steps, n_runs = (5, 2) if "IG" in name else (1, 1)
            # forward passes to record writers; then each step and the gates' gradients
            return n_runs * self.forward + n_steps * (2 * self.forward + reads)
        # forward once; backward once for the writers and once for the gates; recomputed
        # reads once more
        model = self.merged if "merged" in name else self.separate
        n_passes = 3 if "stored" in name else 4
        return 2 * self._gated_forward(model) + n_passes * self._reads(model)

    def _reads(self, model: ResidualModel) -> float:
        return model.graph.n_edges * model.d_model

    def _gated_forward(self, model: ResidualModel) -> float:
        """Without the reads; merged heads of a group each project keys and values."""
        graph = model.graph
        n_more = 0 if graph.separate_qkv else 2 * (graph.n_heads - graph.n_kv_heads)
        return self.forward + graph.n_layers * n_more * model.d_head * model.d_model


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
