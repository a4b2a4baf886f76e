"""Encoders under edge gates against the plain model, by hand, and by differences."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.carried_norms import CarriedNorms
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.storage.errors import UserError
from tests.models.tiny import D_MODEL, tiny_inputs, tiny_model

FAMILIES = [kind for kind, parts in PARTS.items() if parts.norms_on_stream]


def double(kind: str) -> Any:
    model = tiny_model(kind, "token_classification")
    return model.double().requires_grad_(False)


def logits_of(model: Any) -> Tensor:
    inputs = tiny_inputs(model)
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def run(model: Any, stack: EdgeStack, keep: Tensor, ablated: Tensor | None = None):
    with edge_gated(stack, keep, ablated):
        return logits_of(model)


def random_gates(stack: EdgeStack, rng: torch.Generator) -> Tensor:
    return torch.rand(stack.model.graph.n_edges, generator=rng, dtype=torch.float64)


def random_values(stack: EdgeStack, rng: torch.Generator, n_tokens: int = 1) -> Tensor:
    shape = stack.model.graph.n_writers, n_tokens, D_MODEL
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("attention_bias", ["always", "heads"])
def test_open_gates_give_the_plain_logits(
    kind: str, separate_qkv: bool, attention_bias: Any
):
    model = double(kind)
    plain = logits_of(model)
    residual = ResidualModel(
        model, separate_qkv=separate_qkv, attention_bias=attention_bias
    )
    stack = EdgeStack(residual)
    open_gates = torch.ones(residual.graph.n_edges, dtype=torch.float64)
    logits = run(model, stack, open_gates)
    torch.testing.assert_close(logits, plain, atol=1e-10, rtol=0)
    # and any ablation value makes no difference while nothing is ablated
    rng = torch.Generator().manual_seed(0)
    for n_tokens in (1, 12):
        ablated = random_values(stack, rng, n_tokens)
        logits = run(model, stack, open_gates, ablated)
        torch.testing.assert_close(logits, plain, atol=1e-10, rtol=0)
    assert torch.equal(logits_of(model), plain)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", FAMILIES)
def test_open_gates_in_single_precision(kind: str):
    model = tiny_model(kind, "token_classification").requires_grad_(False)
    stack = EdgeStack(ResidualModel(model))
    logits = run(model, stack, torch.ones(stack.model.graph.n_edges))
    torch.testing.assert_close(logits, logits_of(model), atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize(
    ("attention_bias", "n_tokens"), [("always", 1), ("heads", 12), ("heads", None)]
)
def test_gradients_of_gates_are_those_of_finite_differences(
    kind: str, separate_qkv: bool, attention_bias: Any, n_tokens: int | None
):
    model = double(kind)
    rng = torch.Generator().manual_seed(0)
    stack = EdgeStack(
        ResidualModel(model, separate_qkv=separate_qkv, attention_bias=attention_bias)
    )
    keep = random_gates(stack, rng).requires_grad_()
    ablated = random_values(stack, rng, n_tokens) if n_tokens else None

    def loss(gates: Tensor) -> Tensor:
        return run(model, stack, gates, ablated).sin().sum()

    (gradient,) = torch.autograd.grad(loss(keep), keep)
    chosen = torch.randperm(stack.model.graph.n_edges, generator=rng)[:40]
    with torch.no_grad():
        for edge in chosen.tolist():
            moved = torch.zeros_like(keep)
            moved[edge] = 1e-5
            slope = (loss(keep + moved) - loss(keep - moved)) / 2e-5
            error = abs(float(slope - gradient[edge]))
            assert error < 1e-6 * (1 + abs(float(slope)))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_gradient_of_the_input(kind: str):
    model = double(kind)
    inputs = tiny_inputs(model)
    real = inputs["attention_mask"].bool()
    stack = EdgeStack(ResidualModel(model))
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()

    def loss(inputs_embeds: Tensor) -> Tensor:
        logits = model(
            inputs_embeds=inputs_embeds, attention_mask=inputs["attention_mask"]
        )
        return logits.logits[real].sin().sum()

    def gradient() -> Tensor:
        leaf = embedded.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    # with all gates open, the plain model's
    with edge_gated(stack, torch.ones(stack.model.graph.n_edges).double()):
        torch.testing.assert_close(gradient(), gradient())
        gated_gradient = gradient()
    torch.testing.assert_close(gated_gradient, gradient(), atol=1e-10, rtol=1e-8)
    # with any gates, that of differences
    rng = torch.Generator().manual_seed(1)
    keep, ablated = random_gates(stack, rng), random_values(stack, rng)
    with edge_gated(stack, keep, ablated):
        gated_gradient = gradient()
        with torch.no_grad():
            for place in range(0, embedded[0].numel(), 11):
                moved = torch.zeros_like(embedded)
                moved[0].view(-1)[place] = 1e-5
                slope = (loss(embedded + moved) - loss(embedded - moved)) / 2e-5
                error = abs(float(slope - gated_gradient[0].view(-1)[place]))
                assert error < 1e-6 * (1 + abs(float(slope)))


def bert_by_hand(
    model: Any, kept: set[str], ablated: dict[str, Tensor], *, separate_qkv: bool
) -> Tensor:
    """A BERT under edge gates, in plain loops over readers, writers and norms.

    Shares are plain values of the stream: each norm is applied to the share of every
    writer, of its ablation value and of what is always on, one by one.
    """
    ids = tiny_inputs(model)["input_ids"][:1]
    base, n_heads = model.bert, model.config.num_attention_heads
    width = D_MODEL // n_heads
    written = {"input": base.embeddings(ids)}
    values = {"input": ablated["input"].expand_as(written["input"])}
    always = torch.zeros_like(written["input"])

    def read(reader: str) -> Tensor:
        total = always.clone()
        for writer, value in written.items():
            on = f"{writer}->{reader}" in kept
            total = total + (value if on else values[writer])
        return total

    def pass_norm(norm: Any) -> None:
        nonlocal always
        live = always + torch.stack(list(written.values())).sum(0)
        deviation = (live.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        shares = [*written.items(), *values.items()]

        def through(share: Tensor) -> Tensor:
            return (share - share.mean(-1, keepdim=True)) * norm.weight / deviation

        for name, share in shares[: len(written)]:
            written[name] = through(share)
        for name, share in shares[len(written) :]:
            values[name] = through(share)
        always = through(always) + norm.bias
        total = always + torch.stack(list(written.values())).sum(0)
        expected = layer_norm(live, (D_MODEL,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(total, expected)

    for layer, block in enumerate(base.encoder.layer):
        attention = block.attention.self
        output = block.attention.output
        heads = {}
        for head in range(n_heads):
            rows, parts = slice(head * width, (head + 1) * width), []
            for part in ("query", "key", "value"):
                kind = f"<{part[0]}>" if separate_qkv else ""
                module = getattr(attention, part)
                read_value = read(f"a{layer}.h{head}{kind}")
                parts.append(read_value @ module.weight[rows].T + module.bias[rows])
            query, key, value = parts
            attended = (query @ key.transpose(1, 2) / width**0.5).softmax(-1) @ value
            heads[f"a{layer}.h{head}"] = attended @ output.dense.weight[:, rows].T
        written |= heads
        values |= {name: ablated[name].expand_as(always) for name in heads}
        always = always + output.dense.bias
        pass_norm(output.LayerNorm)
        read_value = read(f"m{layer}")
        written[f"m{layer}"] = block.output.dense(block.intermediate(read_value))
        values[f"m{layer}"] = ablated[f"m{layer}"].expand_as(always)
        pass_norm(block.output.LayerNorm)
    return model.classifier(read("logits"))


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("separate_qkv", [True, False])
def test_a_random_cut_of_bert_is_that_of_loops_over_edges(
    with_values: bool, separate_qkv: bool
):
    model = double("bert")
    stack = EdgeStack(ResidualModel(model, separate_qkv=separate_qkv))
    graph = stack.model.graph
    rng = torch.Generator().manual_seed(5)
    keep = torch.rand(graph.n_edges, generator=rng) < 0.6
    values = random_values(stack, rng) * with_values
    names = [name for name, on in zip(graph.edges(), keep.tolist(), strict=True) if on]
    ablated = dict(zip(graph.writers(), values, strict=True))
    expected = bert_by_hand(model, set(names), ablated, separate_qkv=separate_qkv)
    with edge_gated(stack, keep, values):
        logits = model(tiny_inputs(model)["input_ids"][:1]).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("with_bias", [False, True])
def test_with_all_edges_closed_the_logits_read_what_is_always_on(with_bias: bool):
    model = double("bert")
    *earlier, last = CarriedNorms(ResidualModel(model), []).norms
    if not with_bias:
        for norm in earlier:
            norm.bias.zero_()
    bias = "always" if with_bias else "heads"
    stack = EdgeStack(ResidualModel(model, attention_bias=bias))
    keep = torch.zeros(stack.model.graph.n_edges, dtype=torch.float64)
    with edge_gated(stack, keep):
        logits = model(tiny_inputs(model)["input_ids"][:1]).logits
    if with_bias:
        zero = torch.zeros(1, 1, dtype=torch.float64)
        ablated = dict.fromkeys(stack.model.graph.writers(), zero)
        expected = bert_by_hand(model, set(), ablated, separate_qkv=True)
    else:
        expected = model.classifier(last.bias).expand_as(logits)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_an_edge_reaches_its_reader_and_what_is_after_it_only():
    model = double("bert")
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    keep = torch.ones(graph.n_edges, dtype=torch.float64)
    keep[list(graph.edges()).index("a0.h1->m1")] = 0.0
    read: list[Tensor] = []
    hooks = [
        block.intermediate.register_forward_pre_hook(
            lambda _module, args: read.append(args[0])
        )
        for block in stack.model.blocks
    ]
    plain = logits_of(model)
    ablated = run(model, stack, keep)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(read[0], read[2])
    assert not torch.allclose(read[1], read[3])
    assert not torch.allclose(plain, ablated)


def test_a_gain_of_zero_closes_its_channel():
    model = double("bert")
    norm = model.bert.encoder.layer[0].attention.output.LayerNorm
    norm.weight[3] = 0.0
    stack = EdgeStack(ResidualModel(model))
    open_gates = torch.ones(stack.model.graph.n_edges, dtype=torch.float64)
    logits = run(model, stack, open_gates)
    torch.testing.assert_close(logits, logits_of(model), atol=1e-10, rtol=0)


def test_gains_that_multiply_out_of_range_are_refused():
    model = tiny_model("bert").requires_grad_(False)
    for block in model.encoder.layer:
        block.attention.output.LayerNorm.weight[3] = 1e-20
        block.output.LayerNorm.weight[3] = 1e-20
    residual = ResidualModel(model)
    assert isinstance(EdgeStack(residual).carried, CarriedNorms)
    for block in model.encoder.layer:
        block.attention.output.LayerNorm.weight[3] = 1e18
        block.output.LayerNorm.weight[3] = 1e18
    with pytest.raises(UserError, match="load the model in double precision"):
        EdgeStack(residual)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_position_embedding_cannot_be_separate(kind: str):
    with pytest.raises(UserError, match="adds no position embedding to the stream"):
        ResidualModel(tiny_model(kind), position="own")


def test_cross_attention_is_refused():
    model = tiny_model("bert")
    model.config.add_cross_attention = True
    with pytest.raises(UserError, match="attends to another model's states"):
        ResidualModel(model)
