"""Tiny models with value biases in the output bias, as TransformerLens loads them."""

from typing import Any

import torch
from torch import nn

from tests.models.tiny import D_MODEL, N_HEADS, tiny_model

D_HEAD = D_MODEL // N_HEADS


def double(kind: str) -> Any:
    head = None if kind in ("bert", "distilbert") else "causal_lm"
    return tiny_model(kind, head).double().requires_grad_(False)


def attentions(model: Any, kind: str) -> list[tuple[Any, Any, Any, Any]]:
    """Norm before, value projection (module, rows of all value heads), output."""
    found = []
    rows: Any
    if kind == "gpt2":
        rows = torch.arange(2 * D_MODEL, 3 * D_MODEL)
        for block in model.transformer.h:
            found.append((block.ln_1, block.attn.c_attn, rows, block.attn.c_proj))
    elif kind == "gpt_neox":  # head by head: q, k, v
        rows = torch.arange(3 * D_MODEL).view(N_HEADS, 3, D_HEAD)[:, 2].reshape(-1)
        for block in model.gpt_neox.layers:
            merged = block.attention.query_key_value
            found.append((block.input_layernorm, merged, rows, block.attention.dense))
    elif kind == "qwen2":
        for block in model.model.layers:
            value, output = block.self_attn.v_proj, block.self_attn.o_proj
            found.append((None, value, torch.arange(len(value.weight)), output))
    elif kind == "bert":
        for block in model.encoder.layer:
            value, output = block.attention.self.value, block.attention.output.dense
            found.append((None, value, torch.arange(D_MODEL), output))
    else:
        for block in model.transformer.layer:
            value, output = block.attention.v_lin, block.attention.out_lin
            found.append((None, value, torch.arange(D_MODEL), output))
    return found


def rewritten(kind: str, option: str) -> Any:
    """The model with b_V W_O in the output bias, as TransformerLens loads it."""
    model = double(kind)
    for norm, value, rows, output in attentions(model, kind):
        is_conv = kind == "gpt2"
        constant = value.bias[rows].clone()  # (value heads * d_head,)
        value.bias[rows] = 0.0
        if option == "output_with_norm" and norm is not None:
            weight = value.weight.T if is_conv else value.weight
            of_norm = weight[rows] @ norm.bias
            constant = constant + of_norm
            value.bias[rows] = -of_norm
        by_head = constant.view(-1, D_HEAD)
        by_head = by_head.repeat_interleave(N_HEADS // len(by_head), 0)
        weight = output.weight if is_conv else output.weight.T
        moved = by_head.reshape(-1) @ weight
        bias = torch.zeros_like(moved) if output.bias is None else output.bias
        output.bias = nn.Parameter(bias + moved, requires_grad=False)
    return model
