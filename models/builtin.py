"""Tiny untrained models of known architectures, with tokenizers of given texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from circuitcut.models.loaded import LoadedModel, config_hash_of, special_ids_of
from circuitcut.models.mlp import Mlp
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError

HEADS_OF_BUILTIN = {
    "tiny-encoder": ("token_classification",),
    "tiny-decoder": ("causal_lm", "token_classification"),
    "deep-decoder": ("causal_lm", "token_classification"),
    "mlp": ("image_classification",),
}
BUILTIN = frozenset(HEADS_OF_BUILTIN)


def build_builtin(
    name: str,
    *,
    head: str,
    labels: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    tokenizer_kind: str = "word",
    vocab_size: int = 4096,
    n_layers: int = 2,
    d_model: int = 128,
    n_heads: int = 4,
    max_positions: int = 128,
    dropout: float = 0.0,
    n_pixels: int = 784,
    d_hidden: int = 50,
    seed: int = 0,
) -> LoadedModel:
    """An untrained model; the same arguments give the same weights and tokenizer.

    Args:
        name: `tiny-encoder` (a BERT), `tiny-decoder` or `deep-decoder` (GPT-2s; their
            depth is an argument) or `mlp`.
        head: Task head, one of `HEADS_OF_BUILTIN[name]`.
        labels: Class names of a classification head, in the order of its logits.
        texts: What the tokenizer is trained on; text models need it.
        tokenizer_kind: `word`, `wordpiece` or `bpe`; see `train_tokenizer`.
        vocab_size: Largest number of tokens; the model is as wide as the tokenizer.
        n_layers: Blocks of a text model.
        d_model: Width of its residual stream; its MLPs have `4 * d_model` neurons.
        n_heads: Attention heads per block, each `d_model / n_heads` wide.
        max_positions: Longest sequence in tokens.
        dropout: Probability of dropout in training mode.
        n_pixels: Input size of `mlp`.
        d_hidden: Hidden units of `mlp`.
        seed: Of the initial weights.

    Raises:
        UserError: For an unknown name, a head the model cannot have, missing labels or
            texts, or sizes that do not fit each other.
    """
    _check(name, head, labels, d_model, n_heads)
    if name == "mlp":
        classes = list(labels or [])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mlp = Mlp(n_pixels, d_hidden, len(classes), labels=classes)
        return _loaded(name, mlp, None, is_decoder=False)
    is_decoder = name in ("tiny-decoder", "deep-decoder")
    tokenizer = train_tokenizer(
        texts or [],
        tokenizer_kind,
        is_decoder=is_decoder,
        vocab_size=vocab_size,
        max_length=max_positions,
    )
    sizes = (n_layers, d_model, n_heads, max_positions)
    configure = _gpt2_config if is_decoder else _bert_config
    config = configure(tokenizer, sizes, dropout)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _MODEL_OF_HEAD[head](config, dtype=torch.float32)
    return _loaded(name, model, tokenizer, is_decoder=is_decoder)


_MODEL_OF_HEAD: dict[str, Callable[..., nn.Module]] = {
    "causal_lm": AutoModelForCausalLM.from_config,
    "token_classification": AutoModelForTokenClassification.from_config,
}


def _check(
    name: str, head: str, labels: Sequence[str] | None, d_model: int, n_heads: int
) -> None:
    if name not in BUILTIN:
        raise UserError(
            f"argument name must be a built-in model ({', '.join(HEADS_OF_BUILTIN)}), "
            f"got {name!r}"
        )
    if head not in HEADS_OF_BUILTIN[name]:
        raise UserError(
            f"model {name!r} has no head {head!r}; it has "
            f"{', '.join(HEADS_OF_BUILTIN[name])}"
        )
    if head != "causal_lm" and not labels:
        raise UserError(
            f"argument labels must name the classes of {head}, got {labels}"
        )
    if labels and len(set(labels)) != len(labels):
        raise UserError(f"argument labels must be distinct, got {list(labels)}")
    if d_model % n_heads:
        raise UserError(
            f"argument d_model must be a multiple of n_heads={n_heads}, got {d_model}"
        )


def _gpt2_config(
    tokenizer: PreTrainedTokenizerFast, sizes: tuple[int, int, int, int], dropout: float
) -> GPT2Config:
    n_layers, d_model, n_heads, max_positions = sizes
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=n_layers,
        n_embd=d_model,
        n_head=n_heads,
        n_positions=max_positions,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Only GPT-2's token classifier reads this, and it is no field of the configuration.
    config.update({"classifier_dropout": dropout})
    return config


def _bert_config(
    tokenizer: PreTrainedTokenizerFast, sizes: tuple[int, int, int, int], dropout: float
) -> BertConfig:
    n_layers, d_model, n_heads, max_positions = sizes
    return BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=n_layers,
        hidden_size=d_model,
        num_attention_heads=n_heads,
        intermediate_size=4 * d_model,
        max_position_embeddings=max_positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )


def _loaded(
    name: str, model: nn.Module, tokenizer: Any | None, *, is_decoder: bool
) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=name,
        revision=None,
        config_hash=config_hash_of(model.config),
        head_is_new=True,
        is_decoder=is_decoder,
        special_ids=special_ids_of(tokenizer),
    )
