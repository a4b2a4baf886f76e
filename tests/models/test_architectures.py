"""The adapter table: every architecture's sites are where and what the table says."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.models.architectures import (
    ARCHITECTURES,
    architecture_of,
    check_sites,
    d_head,
    n_layers,
    sites_of,
)
from circuitcut.models.mlp import MLP_TYPE, Mlp
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.models.tiny import (
    D_MLP,
    D_MODEL,
    DECODERS,
    GROUPED,
    LABELS,
    N_HEADS,
    N_LAYERS,
    TEXT_TYPES,
    heads_of,
    tiny_inputs,
    tiny_model,
)

WITH_HEADS = [(kind, head) for kind in ARCHITECTURES for head in heads_of(kind)]
ALL = WITH_HEADS + [(kind, None) for kind in TEXT_TYPES]
PROJECTED = [(k, u) for k in TEXT_TYPES for u in ("neurons", "heads")]
FINAL_NORMS = {
    "gpt2": "ln_f",
    "gpt_neo": "ln_f",
    "gptj": "ln_f",
    "bloom": "ln_f",
    "gpt_neox": "final_layer_norm",
    "opt": "decoder.final_layer_norm",
    "xlm-roberta-xl": "encoder.LayerNorm",
    "modernbert": "final_norm",
}
PRE_NORM = {*DECODERS, "xlm-roberta-xl", "modernbert"}
WIDE_HEADS = ("mistral", "qwen3", "gemma", "gemma2", "gemma3_text")


def kinds_of(kind: str) -> list[str]:
    return [unit for unit in MODULE_KINDS if unit != "heads" or kind != MLP_TYPE]


def first_output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    outputs = model(**inputs)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def recorded(model: Any, sites: tuple[Site, ...], inputs: dict) -> dict[str, Tensor]:
    """The gated tensor of every site in one forward pass, and the model's output."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for site in sites:
            module = model.get_submodule(site.module)
            if site.kind == "hidden":
                handle = module.register_forward_hook(
                    lambda m, a, out, site=site: seen.update(
                        {site.name: out[0] if isinstance(out, tuple) else out}
                    )
                )
            else:
                handle = module.register_forward_pre_hook(
                    lambda m, args, site=site: seen.update({site.name: args[0]})
                )
            stack.callback(handle.remove)
        seen["output"] = first_output(model, inputs)
    return seen


def zero_weight_behind_(module: nn.Module, columns: slice) -> None:
    with torch.no_grad():
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        weight[:, columns] = 0.0


@pytest.mark.parametrize(("kind", "head"), ALL)
def test_every_declared_width_is_the_measured_one(kind: str, head: str | None):
    model = tiny_model(kind, head)
    sites = sites_of(model, kinds_of(kind))
    check_sites(model, sites)
    measured = recorded(
        model, tuple(s for s in sites if s.kind != "weights"), tiny_inputs(model)
    )
    for site in sites:
        if site.kind == "weights":
            assert model.get_submodule(site.module).weight.numel() == site.n_units
        else:
            assert (
                measured[site.name].shape[-1]
                == site.width
                == site.n_units * (site.unit_size)
            )
    assert len({site.name for site in sites}) == len(sites)


@pytest.mark.parametrize(("kind", "unit"), [*PROJECTED, (MLP_TYPE, "neurons")])
def test_zeroing_one_unit_at_a_site_is_zeroing_the_weight_behind_it(
    kind: str, unit: str
):
    model = tiny_model(kind, heads_of(kind)[0]).double()
    inputs = tiny_inputs(model)
    if "pixels" in inputs:
        inputs["pixels"] = inputs["pixels"].double()
    plain = first_output(model, inputs)
    for site in sites_of(model, [unit]):
        columns = slice(site.unit_size, 2 * site.unit_size)
        module = model.get_submodule(site.module)

        def close(module: nn.Module, args: tuple, columns: slice = columns) -> tuple:
            closed = args[0].clone()
            closed[..., columns] = 0.0
            return (closed, *args[1:])

        handle = module.register_forward_pre_hook(close)
        gated = first_output(model, inputs)
        handle.remove()
        kept = module.weight.detach().clone()
        zero_weight_behind_(module, columns)
        zeroed = first_output(model, inputs)
        with torch.no_grad():
            module.weight.copy_(kept)
        torch.testing.assert_close(gated, zeroed, rtol=0, atol=1e-10)
        assert not torch.allclose(gated, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_hidden_sites_give_the_hidden_states_that_transformers_reports(kind: str):
    model = tiny_model(kind, heads_of(kind)[-1])
    inputs = tiny_inputs(model)
    sites = sites_of(model, ["hidden"])
    first = 0 if kind == "opt" else -1  # no module has its sum of embeddings
    assert [site.layer for site in sites] == [*range(first, N_LAYERS)]
    seen = recorded(model, sites, inputs)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states
        for site, states in zip(sites, expected[1 + first :], strict=True):
            stream = seen[site.name]
            if kind in PRE_NORM and site.layer == N_LAYERS - 1:
                norm = FINAL_NORMS.get(kind, "norm")
                stream = model.base_model.get_submodule(norm)(stream)
                if kind == "opt":
                    stream = model.base_model.decoder.project_out(stream)
            torch.testing.assert_close(stream, states, rtol=0, atol=0)


@pytest.mark.parametrize("kind", GROUPED)
def test_query_heads_that_share_a_value_head_agree_where_they_see_one_token(kind: str):
    """The first token attends to itself alone: each query head returns its value head,
    and two neighbouring query heads share one."""
    model = tiny_model(kind, "causal_lm")
    sites = sites_of(model, ["heads"])
    seen = recorded(model, sites, tiny_inputs(model))
    for site in sites:
        assert site.n_units == N_HEADS
        heads = seen[site.name][:, 0].unflatten(-1, (N_HEADS, site.unit_size))
        torch.testing.assert_close(heads[:, 0], heads[:, 1], rtol=0, atol=0)
        torch.testing.assert_close(heads[:, 2], heads[:, 3], rtol=0, atol=0)
        assert not torch.allclose(heads[:, 1], heads[:, 2])


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_sizes_are_those_of_the_configuration(kind: str):
    model = tiny_model(kind)
    head_width = d_head(model.config)
    assert head_width == (16 if kind in WIDE_HEADS else 8)
    d_mlp = 4 * D_MODEL if kind == "bloom" else D_MLP
    for site in sites_of(model, ["neurons", "heads", "hidden"]):
        expected = {
            "neurons": (d_mlp, 1),
            "heads": (N_HEADS, head_width),
            "hidden": (D_MODEL, 1),
        }[site.kind]
        assert (site.n_units, site.unit_size) == expected
    assert n_layers(model) == N_LAYERS


@pytest.mark.parametrize(("kind", "head"), WITH_HEADS)
def test_weight_sites_are_all_matrices_of_the_blocks_and_nothing_else(
    kind: str, head: str
):
    model = tiny_model(kind, head)
    sites = sites_of(model, ["weights"])
    matrices = {
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and any(part.isdigit() for part in name.split("."))
    }
    assert {site.module for site in sites} == matrices


def test_the_published_mlp_has_39200_weights_and_50_neurons():
    sites = sites_of(Mlp(784, 50, 5), ["weights", "neurons", "hidden"])
    assert [(site.kind, site.n_units) for site in sites] == [
        ("neurons", 50),
        ("hidden", 50),
        ("weights", 39_200),
    ]
    assert sites[2].module == "blocks.0.linear"


def test_the_mlp_is_its_formula():
    model = tiny_model(MLP_TYPE)
    pixels = tiny_inputs(model)["pixels"]
    first, second = model.blocks[0].linear, model.output
    hidden = (pixels @ first.weight.T + first.bias).clamp(min=0)
    expected = hidden @ second.weight.T + second.bias
    torch.testing.assert_close(model(pixels=pixels).logits, expected)
    assert model.config.labels == tuple(LABELS)


def test_layers_and_kinds_restrict_the_sites_and_their_order_is_canonical():
    model = tiny_model("gpt2", "causal_lm")
    names = [s.name for s in sites_of(model, ["hidden", "neurons"], [1, -1, 1])]
    assert names == [
        "transformer.h.1.mlp.c_proj:neurons",
        "transformer.drop:hidden",
        "transformer.h.1:hidden",
    ]
    assert sites_of(model, ["heads", "neurons"]) == sites_of(model, MODULE_KINDS[:2])


def test_checking_sites_leaves_no_hook_and_no_mode_behind():
    model = tiny_model("bert", "token_classification").train()
    sites = sites_of(model, MODULE_KINDS)
    with pytest.raises(UserError):
        check_sites(model, [replace(sites[0], n_units=1)])
    check_sites(model, sites)
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("units", "layers", "message"),
    [
        (
            ["edgs"],
            None,
            r"argument units must name some of neurons, .* got \['edgs'\]",
        ),
        ([], None, "argument units must name"),
        (["neurons"], [2], r"layers 0 to 1 .* got \[2\]"),
        (["neurons"], [-1], r"layers 0 to 1 .* got \[-1\]"),
        (["hidden"], [-2, 0], r"layers -1 to 1 .* got \[-2\]"),
        (["hidden"], [], "argument layers must name"),
        (["heads", "hidden"], [-1], r"no heads in layers \[-1\]"),
    ],
)
def test_wrong_units_and_layers_are_refused(units: list, layers: list, message: str):
    with pytest.raises(UserError, match=message):
        sites_of(tiny_model("bert"), units, layers)


def test_an_mlp_has_no_heads():
    with pytest.raises(UserError, match="circuitcut_mlp has no heads"):
        sites_of(tiny_model(MLP_TYPE), ["heads"])


def test_a_model_outside_the_table_is_refused_with_the_list():
    with pytest.raises(UserError, match=r"'Linear'; use one of bert, .*xlm-roberta"):
        architecture_of(nn.Linear(2, 2))


def test_a_missing_module_is_named():
    model = tiny_model("gpt2", "causal_lm")
    sites = sites_of(model, ["neurons"])
    model.transformer.h[1].mlp.out = model.transformer.h[1].mlp.c_proj
    del model.transformer.h[1].mlp.c_proj
    with pytest.raises(UserError, match=r"no module transformer\.h\.1\.mlp\.c_proj"):
        check_sites(model, sites)


def test_a_wrong_width_and_a_module_that_never_runs_are_named():
    model = tiny_model("gpt2", "causal_lm")
    site = sites_of(model, ["neurons"])[0]
    model.idle = nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"c_proj:neurons declared 5, measured 48"):
        check_sites(model, [replace(site, n_units=5)])
    with pytest.raises(UserError, match="idle:neurons declared 3, measured nothing"):
        check_sites(model, [Site("neurons", "idle", 0, 3)])
    attention = Site("hidden", "transformer.h.0.attn", 0, 31)  # it returns a tuple
    with pytest.raises(UserError, match="declared 31, measured 32"):
        check_sites(model, [attention])
