"""A loaded model, with what a mask file has to know about it."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

# What neither moves a site nor changes a number in eval mode: names, paths, versions,
# classes, dtype, dropout and settings of generation.
_NOT_HASHED = re.compile(
    r"_.*|architectures|transformers_version|(torch_)?dtype|id2label|label2id|num_labels"
    r"|labels|problem_type|name_or_path|return_dict|output_.*|use_cache|.*_token_id"
    r"|.*dropout.*|.*_pdrop|tie_encoder_decoder|chunk_size_feed_forward"
)


@dataclass
class LoadedModel:
    """A model in evaluation mode, its tokenizer and where they come from."""

    model: nn.Module
    """Called as `model(**inputs)`; the result has `.logits`."""
    tokenizer: Any | None
    """A fast tokenizer of transformers, padding on the right; None for images."""
    name: str
    """As asked for: hub name, folder, `minilm` or the name of a built-in model."""
    revision: str | None
    """Commit hash on the hub, `sha256:...` of packaged weights; None for a folder."""
    config_hash: str
    """SHA-256 hex digest of the configuration; see `config_hash_of`."""
    head_is_new: bool
    """The task head was not in the checkpoint: train it before measuring anything."""
    is_decoder: bool
    special_ids: tuple[int, ...]
    """Ids of special tokens, whose positions are never gated; see `special_ids_of`."""


def config_hash_of(config: Any) -> str:
    """SHA-256 hex digest of what in a configuration fixes the graph and its numbers.

    Paths, versions, labels, dropout, dtype and token ids are left out, so that the same
    network has the same hash after saving, with another head, or in another precision.
    """
    # transformers' configurations are dataclasses too, but `asdict` misses their type.
    has_dict = hasattr(config, "to_dict")
    entries = config.to_dict() if has_dict else dataclasses.asdict(config)
    kept = {
        key: value for key, value in entries.items() if not _NOT_HASHED.fullmatch(key)
    }
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def special_ids_of(tokenizer: Any | None) -> tuple[int, ...]:
    """Ids of padding, begin, end, class, separator and mask tokens.

    The unknown token is none of them, unless it doubles as one (GPT-2): it stands for a
    word of the text, and a concept's unseen names are just such words.
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
    return tuple(sorted(ids))


def frozen(model: nn.Module) -> nn.Module:
    """The same model with gradients of all its parameters switched off."""
    return model.requires_grad_(False)


def _as_list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [str(value)]
