"""Tiny random models of every architecture in the table, made from configurations.

Grouped queries where the family has them, head widths and embedding widths that are not
the quotient one would guess, and every parameter non-zero, biases included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)

from circuitcut.models.architectures import ARCHITECTURES
from circuitcut.models.loaded import LoadedModel, config_hash_of, special_ids_of
from circuitcut.models.mlp import MLP_TYPE, Mlp
from circuitcut.models.token_head import TokenClassifier
from circuitcut.models.tokenizer_training import train_tokenizer

N_LAYERS, D_MODEL, N_HEADS, D_MLP, VOCAB = 2, 32, 4, 48, 64
LABELS = ["O", "LOC", "PER"]
TEXT_TYPES = [kind for kind in ARCHITECTURES if kind != MLP_TYPE]
DECODERS = [kind for kind in TEXT_TYPES if ARCHITECTURES[kind].is_decoder]
ENCODERS = [kind for kind in TEXT_TYPES if not ARCHITECTURES[kind].is_decoder]
UNGROUPED = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom")
GROUPED = [k for k in DECODERS if k not in UNGROUPED]

_GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": D_MLP},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 3},
    "gptj": {"n_inner": D_MLP, "rotary_dim": 4},
    "opt": {
        "ffn_dim": D_MLP,
        "word_embed_proj_dim": 24,
        "activation_function": "gelu",  # ReLU is zero at all tokens of some neurons
    },
    "llama": _GROUPED,
    "mistral": _GROUPED | {"head_dim": 16},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 16},
    "gemma": _GROUPED | {"head_dim": 16},
    "gemma2": _GROUPED | {"head_dim": 16},
    "gemma3_text": _GROUPED
    | {
        "head_dim": 16,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "phi3": _GROUPED,
    "distilbert": {"hidden_dim": D_MLP},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
}


def tiny_config(kind: str) -> Any:
    """Configuration of a two-layer model of the family `kind`."""
    return AutoConfig.for_model(
        kind,
        hidden_size=D_MODEL,
        num_attention_heads=N_HEADS,
        num_hidden_layers=N_LAYERS,
        intermediate_size=D_MLP,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        **_OWN_SIZES.get(kind, {}),
    )


def tiny_model(kind: str, head: str | None = None, *, seed: int = 0) -> Any:
    """A random model in evaluation mode; `head` None gives the base model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _untrained(kind, head)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _untrained(kind: str, head: str | None) -> nn.Module:
    if kind == MLP_TYPE:
        return Mlp(12, 7, 3, labels=LABELS)
    config = tiny_config(kind)
    if head is None:
        return AutoModel.from_config(config)
    if head == "causal_lm":
        return AutoModelForCausalLM.from_config(config)
    if head == "masked_lm":
        return AutoModelForMaskedLM.from_config(config)
    if type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return AutoModelForTokenClassification.from_config(config)
    return TokenClassifier(AutoModel.from_config(config))


def tiny_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Two real inputs, the second of them padded where the model reads text."""
    rng = torch.Generator().manual_seed(1)
    if isinstance(model, Mlp):
        return {"pixels": torch.rand(2, model.config.n_in, generator=rng)}
    ids = torch.randint(5, VOCAB, (2, 6), generator=rng)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def heads_of(kind: str) -> list[str]:
    """The task heads that models of this family can have."""
    if kind == MLP_TYPE:
        return ["image_classification"]
    language = "causal_lm" if ARCHITECTURES[kind].is_decoder else "masked_lm"
    return [language, "token_classification"]


def tiny_loaded(kind: str, head: str) -> LoadedModel:
    """A random model with a tokenizer of its own, as `load_model` would give it."""
    model = tiny_model(kind, head)
    is_decoder = ARCHITECTURES[kind].is_decoder
    tokenizer = None
    if kind != MLP_TYPE:
        tokenizer = train_tokenizer(
            ["Mary went to Paris and John to Rome, said Ann."],
            "word",
            is_decoder=is_decoder,
            vocab_size=VOCAB,
            max_length=32,
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=kind,
        revision=None,
        config_hash=config_hash_of(model.config),
        head_is_new=False,
        is_decoder=is_decoder,
        special_ids=special_ids_of(tokenizer, head, is_decoder=is_decoder),
    )


@contextmanager
def exact_norms(model: nn.Module) -> Iterator[None]:
    """RMS norms (and OLMo's) in the model's own precision, which transformers computes
    in float32."""
    norms: list[Any] = [
        module
        for module in model.modules()
        if type(module).__name__.endswith(("RMSNorm", "OlmoLayerNorm"))
    ]
    for norm in norms:
        if type(norm).__name__ == "OlmoLayerNorm":
            vars(norm)["forward"] = partial(
                nn.functional.layer_norm, normalized_shape=norm.normalized_shape
            )
            continue
        offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0
        eps = getattr(norm, "eps", None) or norm.variance_epsilon

        def forward(
            x: torch.Tensor, norm: Any = norm, o: float = offset, e: float = eps
        ):
            scale = (x.square().mean(-1, keepdim=True) + e).rsqrt()
            return x * scale * (norm.weight + o)

        vars(norm)["forward"] = forward
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]
