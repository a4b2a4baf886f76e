"""Small untrained models of known architectures, with tokenizers trained on texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from circuitcut.models.loaded import (
    LoadedModel,
    config_hash_of,
    resolved_head,
    special_ids_of,
)
from circuitcut.models.mlp import Mlp
from circuitcut.models.names import BUILTIN, HEADS_OF_BUILTIN
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class BuiltinSizes:
    """Sizes of a built-in model and of its tokenizer."""

    tokenizer_kind: str = "word"
    """`word`, `wordpiece` or `bpe`; see `train_tokenizer`."""
    vocab_size: int = 4096
    """Largest number of tokens; the embeddings have one row per actual token of the
    tokenizer."""
    n_layers: int = 2
    """Blocks of a text model."""
    d_model: int = 128
    """Width of a text model's residual stream; its MLPs have `4 * d_model` neurons."""
    n_heads: int = 4
    """Attention heads of a block, each `d_model / n_heads` wide."""
    max_positions: int = 128
    """Longest sequence of a text model, in tokens."""
    dropout: float = 0.0
    """Probability of dropout of a text model in training mode."""
    n_pixels: int = 784
    """Inputs of `mlp`."""
    d_hidden: int = 50
    """Hidden units of `mlp`."""

    def n_matrix_weights(self, name: str) -> int:
        """Weights of the matrices of the model `name`; a vocabulary is at its largest.

        Heads and biases are left out.
        """
        if name == "mlp":
            return self.n_pixels * self.d_hidden
        in_blocks = self.n_layers * 12 * self.d_model**2
        return in_blocks + (self.vocab_size + self.max_positions) * self.d_model


def build_builtin(
    name: str,
    *,
    head: str,
    labels: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    sizes: BuiltinSizes = BuiltinSizes(),
    seed: int = 0,
) -> LoadedModel:
    """An untrained model; the same arguments give the same weights and tokenizer.

    Args:
        name: `tiny-encoder` or `multilingual-encoder` (BERTs), `tiny-decoder` or
            `deep-decoder` (GPT-2s; their depth is one of the sizes) or `mlp`.
        head: Task head, one of `HEADS_OF_BUILTIN[name]`; `language_model` stands for
            the model's `causal_lm` or `masked_lm`.
        labels: Class names of a classification head, in the order of its logits.
        texts: Training texts of the tokenizer; required for text models.
        sizes: Sizes; each model uses the fields that it has.
        seed: Seed of the initial weights.

    Raises:
        UserError: For an unknown name, a head that the model cannot have, missing
            labels or texts, or inconsistent sizes.
    """
    is_decoder = name in ("tiny-decoder", "deep-decoder")
    head = resolved_head(head, is_decoder=is_decoder)
    _check(name, head, labels, sizes)
    if name == "mlp":
        classes = list(labels or [])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mlp = Mlp(sizes.n_pixels, sizes.d_hidden, len(classes), labels=classes)
        return _loaded(name, mlp, None, head, is_decoder=False)
    tokenizer = train_tokenizer(
        texts or [],
        sizes.tokenizer_kind,
        is_decoder=is_decoder,
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_positions,
    )
    config = (_gpt2_config if is_decoder else _bert_config)(tokenizer, sizes)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _MODEL_OF_HEAD[head](config, dtype=torch.float32)
    return _loaded(name, model, tokenizer, head, is_decoder=is_decoder)


_MODEL_OF_HEAD: dict[str, Callable[..., nn.Module]] = {
    "causal_lm": AutoModelForCausalLM.from_config,
    "masked_lm": AutoModelForMaskedLM.from_config,
    "token_classification": AutoModelForTokenClassification.from_config,
}


def _check(
    name: str, head: str, labels: Sequence[str] | None, sizes: BuiltinSizes
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
    if head.endswith("classification") and not labels:
        raise UserError(
            f"argument labels must name the classes of {head}, got {labels}"
        )
    if labels and len(set(labels)) != len(labels):
        raise UserError(f"argument labels must be distinct, got {list(labels)}")
    if sizes.d_model % sizes.n_heads:
        raise UserError(
            f"d_model must be a multiple of n_heads={sizes.n_heads}, got "
            f"{sizes.d_model}"
        )
    # weights, gradients and the two moments of Adam, of 4 bytes each
    needed, free = 16 * sizes.n_matrix_weights(name), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"a {name} of these sizes takes {needed / 1e9:,.1f} GB to train, and "
            f"{free / 1e9:,.1f} GB of memory are free; ask for fewer layers, a "
            "narrower model (d_model, d_hidden) or fewer positions (--max_length)"
        )


def _gpt2_config(tokenizer: PreTrainedTokenizerFast, sizes: BuiltinSizes) -> GPT2Config:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=sizes.n_layers,
        n_embd=sizes.d_model,
        n_head=sizes.n_heads,
        n_positions=sizes.max_positions,
        embd_pdrop=sizes.dropout,
        attn_pdrop=sizes.dropout,
        resid_pdrop=sizes.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Only GPT-2's token classifier reads this; GPT2Config has no such field.
    config.update({"classifier_dropout": sizes.dropout})
    return config


def _bert_config(tokenizer: PreTrainedTokenizerFast, sizes: BuiltinSizes) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=sizes.n_layers,
        hidden_size=sizes.d_model,
        num_attention_heads=sizes.n_heads,
        intermediate_size=4 * sizes.d_model,
        max_position_embeddings=sizes.max_positions,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )


def _loaded(
    name: str,
    model: nn.Module,
    tokenizer: Any | None,
    head: str,
    *,
    is_decoder: bool,
) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=name,
        revision=None,
        config_hash=config_hash_of(model.config),
        head_is_new=True,
        is_decoder=is_decoder,
        special_ids=special_ids_of(tokenizer, head, is_decoder=is_decoder),
    )
