"""Edges as sites: gates, ablation values, frozen masks and their files."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.masks.edges.stack_cache import stack_of
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import architecture_of, check_sites, sites_of
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.models.tiny import (
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    exact_norms,
    heads_of,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

PRE_NORM = [kind for kind, parts in PARTS.items() if parts.norms_on_stream is None]
"""In post-norm encoders statistics of norms are of live writers, ablated or not."""


def double(kind: str = "gpt2") -> Any:
    return tiny_model(kind, heads_of(kind)[0]).double().requires_grad_(False)


def logits(model: Any, inputs: dict[str, Tensor] | None = None) -> Tensor:
    inputs = inputs or tiny_inputs(model)
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def soft(sites: tuple[Site, ...], seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        site.name: torch.rand(site.n_units, generator=rng, dtype=torch.float64)
        for site in sites
    }


def other_inputs(model: Any) -> dict[str, Tensor]:
    inputs = tiny_inputs(model)
    return inputs | {"input_ids": (inputs["input_ids"] * 7 + 3) % 60}


@pytest.mark.parametrize("kind", PARTS)
def test_the_sites_are_the_graph_in_pieces(kind: str):
    model = double(kind)
    sites = sites_of(model, ["edges"])
    graph = ResidualModel(model).graph
    assert [site.layer for site in sites] == [0, 1, 2]
    assert sum(site.n_units for site in sites) == graph.n_edges
    assert sites[-1].n_units == graph.n_writers
    assert all(site.graph == graph for site in sites)
    assert [site.is_logits for site in sites] == [False, False, True]
    check_sites(model, sites)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("ablation", ["zero", "mean", "counterfactual"])
def test_gated_edges_are_one_stack_under_the_gates_in_a_row(
    merged: bool, ablation: str
):
    model = double()
    sites = sites_of(model, ["edges"], merged_qkv=merged)
    keep, inputs = soft(sites), tiny_inputs(model)
    where = inputs["attention_mask"].bool()
    values = {
        "zero": zero_values(sites),
        "mean": mean_values(model, sites, [(inputs, where)]),
        "counterfactual": record_values(model, sites, other_inputs(model)),
    }[ablation]
    rows = values.values[sites[-1].name]
    rows = {"zero": None, "mean": rows[:, None, None]}.get(ablation, rows)
    stack = EdgeStack(ResidualModel(model, separate_qkv=not merged))
    with edge_gated(stack, torch.cat(list(keep.values())), rows):
        expected = logits(model)
    with gated(model, sites, keep, values):
        gated_logits = logits(model)
    torch.testing.assert_close(gated_logits, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_under_autocast_the_blocks_keep_the_precision_of_their_weights(kind: str):
    model = double(kind).float()
    sites = sites_of(model, ["edges"])
    results = []
    for enabled in (False, True):
        keep = {name: g.float().requires_grad_() for name, g in soft(sites).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = record_values(model, sites, other_inputs(model))
            with gated(model, sites, keep, values):
                last = model(**tiny_inputs(model)).logits.float()
        (gradient,) = torch.autograd.grad(last.sum(), keep[sites[0].name])
        results.append((values.values[sites[-1].name], gradient))
    assert torch.equal(results[0][0], results[1][0])
    # the head itself, and so the gradient that it hands on, is in bfloat16
    torch.testing.assert_close(results[0][1], results[1][1], atol=0.5, rtol=0.05)


def test_edges_of_layers_without_a_site_stay_open():
    model = double()
    sites, all_sites = sites_of(model, ["edges"], [1]), sites_of(model, ["edges"])
    keep = soft(sites)
    keep_all = {site.name: torch.ones(site.n_units).double() for site in all_sites}
    values = record_values(model, all_sites, other_inputs(model))
    with gated(model, all_sites, keep_all | keep, values):
        expected = logits(model)
    layer_values = record_values(model, sites, other_inputs(model))
    assert layer_values.values.keys() == keep.keys()
    with gated(model, sites, keep, layer_values):
        torch.testing.assert_close(logits(model), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "bert"])
@pytest.mark.parametrize("unit", ["heads", "neurons"])
def test_a_closed_unit_beside_open_edges_is_that_unit_closed_alone(
    kind: str, unit: str
):
    model = double(kind)
    sites = sites_of(model, [unit])
    both = sites_of(model, [unit, "edges"])
    keep = soft(sites)
    opened = {s.name: torch.ones(s.n_units).double() for s in both}
    with exact_norms(model), gated(model, sites, keep, zero_values(sites)):
        expected = logits(model)
    with exact_norms(model), gated(model, both, opened | keep, zero_values(both)):
        torch.testing.assert_close(logits(model), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("edges_open", [False, True])
def test_gradients_of_units_beside_edges_are_those_of_finite_differences(
    kind: str, edges_open: bool
):
    model = double(kind)
    sites = sites_of(model, ["neurons", "heads", "edges"])
    values = record_values(model, sites, other_inputs(model))
    gates = soft(sites)
    if edges_open:
        open_ones = [site.name for site in sites if site.kind == "edges"]
        gates |= {name: torch.ones_like(gates[name]) for name in open_ones}
    gates = {name: gate.requires_grad_() for name, gate in gates.items()}

    def loss(keep: dict[str, Tensor]) -> Tensor:
        with exact_norms(model), gated(model, sites, keep, values):
            return logits(model).sin().sum()

    gradients = torch.autograd.grad(loss(gates), list(gates.values()))
    for (name, gate), gradient in zip(gates.items(), gradients, strict=True):
        direction = torch.zeros_like(gate).detach()
        direction[[0, 1, -1]] = torch.tensor([1.0, -0.5, 2.0], dtype=gate.dtype)
        with torch.no_grad():
            up, down = (
                loss(gates | {name: gate + step * direction}) for step in (1e-5, -1e-5)
            )
        slope = float((up - down) / 2e-5)
        assert float(gradient @ direction) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("per_position", [False, True])
def test_means_are_those_of_hooks_on_the_plain_model(kind: str, per_position: bool):
    model = double(kind)
    sites = sites_of(model, ["edges"])
    batches = [tiny_inputs(model), other_inputs(model)]
    where = tiny_inputs(model)["attention_mask"].bool()
    written = [_by_hand(model, inputs) for inputs in batches]  # (writer, b, s, d)
    marked = torch.cat([where, where])
    rows = torch.cat(written, 1)
    if per_position:
        weights = marked.double()[..., None]
        expected = (rows * weights).sum(1) / weights.sum(0)
    else:
        expected = rows[:, marked].mean(1)
    means = mean_values(
        model, sites, [(inputs, where) for inputs in batches], per_position
    )
    sizes = [len(means.values[site.name]) for site in sites]
    assert sizes == [5, 10, 11]
    for site in sites:
        value = means.values[site.name]
        torch.testing.assert_close(value, expected[: len(value)], atol=1e-5, rtol=0)
    keep = {site.name: torch.zeros(site.n_units).bool() for site in sites}
    with gated(model, sites, keep, means):
        assert torch.isfinite(logits(model)).all()


def _by_hand(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What each writer adds to the stream: embedding, then heads and MLP by layer."""
    recorded: dict[str, Tensor] = {}
    base = model.base_model
    architecture = architecture_of(model)
    blocks = [base.get_submodule(architecture.block.format(i)) for i in range(N_LAYERS)]
    handles = [
        blocks[0].register_forward_pre_hook(lambda _, a: recorded.update(input=a[0]))
    ]
    for layer, block in enumerate(blocks):
        projection = base.get_submodule((architecture.heads or "").format(layer))
        handles += [
            projection.register_forward_pre_hook(
                lambda _, a, key=f"a{layer}": recorded.update({key: a[0]})
            ),
            block.mlp.register_forward_hook(
                lambda _, __, out, key=f"m{layer}": recorded.update({key: out})
            ),
        ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    rows = [recorded["input"]]
    for layer in range(N_LAYERS):
        module = base.get_submodule((architecture.heads or "").format(layer))
        weight = module.weight if isinstance(module, Conv1D) else module.weight.T
        by_head = recorded[f"a{layer}"].split(weight.shape[0] // N_HEADS, -1)
        for part, columns in zip(by_head, weight.chunk(N_HEADS), strict=True):
            rows.append(part @ columns)
        rows.append(recorded[f"m{layer}"])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", PRE_NORM)
def test_what_the_writers_write_adds_up_to_what_the_final_norm_reads(kind: str):
    model = double(kind)
    sites = sites_of(model, ["edges"])
    final_inputs: list[Tensor] = []
    final = model.get_submodule(sites[-1].module)
    handle = final.register_forward_pre_hook(
        lambda _, args: final_inputs.append(args[0])
    )
    with exact_norms(model):
        written = record_values(model, sites, tiny_inputs(model)).values
    handle.remove()
    residual = ResidualModel(model)
    total = written[sites[-1].name].sum(0)
    for layer in range(N_LAYERS):
        bias = residual.output(layer).bias
        total = total if bias is None else total + bias
    torch.testing.assert_close(total, final_inputs[0], atol=1e-10, rtol=0)
    for site in sites:
        assert torch.equal(
            written[site.name], written[sites[-1].name][: len(written[site.name])]
        )


@pytest.mark.parametrize("kind", PRE_NORM)
def test_all_edges_cut_with_counterfactual_values_is_the_other_run(kind: str):
    model = double(kind)
    sites = sites_of(model, ["edges"])
    nothing = AblationValues("counterfactual", {})
    keep = {site.name: torch.zeros(site.n_units).bool() for site in sites}
    mask = FrozenMask(keep, sites, nothing)
    other = other_inputs(model)
    with mask.applied(model, ablated=record_values(model, sites, other)):
        ablated = logits(model)
    torch.testing.assert_close(ablated, logits(model, other), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="record them on the paired inputs"):
        mask.applied(model).__enter__()


@pytest.mark.parametrize("kind", PARTS)
def test_a_mask_that_keeps_every_edge_changes_nothing(kind: str):
    model = double(kind)
    sites = sites_of(model, ["edges"])
    mask = FrozenMask.random(sites, zero_values(sites), n_ablated=0, seed=0)
    plain = logits(model)
    with mask.applied(model):
        assert torch.equal(logits(model), plain)
    mask = FrozenMask.random(sites, zero_values(sites), n_ablated=9, seed=0)
    with mask.applied(model):
        assert not torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("kept_share", [0.1, 0.9])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_finished_mask_beside_heads_is_its_gates_at_zero_and_one(
    kind: str, kept_share: float
):
    model = double(kind)
    sites = sites_of(model, ["heads", "edges"])
    values = record_values(model, sites, other_inputs(model))
    gates = soft(sites)
    keep = {name: gate < kept_share for name, gate in gates.items()}
    with gated(model, sites, {n: k.double() for n, k in keep.items()}, values):
        expected = logits(model)
    mask = FrozenMask(keep, sites, values)
    with torch.no_grad(), mask.applied(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-10, rtol=0)


def test_the_weights_are_folded_once_and_anew_after_they_changed():
    model = double()
    graph = ResidualModel(model).graph
    first = stack_of(model, graph)
    assert stack_of(model, graph).layers is first.layers
    merged = ResidualModel(model, separate_qkv=False).graph
    assert stack_of(model, merged).layers is not first.layers
    model.transformer.h[1].attn.c_attn.weight.mul_(1.5)
    refolded = stack_of(model, graph)
    assert refolded.layers is not first.layers
    sites = sites_of(model, ["edges"])
    keep = {site.name: torch.ones(site.n_units).double() for site in sites}
    with gated(model, sites, keep, zero_values(sites)):
        gated_logits = logits(model)
    torch.testing.assert_close(gated_logits, logits(model), atol=1e-10, rtol=0)


def test_what_is_folded_goes_with_its_model():
    model = double()
    stack_of(model, ResidualModel(model).graph)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_edges_are_named_as_kept_or_as_ablated():
    model = double()
    sites = sites_of(model, ["edges"], [0, 2])
    keep = {site.name: torch.ones(site.n_units).bool() for site in sites}
    keep[sites[0].name][[0, 4, -1]] = False
    keep[sites[1].name][1:] = False
    mask = FrozenMask(keep, sites, zero_values(sites))
    ablated = mask.edges(kept=False)
    assert ablated[:4] == [
        "input->a0.h0<q>",
        "input->a0.h0<k>",
        "a0.h3->m0",
        "a0.h0->logits",
    ]
    assert len(ablated) == mask.n_ablated
    assert mask.edges(kept=True)[-1] == "input->logits"
    assert len(mask.edges(kept=True)) == mask.n_units - mask.n_ablated
    control = mask.random_like(1)
    assert control.n_ablated_at == mask.n_ablated_at
    assert 0 < mask.overlap(control) < 1


@pytest.mark.parametrize("merged", [False, True])
def test_files_hold_the_graph_and_the_values(merged: bool, tmp_path: Path):
    model, inputs = double(), tiny_inputs(double())
    sites = sites_of(model, ["neurons", "edges"], merged_qkv=merged)
    values = mean_values(model, sites, [(inputs, inputs["attention_mask"].bool())])
    mask = FrozenMask.random(sites, values, n_ablated=30, seed=1)
    mask.save(tmp_path)
    loaded = FrozenMask.load(tmp_path, model)
    assert loaded.sites == sites
    with mask.applied(model):
        expected = logits(model)
    with loaded.applied(model):
        assert torch.equal(logits(model), expected)
    other = tiny_model("llama", "causal_lm")
    with pytest.raises(
        UserError, match=r"site transformer\.h\.0.* is not in the model"
    ):
        FrozenMask.load(tmp_path, other)


def test_a_mask_of_another_graph_is_refused_with_the_difference(tmp_path: Path):
    model = double()
    sites = sites_of(model, ["edges"])
    merged = sites_of(model, ["edges"], merged_qkv=True)
    difference = "separate queries, keys and values True against False"
    masks = [
        FrozenMask.random(s, zero_values(s), n_ablated=3, seed=0)
        for s in (sites, merged)
    ]
    with pytest.raises(UserError, match=difference):
        masks[0].overlap(masks[1])
    mixed = (sites[0], *merged[1:])
    with (
        pytest.raises(UserError, match=difference),
        gated(model, mixed, soft(mixed), zero_values(mixed)),
    ):
        pass
    shape = {"n_embd": 32, "n_layer": model.config.n_layer, "n_head": 8}
    wider = GPT2LMHeadModel(GPT2Config(vocab_size=len(model.lm_head.weight), **shape))
    of_wider = sites_of(wider, ["edges"])
    saved = FrozenMask.random(of_wider, zero_values(of_wider), n_ablated=3, seed=0)
    saved.save(tmp_path)
    with pytest.raises(UserError, match="another residual graph: heads 8 against 4"):
        FrozenMask.load(tmp_path, model)
    with (
        pytest.raises(UserError, match="heads 8 against 4"),
        FrozenMask.load(tmp_path).applied(model),
    ):
        pass


@pytest.mark.parametrize("other", ["hidden", "weights"])
def test_kinds_that_replace_what_edges_carry_are_refused(other: str):
    with pytest.raises(UserError, match=f"got edges and {other}; train one mask"):
        sites_of(double(), ["edges", other])


def test_models_without_a_residual_graph_are_refused():
    with pytest.raises(
        UserError, match="no residual graph for model type 'circuitcut_mlp'"
    ):
        sites_of(tiny_model(MLP_TYPE), ["edges"])
    with pytest.raises(UserError, match="cannot merge queries, keys and values"):
        sites_of(double("olmo2"), ["edges"], merged_qkv=True)
    with pytest.raises(UserError, match="merged_qkv is about edges"):
        sites_of(double(), ["heads"], merged_qkv=True)


@pytest.mark.parametrize(
    ("kind", "of", "message"),
    [
        ("modernbert", {}, "first block has no norm before attention"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before false"),
        ("opt", {"_remove_final_layer_norm": True}, "no norm after the last block"),
        ("opt", {"layer_norm_elementwise_affine": False}, "norms have no gains"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "each block replaces the stream by its norm",
        ),
        (
            "bloom",
            {"slow_but_exact": True, "pretraining_tp": 2},
            "projections in slices",
        ),
        ("olmo", {"clip_qkv": 8.0}, "clips queries, keys and values in place"),
    ],
)
def test_a_family_whose_graph_would_not_be_exact_is_refused(
    kind: str, of: dict[str, Any], message: str
):
    config = tiny_config(kind)
    for name, value in of.items():
        setattr(config, name, value)
    model = AutoModel.from_config(config)
    with pytest.raises(UserError, match=message) as raised:
        sites_of(model, ["edges"])
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("cut other units than edges")
    if "slow_but_exact" not in of:  # other units of the same model have sites
        check_sites(model, sites_of(model, ["neurons", "heads", "hidden"]))


def test_weights_cannot_hold_a_cut_of_edges():
    model = double()
    sites = sites_of(model, ["edges"])
    mask = FrozenMask.random(sites, zero_values(sites), n_ablated=3, seed=0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="mask on edges cannot be baked"):
        mask.bake_(model)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_masks_on_edges_do_not_nest():
    model = double()
    sites = sites_of(model, ["edges"])
    mask = FrozenMask.random(sites, zero_values(sites), n_ablated=3, seed=0)
    with (
        mask.applied(model),
        pytest.raises(UserError, match="masks on edges do not nest"),
        mask.applied(model),
    ):
        pass
    assert all("forward" not in vars(module) for module in model.modules())


def test_values_that_do_not_fit_the_batch_are_refused():
    model = double()
    sites = sites_of(model, ["edges"])
    short = record_values(
        model, sites, {k: v[:, :3] for k, v in tiny_inputs(model).items()}
    )
    with (
        gated(model, sites, soft(sites), short),
        pytest.raises(UserError, match="2 inputs of 3 tokens, the batch has 2 of 6"),
    ):
        logits(model)
    few = {name: torch.zeros(3, D_MODEL).double() for name in short.values}
    with (
        pytest.raises(UserError, match=r"must be of 11 writers, got .*\(3, 32\)"),
        gated(model, sites, soft(sites), AblationValues("mean", few)),
    ):
        pass
