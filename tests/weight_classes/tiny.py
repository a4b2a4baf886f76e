"""Tiny random models of every family in the layout table, saved as checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from circuitcut.models.architectures import ARCHITECTURES
from circuitcut.weight_classes.layouts import LAYOUTS
from tests.models.tiny import D_MLP, D_MODEL, N_HEADS, tiny_config

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert")
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
N_EXPERTS = 3
_OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": N_EXPERTS},
    "qwen2_moe": {
        "num_experts": N_EXPERTS,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_moe": {
        "num_experts": N_EXPERTS,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "mlp_only_layers": [1],
    },
    "olmoe": {"num_experts": N_EXPERTS},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
}


def saved_model(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **of: Any,
) -> Any:
    """A random model with every parameter set, in evaluation mode and in `folder`."""
    config = _config(kind, **of)
    auto = AutoModel if kind in ENCODERS else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, experts_implementation="eager").to(dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


def _config(kind: str, **of: Any) -> Any:
    assert kind in LAYOUTS
    if kind in ARCHITECTURES and not of:
        return tiny_config(kind)
    own = {
        "hidden_size": D_MODEL,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": D_MLP,
        "vocab_size": 64,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return AutoConfig.for_model(kind, **(own | _OWN.get(kind, {}) | of))
