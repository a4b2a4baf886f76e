"""Train small tokenizers on texts, without any download."""

from collections.abc import Callable, Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from circuitcut.storage.errors import UserError

TOKENIZER_KINDS = ("word", "wordpiece", "bpe")
_INNER = "##"  # before a piece that does not start a word

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


def train_tokenizer(
    texts: Sequence[str],
    kind: str,
    *,
    is_decoder: bool,
    vocab_size: int,
    max_length: int,
) -> PreTrainedTokenizerFast:
    """A cased tokenizer trained on `texts`; the same texts give the same tokenizer.

    Decoders get `<bos>` before the text (attention can rest on it, as in Llama);
    encoders get `[CLS]` before and `[SEP]` after it. Padding is on the right.

    Args:
        texts: Training texts; the vocabulary of `word` has only their words.
        kind: `word` (whole words and separate punctuation), `wordpiece` or byte-level
            `bpe`.
        is_decoder: Whether the special tokens are those of a decoder.
        vocab_size: Largest number of tokens, special tokens included.
        max_length: Longest input of the model in tokens, special tokens included.

    Raises:
        UserError: When there is no text, the kind is unknown, or the vocabulary is too
            small for the special tokens (and, in `bpe`, the 256 bytes).
    """
    if kind not in _TRAINERS:
        raise UserError(
            f"argument tokenizer_kind must be one of {', '.join(_TRAINERS)}, "
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
    special = list(roles.values())
    tokenizer = _TRAINERS[kind](texts, vocab_size, special, roles["unk_token"])
    tokenizer.post_processor = _post_processor(kind, special, roles)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, **roles
    )


def _word(
    texts: Sequence[str], vocab_size: int, special: list[str], unknown: str
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    # `Whitespace` also splits off punctuation: a name is one token at every position.
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(
    texts: Sequence[str], vocab_size: int, special: list[str], unknown: str
) -> Tokenizer:
    """WordPiece that knows every letter both at the start of a word and inside it.

    The library numbers the letters inside words in the order of a hash table and breaks
    ties by these numbers, so that two trainings on the same texts would differ. Here
    these letters get fixed numbers, as special tokens of the trainer; the tokenizer is
    then rebuilt from the resulting vocabulary.
    """
    letters = sorted({letter for text in texts for letter in text if letter.strip()})
    inner = [_INNER + letter for letter in letters]
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + inner,
        initial_alphabet=letters,
        continuing_subword_prefix=_INNER,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_INNER)
    return tokenizer


def _bpe(
    texts: Sequence[str], vocab_size: int, special: list[str], unknown: str
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


_TRAINERS: dict[str, Callable[[Sequence[str], int, list[str], str], Tokenizer]] = {
    "word": _word,
    "wordpiece": _wordpiece,
    "bpe": _bpe,
}


def _post_processor(
    kind: str, special: list[str], roles: dict[str, str]
) -> processors.Sequence:
    """Add special tokens, and remove the space before a word from its offsets."""
    first = roles.get("cls_token") or roles["bos_token"]
    last = roles.get("sep_token")
    template = processors.TemplateProcessing(
        single=" ".join(filter(None, [first, "$A", last])),
        pair=" ".join(filter(None, [first, "$A", last, "$B:1", last and f"{last}:1"])),
        special_tokens=[(t, special.index(t)) for t in (first, last) if t],
    )
    if kind == "bpe":
        return processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return processors.Sequence([template])
