"""Vectors read from a checkpoint are those that transformers' own modules compute with.

Everything in float64. The oracle is a forward pass of the whole model: what enters and
leaves each MLP there, and which norm it was that it read.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from circuitcut.weight_classes import mlp_weights
from circuitcut.weight_classes.checkpoint import checkpoint_of, open_checkpoint
from circuitcut.weight_classes.layouts import LAYOUTS, layout_named
from circuitcut.weight_classes.mlp_weights import (
    MlpWeights,
    mlp_blocks_of_layer,
    mlps_of_layer,
    n_units_at,
)
from tests.weight_classes.tiny import MOE, N_EXPERTS, saved_model

DENSE = [kind for kind in LAYOUTS if kind not in MOE]
WITHOUT_GAIN = {"olmo", "olmo2", "olmo3"} | {k for k in LAYOUTS if "bert" in k}
WITHOUT_GAIN = (WITHOUT_GAIN | {"electra"}) - {"modernbert"}
LAYER = 1


def activation(config: Any) -> Any:
    names = ("hidden_act", "hidden_activation", "activation_function", "activation")
    found = [getattr(config, name, None) for name in names]
    return ACT2FN[next(name for name in found if name)]


def output(weights: MlpWeights, x: Tensor, config: Any) -> Tensor:
    """What the neurons write, straight from the definition of a neuron."""
    act = activation(config)
    if weights.gate is None:
        return act(x @ weights.w_in.T) @ weights.w_out
    return (act(x @ weights.gate.T) * (x @ weights.w_in.T)) @ weights.w_out


def modules_of_mlp(model: Any, prefix: str, kind: str) -> tuple[Any, Any]:
    names = layout_named(kind).mlps[0]
    paths = [prefix + n.format(layer=LAYER) for n in (names.w_in, names.w_out)]
    first, last = (model.get_submodule(p.removesuffix(".weight")) for p in paths)
    return first, last


@torch.no_grad()
def passed(model: Any, first: nn.Module, last: nn.Module) -> dict[str, Any]:
    """Input and output of an MLP in a forward pass, and the norm that gave the input.

    Biases of the MLP and of norms are set to zero.
    """
    norms = [m for m in model.modules() if type(m).__name__.endswith("Norm")]
    for module in (first, last, *norms):
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
    seen: dict[str, Any] = {"norms": []}
    handles = [
        first.register_forward_pre_hook(lambda _, args: seen.update(x=args[0])),
        last.register_forward_hook(lambda _, __, out: seen.update(y=out)),
    ]
    for norm in norms:
        handles.append(
            norm.register_forward_hook(
                lambda module, _, out: seen["norms"].append((module, out))
            )
        )
    model(torch.arange(5, 17).view(2, 6))
    for handle in handles:
        handle.remove()
    x = seen["x"].reshape(-1, seen["x"].shape[-1])
    y = seen["y"].reshape(-1, seen["y"].shape[-1])
    read = [m for m, out in seen["norms"] if out.shape == seen["x"].shape]
    outs = [out for _, out in seen["norms"] if out.shape == seen["x"].shape]
    same = [m for m, out in zip(read, outs, strict=True) if torch.equal(out, seen["x"])]
    return {"x": x, "y": y, "norm": same[0] if same else None}


@pytest.mark.parametrize("kind", DENSE)
def test_raw_weights_compute_what_the_module_does_also_when_refactored(
    kind: str, tmp_path: Path
):
    model = saved_model(tmp_path, kind)
    checkpoint = open_checkpoint(str(tmp_path))
    (weights,) = mlps_of_layer(checkpoint, LAYER, "raw")
    found = passed(model, *modules_of_mlp(model, checkpoint.prefix, kind))
    for read in (weights, weights.refactored()):
        written = output(read, found["x"], model.config)
        assert (written - found["y"]).abs().max() < 1e-10
    changed = weights.refactored()
    if weights.gate is not None:
        assert changed.gate is not None
        assert ((changed.gate * changed.w_in).sum(1) >= 0).all()
        flipped = (changed.w_in != weights.w_in).any(1)
        assert 0 < flipped.sum() < weights.n_units  # some and not all
    assert n_units_at(checkpoint, LAYER) == weights.n_units
    (again,) = mlps_of_layer(checkpoint, LAYER, "raw")
    assert torch.equal(again.w_in, weights.w_in)  # nothing was changed in place


@pytest.mark.parametrize("kind", DENSE)
def test_folded_weights_read_the_normalised_state_without_its_gain(
    kind: str, tmp_path: Path
):
    model = saved_model(tmp_path, kind)
    checkpoint = open_checkpoint(str(tmp_path))
    (weights,) = mlps_of_layer(checkpoint, LAYER, "folded")
    found = passed(model, *modules_of_mlp(model, checkpoint.prefix, kind))
    x, y, layout = found["x"], found["y"], layout_named(kind)
    if kind not in WITHOUT_GAIN:
        gain = found["norm"].weight + (1.0 if kind.startswith("gemma") else 0.0)
        x = x / gain
    if layout.centred:
        assert x.mean(1).abs().max() < 1e-6  # the norm has subtracted the mean
        x = x - x.mean(1, keepdim=True)  # OLMo's computes in float32
        y = y - y.mean(1, keepdim=True)
        assert weights.w_in.mean(1).abs().max() < 1e-12
        assert weights.w_out.mean(1).abs().max() < 1e-12
    written = output(weights.refactored(), x, model.config)
    assert (written - y).abs().max() < (1e-6 if kind == "olmo" else 1e-10)


@pytest.mark.parametrize("kind", MOE)
def test_experts_follow_each_other_and_each_computes_what_transformers_does(
    kind: str, tmp_path: Path
):
    model = saved_model(tmp_path, kind)
    checkpoint = open_checkpoint(str(tmp_path))
    mlps = list(mlps_of_layer(checkpoint, 0, "raw"))
    assert len(mlps) == N_EXPERTS + (kind == "qwen2_moe")  # and a shared expert
    assert n_units_at(checkpoint, 0) == sum(mlp.n_units for mlp in mlps)
    block = model.model.layers[0].mlp
    x = torch.randn(7, 32, dtype=torch.float64, generator=torch.manual_seed(1))
    for number, weights in enumerate(mlps[:N_EXPERTS]):
        chosen = torch.full((7, 1), number)
        expected = block.experts(x, chosen, torch.ones(7, 1, dtype=torch.float64))
        written = output(weights.refactored(), x, model.config)
        assert (written - expected).abs().max() < 1e-10
    if kind == "qwen2_moe":
        expected = block.shared_expert(x)
        assert (output(mlps[-1], x, model.config) - expected).abs().max() < 1e-10
    folded = next(mlps_of_layer(checkpoint, 0, "folded"))
    gain = model.model.layers[0].post_attention_layernorm.weight
    assert torch.allclose(folded.w_in, mlps[0].w_in * gain)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2", "olmo", *MOE])
def test_blocks_of_neurons_are_the_mlp_to_the_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved_model(tmp_path, kind)
    checkpoint = open_checkpoint(str(tmp_path))
    whole = list(mlps_of_layer(checkpoint, 0))
    width = whole[0].w_in.shape[1]
    monkeypatch.setattr(mlp_weights, "BLOCK", 5 * width)
    for mlp, (n_units, blocks) in zip(
        whole, mlp_blocks_of_layer(checkpoint, 0), strict=True
    ):
        assert n_units == mlp.n_units
        start = 0
        for block in blocks:
            assert 2 <= block.n_units <= 5
            rows = slice(start, start + block.n_units)
            for name in ("gate", "w_in", "w_out"):
                expected, found = getattr(mlp, name), getattr(block, name)
                assert (expected is None) == (found is None)
                if found is not None:
                    assert torch.equal(found, expected[rows])
            start += block.n_units
        assert start == n_units
    monkeypatch.setattr(mlp_weights, "BLOCK", width)  # no block of a single neuron
    assert all(
        block.n_units in (2, 3)
        for _, blocks in mlp_blocks_of_layer(checkpoint, 0)
        for block in blocks
    )


def test_a_loaded_model_and_its_files_give_the_same_weights(tmp_path: Path):
    model = saved_model(tmp_path, "phi3")
    (of_files,) = mlps_of_layer(open_checkpoint(str(tmp_path)), 0)
    (of_model,) = mlps_of_layer(checkpoint_of(model, "phi3"), 0)
    assert torch.equal(of_files.w_in, of_model.w_in)
    assert torch.equal(of_files.w_out, of_model.w_out)
    assert n_units_at(checkpoint_of(model, "phi3"), 0) == of_files.n_units


def test_half_precision_is_read_as_float32(tmp_path: Path):
    model = saved_model(tmp_path, "llama", dtype=torch.bfloat16)
    (weights,) = mlps_of_layer(open_checkpoint(str(tmp_path)), 0, "raw")
    assert weights.w_in.dtype == torch.float32
    stored = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weights.w_in, stored.float())
