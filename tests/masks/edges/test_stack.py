"""The stack under edge gates against the plain model, by hand, and by differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.storage.errors import UserError
from tests.models.tiny import (
    GROUPED,
    exact_norms,
    heads_of,
    tiny_inputs,
    tiny_model,
)

FAMILIES = [kind for kind, parts in PARTS.items() if parts.norms_on_stream is None]
LIKE_OTHERS = ("olmo", "gemma", "gemma3_text", "mistral", "qwen2")
"""Families whose blocks are put together like those of another one."""
SINGLE_SOFTMAX = ("gemma2", "gpt_neo", "gptj", "bloom")
"""Their attention takes its softmax in float32 whatever the model's precision."""
MERGED = [kind for kind in FAMILIES if kind != "olmo2"]


BELOW_ONE = 1 - 2**-53
"""No number of double precision lies between: gates that are not taken for open."""


def double(kind: str) -> Any:
    return tiny_model(kind, heads_of(kind)[0]).double().requires_grad_(False)


def run(model: Any, stack: EdgeStack, keep: Tensor, ablated: Tensor | None = None):
    inputs = tiny_inputs(model)
    with edge_gated(stack, keep, ablated):
        return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("separate_qkv", [True, False])
@pytest.mark.parametrize("value", [1.0, BELOW_ONE])
def test_open_gates_give_the_plain_logits(kind: str, separate_qkv: bool, value: float):
    model, inputs = double(kind), None
    if not separate_qkv and kind not in MERGED:
        with pytest.raises(UserError, match="normalises all keys together"):
            ResidualModel(model, separate_qkv=False)
        return
    inputs = tiny_inputs(model)
    with exact_norms(model):
        plain = model(**inputs).logits[inputs["attention_mask"].bool()]
        stack = EdgeStack(ResidualModel(model, separate_qkv=separate_qkv))
        n_edges = stack.model.graph.n_edges
        open_gates = torch.full((n_edges,), value, dtype=torch.float64)
        torch.testing.assert_close(
            run(model, stack, open_gates), plain, atol=1e-10, rtol=0
        )
        # and any ablation value makes no difference while nothing is ablated
        ablated = torch.randn(stack.model.graph.n_writers, 1, 32, dtype=torch.float64)
        torch.testing.assert_close(
            run(model, stack, open_gates, ablated), plain, atol=1e-10, rtol=0
        )
    after = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert torch.equal(after, model(**inputs).logits[inputs["attention_mask"].bool()])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("value", [1.0, 1 - 2**-24])
def test_open_gates_in_single_precision(kind: str, value: float):
    model = tiny_model(kind, heads_of(kind)[0]).requires_grad_(False)
    inputs = tiny_inputs(model)
    plain = model(**inputs).logits[inputs["attention_mask"].bool()]
    stack = EdgeStack(ResidualModel(model))
    logits = run(model, stack, torch.full((stack.model.graph.n_edges,), value))
    torch.testing.assert_close(logits, plain, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "separate_qkv", "position"),
    [
        *((kind, True, "merged") for kind in FAMILIES),
        *((kind, False, "merged") for kind in MERGED),
        ("gpt2", True, "own"),
        ("gpt2", False, "always"),
    ],
)
def test_open_gates_have_the_gradient_of_gates_just_below(
    kind: str, separate_qkv: bool, position: Any
):
    model, rng = double(kind), torch.Generator().manual_seed(0)
    inputs = tiny_inputs(model)
    n_batch, n_seq = inputs["input_ids"].shape
    with exact_norms(model):
        stack = EdgeStack(
            ResidualModel(model, separate_qkv=separate_qkv, position=position)
        )
        graph = stack.model.graph
        shape = graph.n_writers, n_batch, n_seq, 32
        ablated = torch.randn(shape, generator=rng).double()
        differences = torch.randn(shape, generator=rng).double()
        for how in ({"ablated": ablated}, {"differences": differences}):
            grads = []
            for value in (1.0, BELOW_ONE):
                keep = torch.full((graph.n_edges,), value, dtype=torch.float64)
                embedded = model.get_input_embeddings()(inputs["input_ids"])
                leaves = keep.requires_grad_(), embedded.detach().requires_grad_()
                arguments = {**inputs, "input_ids": None, "inputs_embeds": leaves[1]}
                with edge_gated(stack, keep, **how):
                    logits = model(**arguments).logits[inputs["attention_mask"].bool()]
                grads.append(torch.autograd.grad(logits.sin().sum(), leaves))
            for one, other in zip(*grads, strict=True):
                assert float(one.abs().max()) > 1e-3
                torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind in LIKE_OTHERS else kind
        for kind in FAMILIES
    ],
)
@pytest.mark.parametrize("separate_qkv", [True, False])
def test_gradients_of_gates_are_those_of_finite_differences(
    kind: str, separate_qkv: bool
):
    if not separate_qkv and kind not in MERGED:
        pytest.skip("its heads cannot merge queries, keys and values")
    model = double(kind)
    rng = torch.Generator().manual_seed(0)
    with exact_norms(model):
        recomputed = EdgeStack(
            ResidualModel(model, separate_qkv=separate_qkv), store_reads=False
        )
        stored = EdgeStack(recomputed.model, store_reads=True)
        graph = recomputed.model.graph
        keep = torch.rand(graph.n_edges, generator=rng, dtype=torch.float64)
        keep.requires_grad_()
        ablated = torch.randn(graph.n_writers, 1, 32, generator=rng).double()

        def loss(gates: Tensor, stack: EdgeStack = recomputed) -> Tensor:
            return run(model, stack, gates, ablated).sin().sum()

        (gradient,) = torch.autograd.grad(loss(keep), keep)
        (of_stored,) = torch.autograd.grad(loss(keep, stored), keep)
        assert torch.equal(gradient, of_stored)
        chosen = torch.randperm(graph.n_edges, generator=rng)[:25]
        step, allowed = (1e-2, 2e-3) if kind in SINGLE_SOFTMAX else (1e-5, 1e-5)
        with torch.no_grad():
            for edge in chosen.tolist():
                moved = torch.zeros_like(keep)
                moved[edge] = step
                slope = (loss(keep + moved) - loss(keep - moved)) / (2 * step)
                error = abs(float(slope - gradient[edge]))
                assert error < allowed * (1 + abs(float(slope)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_the_gradient_of_the_input_is_the_plain_one(kind: str):
    model = double(kind)
    inputs = tiny_inputs(model)
    with exact_norms(model):
        stack = EdgeStack(ResidualModel(model))
        keep = torch.ones(stack.model.graph.n_edges, dtype=torch.float64)
        grads = []
        for gated in (False, True):
            embedded = model.get_input_embeddings()(inputs["input_ids"])
            embedded = embedded.detach().requires_grad_()
            arguments = {
                "inputs_embeds": embedded,
                "attention_mask": inputs["attention_mask"],
            }
            if gated:
                with edge_gated(stack, keep):
                    logits = model(**arguments).logits
            else:
                logits = model(**arguments).logits
            logits[inputs["attention_mask"].bool()].sin().sum().backward()
            grads.append(embedded.grad)
        torch.testing.assert_close(grads[0], grads[1], atol=1e-10, rtol=1e-8)


def gpt2_by_hand(model: Any, kept: set[str], ablated: dict[str, Tensor]) -> Tensor:
    """A GPT-2 under edge gates, in plain loops over readers and writers."""
    ids = tiny_inputs(model)["input_ids"][:1]
    base = model.transformer
    n_heads = model.config.n_head
    width = model.config.n_embd // n_heads
    written = {"input": base.wte(ids) + base.wpe(torch.arange(ids.shape[1]))}
    always = torch.zeros_like(written["input"])

    def read(reader: str) -> Tensor:
        total = always.clone()
        for writer, value in written.items():
            on = f"{writer}->{reader}" in kept
            total = total + (value if on else ablated[writer])
        return total

    for layer, block in enumerate(base.h):
        heads = {}
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        for head in range(n_heads):
            parts = []
            for place, part in enumerate("qkv"):
                columns = slice(
                    place * 32 + head * width, place * 32 + (head + 1) * width
                )
                normed = block.ln_1(read(f"a{layer}.h{head}<{part}>"))
                parts.append(normed @ weight[:, columns] + bias[columns])
            query, key, value = parts
            scores = query @ key.transpose(1, 2) / width**0.5
            future = torch.ones_like(scores).triu(1).bool()
            attended = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
            rows = slice(head * width, (head + 1) * width)
            heads[f"a{layer}.h{head}"] = attended @ block.attn.c_proj.weight[rows]
        written |= heads
        always = always + block.attn.c_proj.bias
        written[f"m{layer}"] = block.mlp(block.ln_2(read(f"m{layer}")))
    return model.lm_head(base.ln_f(read("logits")))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, grads, strict=True) if g is not None}


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradients_of_weights_at_open_gates_are_the_plain_ones(kind: str):
    model = tiny_model(kind, heads_of(kind)[0]).double()
    inputs = tiny_inputs(model)
    real = inputs["attention_mask"].bool()
    with exact_norms(model):
        plain = gradients(model, model(**inputs).logits[real].sin().sum())
        stack = EdgeStack(ResidualModel(model))
        keep = torch.ones(stack.model.graph.n_edges, dtype=torch.float64)
        weight_grads = gradients(model, run(model, stack, keep).sin().sum())
    assert weight_grads.keys() == plain.keys()
    allowed = 1e-5 if kind in SINGLE_SOFTMAX else 1e-9
    for name in plain:
        torch.testing.assert_close(
            weight_grads[name], plain[name], atol=allowed, rtol=allowed, msg=name
        )


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"separate_qkv": False},
        {"attention_bias": "heads"},
        {"value_bias": "output"},
        {"attention_bias": "heads", "value_bias": "output_with_norm"},
        {"position": "own"},
        {"position": "always"},
    ],
)
def test_gradients_of_weights_under_a_cut_follow_finite_differences(switches: Any):
    model = tiny_model("gpt2", "causal_lm").double()
    stack = EdgeStack(ResidualModel(model, **switches))
    rng = torch.Generator().manual_seed(4)
    keep = torch.rand(stack.model.graph.n_edges, generator=rng) < 0.7
    weight_grads = gradients(model, run(model, stack, keep).sin().sum())
    step = 1e-6
    for name, parameter in model.named_parameters():
        flat = parameter.detach().view(-1)
        place = int(weight_grads[name].abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                flat[place] += sign * step
                stack.fold()
                losses.append(float(run(model, stack, keep).sin().sum()))
                flat[place] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = float(weight_grads[name].flatten()[place])
        assert abs(slope - expected) < 1e-5 * (1 + abs(expected)), name


def test_a_cut_edge_gives_its_writer_no_gradient():
    model = tiny_model("gpt2", "causal_lm").double()
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    names = list(graph.edges())
    keep = torch.tensor([not name.startswith("m1->") for name in names])
    weight_grads = gradients(model, run(model, stack, keep).sin().sum())
    assert not weight_grads["transformer.h.1.mlp.c_proj.weight"].any()
    assert weight_grads["transformer.h.0.mlp.c_proj.weight"].any()


@pytest.mark.parametrize("with_values", [False, True])
def test_a_random_cut_of_gpt2_is_that_of_loops_over_edges(with_values: bool):
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    rng = torch.Generator().manual_seed(5)
    keep = torch.rand(graph.n_edges, generator=rng) < 0.6
    values = torch.randn(graph.n_writers, 1, 32, generator=rng).double()
    values = values * with_values
    names = [name for name, on in zip(graph.edges(), keep.tolist(), strict=True) if on]
    ablated = dict(zip(graph.writers(), values, strict=True))
    expected = gpt2_by_hand(model, set(names), ablated)
    with edge_gated(stack, keep, values):
        logits = model(tiny_inputs(model)["input_ids"][:1]).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_position_may_be_a_writer_of_its_own_or_always_on():
    model = double("gpt2")
    inputs = tiny_inputs(model)
    real = inputs["attention_mask"].bool()
    plain = model(**inputs).logits[real]
    for position in ("own", "always"):
        stack = EdgeStack(ResidualModel(model, position=position))
        graph = stack.model.graph
        for value in (1.0, BELOW_ONE):
            keep = torch.full((graph.n_edges,), value, dtype=torch.float64)
            logits = run(model, stack, keep)
            torch.testing.assert_close(logits, plain, atol=1e-10, rtol=0)
    own = EdgeStack(ResidualModel(model, position="own"))
    always = EdgeStack(ResidualModel(model, position="always"))
    numbers = {name: n for n, name in enumerate(own.model.graph.edges())}
    keep = torch.rand(own.model.graph.n_edges, dtype=torch.float64)
    for name, number in numbers.items():
        if name.startswith("position->"):
            keep[number] = 1.0
    others = [n for name, n in numbers.items() if not name.startswith("position->")]
    torch.testing.assert_close(
        run(model, own, keep), run(model, always, keep[others]), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("position", ["merged", "own", "always"])
@pytest.mark.parametrize("is_open", [False, True])
def test_the_position_embedding_takes_its_gradient_alone(position: Any, is_open: bool):
    model, rng = double("gpt2"), torch.Generator().manual_seed(0)
    weight = model.transformer.wpe.weight.requires_grad_()
    stack = EdgeStack(ResidualModel(model, position=position))
    keep = torch.rand(stack.model.graph.n_edges, generator=rng, dtype=torch.float64)
    if is_open:
        keep = torch.ones_like(keep)

    def loss() -> Tensor:
        return run(model, stack, keep).sin().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for row, column in ((0, 3), (1, 0), (2, 17)):
            ends = []
            for step in (1e-6, -2e-6):
                weight[row, column] += step
                ends.append(float(loss()))
            weight[row, column] += 1e-6
            slope = (ends[0] - ends[1]) / 2e-6
            assert float(gradient[row, column]) == pytest.approx(
                slope, abs=1e-6, rel=1e-6
            )


def test_the_attention_bias_may_belong_to_the_heads():
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model, attention_bias="heads"))
    graph = stack.model.graph
    plain = model(**tiny_inputs(model)).logits
    real = tiny_inputs(model)["attention_mask"].bool()
    ones = torch.ones(graph.n_edges, dtype=torch.float64)
    for gates in (ones, BELOW_ONE * ones):
        logits = run(model, stack, gates)
        torch.testing.assert_close(logits, plain[real], atol=1e-10, rtol=0)
    # all edges ablated: the logits read nothing, so they are the same at every position
    nothing = run(model, stack, torch.zeros_like(ones))
    torch.testing.assert_close(nothing, nothing[:1].expand_as(nothing))
    final = model.lm_head(model.transformer.ln_f.bias)
    torch.testing.assert_close(nothing[0], final, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", *GROUPED])
def test_padding_on_either_side_gives_the_same_logits(kind: str):
    # in double precision its mask overflows the softmax, in the plain model too
    single = kind in SINGLE_SOFTMAX
    model = double(kind).float() if single else double(kind)
    ids = torch.randint(5, 60, (1, 5), generator=torch.Generator().manual_seed(2))
    stack = EdgeStack(ResidualModel(model))
    rng = torch.Generator().manual_seed(3)
    keep = torch.rand(stack.model.graph.n_edges, generator=rng)
    results = []
    for left in (True, False):
        pad = torch.zeros(1, 3, dtype=ids.dtype)
        mask = torch.cat([pad, ids * 0 + 1] if left else [ids * 0 + 1, pad], 1)
        padded = torch.cat([pad, ids] if left else [ids, pad], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with exact_norms(model), edge_gated(stack, keep):
            logits = model(
                input_ids=padded, attention_mask=mask, position_ids=positions
            ).logits
        results.append(logits[mask.bool()])
    allowed = 5e-5 if single else 1e-10
    torch.testing.assert_close(results[0], results[1], atol=allowed, rtol=0)


def test_the_model_is_as_before_after_an_exception():
    model = double("gpt2")
    inputs = tiny_inputs(model)
    plain = model(**inputs).logits
    stack = EdgeStack(ResidualModel(model))
    with (
        pytest.raises(RuntimeError),
        edge_gated(stack, torch.ones(stack.model.graph.n_edges)),
    ):
        raise RuntimeError
    assert torch.equal(model(**inputs).logits, plain)
    assert all("forward" not in vars(module) for module in model.modules())


def test_gates_of_another_number_are_refused():
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model))
    n = stack.model.graph.n_edges
    with (
        pytest.raises(UserError, match=f"must hold {n} gates"),
        edge_gated(stack, torch.ones(n - 1)),
    ):
        pass


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(UserError, match="no residual graph for model type"):
        ResidualModel(tiny_model(MLP_TYPE))
