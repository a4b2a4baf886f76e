"""Small tokenizers, trained on given texts, that need no download."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from storage.errors import UserError

TokenizerKind = Literal["word", "wordpiece", "bpe"]
TOKENIZER_KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)

# Roles in the order of their ids: padding is 0 and unknown is 1 everywhere.
_ENCODER_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_DECODER_TOKENS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
}


@dataclass(frozen=True)
class _Recipe:
    model: Callable[[str], Any]
    trainer: Callable[[int, list[str]], Any]
    pre_tokenizer: Callable[[], Any]
    decoder: Callable[[], Any] | None = None


def _bpe_trainer(vocab_size: int, special_tokens: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


_RECIPES: dict[TokenizerKind, _Recipe] = {
    # `Whitespace` splits words from punctuation, so a name is one token wherever it is.
    "word": _Recipe(
        lambda unknown: models.WordLevel(unk_token=unknown),
        lambda size, special: trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        ),
        pre_tokenizers.Whitespace,
    ),
    "wordpiece": _Recipe(
        lambda unknown: models.WordPiece(unk_token=unknown),
        lambda size, special: trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=special, show_progress=False
        ),
        pre_tokenizers.BertPreTokenizer,
        decoders.WordPiece,
    ),
    "bpe": _Recipe(
        lambda unknown: models.BPE(unk_token=unknown),
        _bpe_trainer,
        lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel,
    ),
}


def train_tokenizer(
    texts: Sequence[str],
    kind: TokenizerKind,
    *,
    is_decoder: bool,
    vocab_size: int,
    max_length: int,
) -> PreTrainedTokenizerFast:
    """A cased tokenizer of `texts`, the same for the same texts.

    Decoders get `<bos>` before the text (a resting place for attention, as in Llama)
    and encoders `[CLS]` and `[SEP]` around it; padding is on the right.

    Args:
        texts: What to train on; `word` knows no other words than theirs.
        kind: `word` (whole words, punctuation apart), `wordpiece` or byte-level `bpe`.
        is_decoder: Which special tokens to give.
        vocab_size: Largest number of tokens, special ones included.
        max_length: Tokens the model can take, special ones included.

    Raises:
        UserError: When there is no text, the kind is unknown, or the vocabulary is too
            small for the special tokens (and, in `bpe`, the 256 bytes).
    """
    if kind not in _RECIPES:
        raise UserError(
            f"argument tokenizer_kind must be one of {', '.join(_RECIPES)}, "
            f"got {kind!r}"
        )
    if not any(text.strip() for text in texts):
        raise UserError("argument texts must hold text to train a tokenizer, got none")
    roles = _DECODER_TOKENS if is_decoder else _ENCODER_TOKENS
    smallest = len(roles) + (256 if kind == "bpe" else 1)
    if vocab_size < smallest:
        raise UserError(
            f"argument vocab_size must be at least {smallest} for {kind}, "
            f"got {vocab_size}"
        )
    recipe = _RECIPES[kind]
    tokenizer = Tokenizer(recipe.model(roles["unk_token"]))
    tokenizer.pre_tokenizer = recipe.pre_tokenizer()
    if recipe.decoder is not None:
        tokenizer.decoder = recipe.decoder()
    trainer = recipe.trainer(vocab_size, list(roles.values()))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _template(tokenizer, roles)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **roles
    )


def _template(
    tokenizer: Tokenizer, roles: dict[str, str]
) -> processors.TemplateProcessing:
    first = roles.get("cls_token") or roles["bos_token"]
    last = roles.get("sep_token")
    around = [token for token in (first, last) if token]
    return processors.TemplateProcessing(
        single=" ".join(filter(None, [first, "$A", last])),
        pair=" ".join(filter(None, [first, "$A", last, "$B:1", last and f"{last}:1"])),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
    )
