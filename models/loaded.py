"""A loaded model with its tokenizer and the facts that a mask file stores about it."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from circuitcut.models.spared import FIRST_POSITION
from circuitcut.models.weights_hash import weights_sha256

# Entries that change neither sites nor results in evaluation mode: names, paths,
# versions, classes, dtype, dropout and settings of generation.
_NOT_HASHED = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|id2label|label2id|num_labels"
    r"|labels|problem_type|name_or_path|return_dict|output_.*|use_cache|.*_token_id"
    r"|.*dropout.*|.*_pdrop|tie_encoder_decoder|chunk_size_feed_forward"
)


_TABLES = ("wpe", "position_embeddings", "position_embedding", "embed_positions")
"""Names of tables of positions, modules or buffers, in the families of transformers."""


@dataclass
class LoadedModel:
    """A model in evaluation mode, its tokenizer and their origin."""

    model: nn.Module
    """Called as `model(**inputs)`; the result has `.logits`."""
    tokenizer: Any | None
    """A fast tokenizer of transformers, padding on the right; None for images."""
    name: str
    """Name given by the user: of the hub, a folder, a file, a package, or built in."""
    revision: str | None
    """Commit hash on the hub, `sha256:...` of packaged weights; None for a folder."""
    config_hash: str
    """SHA-256 hex digest of the configuration; see `config_hash_of`."""
    head_is_new: bool
    """True if the checkpoint has no such task head: train it before any evaluation."""
    is_decoder: bool
    special_ids: tuple[int, ...]
    """Positions that are never gated, by token id; see `special_ids_of`."""

    @cached_property
    def weights_sha256(self) -> str:
        """Of all weights, as they are when it is first asked for."""
        return weights_sha256(self.model)


def most_positions(model: nn.Module) -> int | None:
    """The most tokens that `model` can read; None where it computes positions."""
    modules = (name for name, m in model.named_modules() if isinstance(m, nn.Embedding))
    names = [*modules, *(name for name, _ in model.named_buffers())]
    if not any(name.rpartition(".")[2] in _TABLES for name in names):
        return None
    config: Any = model.config
    # RoBERTa and its kin count from behind the padding's id
    is_roberta = "roberta" in config.model_type
    unused = config.pad_token_id + 1 if is_roberta else 0
    return config.max_position_embeddings - unused


def config_hash_of(config: Any) -> str:
    """SHA-256 hex digest of the entries of a configuration that determine the network.

    Paths, versions, labels, dropout, dtype and token ids are left out: the same network
    has the same hash after saving, with another head, or in another precision.
    """
    # transformers' configurations are also dataclasses, but `asdict` omits their type.
    has_dict = hasattr(config, "to_dict")
    entries = config.to_dict() if has_dict else dataclasses.asdict(config)
    kept = {
        key: value for key, value in entries.items() if not _NOT_HASHED.fullmatch(key)
    }
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def resolved_head(head: str, *, is_decoder: bool) -> str:
    """`causal_lm` (decoders) or `masked_lm` (encoders) for `language_model`."""
    if head != "language_model":
        return head
    return "causal_lm" if is_decoder else "masked_lm"


def special_ids_of(
    tokenizer: Any | None, head: str | None = None, *, is_decoder: bool
) -> tuple[int, ...]:
    """Ids of padding, begin, end, class, separator and mask tokens.

    In decoders also `FIRST_POSITION`, the attention sink.
    The unknown token is not included, unless it is also one of these tokens (GPT-2): it
    stands for a word of the text, for instance an unseen name of the concept. The mask
    token is not included under the head `masked_lm`: a model predicts there.
    """
    if tokenizer is None:
        return ()
    roles = dict(tokenizer.special_tokens_map)
    roles.pop("unk_token", None)
    structural = {token for value in roles.values() for token in _as_list(value)}
    ids = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token
    if unknown is not None and unknown not in structural:
        ids.discard(tokenizer.unk_token_id)
    if head == "masked_lm":
        ids.discard(tokenizer.mask_token_id)
    return ((FIRST_POSITION,) if is_decoder else ()) + tuple(sorted(ids))


def frozen(model: nn.Module) -> nn.Module:
    """The same model; its parameters no longer require gradients."""
    return model.requires_grad_(False)


def _as_list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [str(value)]
