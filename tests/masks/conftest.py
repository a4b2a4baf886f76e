"""Tiny random models of several families, in float64 and evaluation mode."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from circuitcut.models.mlp import Mlp
from tests.models.tiny import heads_of, tiny_model

VOCABULARY, LENGTH, BATCH = 40, 6, 3
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
_SIZES = {
    **_COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**_COMMON, **sizes))


def _distilbert() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, hidden_dim=24, n_layers=2, n_heads=4
    )
    return DistilBertModel(config)


def _wide_heads() -> nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=8))


OWN_BLOCKS = ["gpt_neo", "gptj", "opt", "bloom", "olmo", "xlm-roberta-xl", "modernbert"]
"""Families whose blocks are like those of none of the others."""

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_GROUPED, head_dim=4)),
    "qwen3": _wide_heads,
    "bert": lambda: BertForTokenClassification(BertConfig(**_SIZES, num_labels=5)),
    "distilbert": _distilbert,
    "mlp": lambda: Mlp(12, 10, 4),
    **{kind: partial(tiny_model, kind, heads_of(kind)[0]) for kind in OWN_BLOCKS},
}


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], nn.Module]:
    """A fresh model of a family by name, the same weights each time."""

    made: dict[str, nn.Module] = {}

    def make(family: str) -> nn.Module:
        if family not in made:
            made[family] = build(family)
        return deepcopy(made[family])

    def build(family: str) -> nn.Module:
        torch.manual_seed(0)
        model = FAMILIES[family]().double().eval().requires_grad_(False)
        # Biases and gains start at 0 and 1, which would hide mistakes in them.
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "lm_head" not in name and "embed" not in name:
                parameter.mul_(3.0)
        return model

    return make


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs of a family; the last sequence is shorter unless it has no sequences."""

    def make(family: str, seed: int = 0) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        if family == "mlp":
            return {"pixels": torch.randn(BATCH, 12, generator=rng).double()}
        ids = torch.randint(2, VOCABULARY, (BATCH, LENGTH), generator=rng)
        attended = torch.ones_like(ids)
        attended[-1, LENGTH - 2 :] = 0
        return {"input_ids": ids, "attention_mask": attended}

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    """Logits, or the last hidden states of a model without a head."""

    def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        output = model(**inputs)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state

    return run
