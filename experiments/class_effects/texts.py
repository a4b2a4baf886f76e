"""The tokens of a corpus as texts of a bounded length."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from circuitcut.data.text.files import read_retained
from circuitcut.experiments.class_effects.flags import ClassEffectsFlags
from circuitcut.masks.neurons.rule import check_positions
from circuitcut.models.loaded import LoadedModel, most_positions
from circuitcut.storage.errors import UserError


def documents(data: str, text_column: str | None) -> list[str]:
    """The texts of a corpus; pieces of one document are joined.

    Raises:
        UserError: When the corpus cannot be read.
    """
    joined: dict[str, list[str]] = {}
    for number, record in enumerate(read_retained(data, text_column, "--data")):
        joined.setdefault(record.document or f"row {number}", []).append(record.text)
    return [" ".join(parts) for parts in joined.values()]


def texts_of(
    config: ClassEffectsFlags, loaded: LoadedModel, corpus: Sequence[str]
) -> list[list[int]]:
    """Token ids of texts of at most `length`, up to the number of tokens asked for.

    Raises:
        UserError: When there is not one prediction to measure, or ablations are asked
            for at a position that no text has.
    """
    tokenizer: Any = loaded.tokenizer
    begin = tokenizer("a").input_ids[:1]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    texts: list[list[int]] = []
    n_found, size = 0, length_of(config, loaded.model) - len(begin)
    for document in corpus:
        ids = tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        for first in range(0, len(ids), size):
            text = [*begin, *ids[first : first + size]]
            if len(text) > 2:
                texts.append(text)
                n_found += len(text) - 1
        if n_found >= config.n_tokens:
            break
    if not texts:
        raise UserError(
            f"--data {config.data} must have a text of three tokens, got none; give "
            "more text"
        )
    return list(at_most(texts, config.n_tokens))


def at_most(texts: Sequence[list[int]], n_tokens: int) -> Iterator[list[int]]:
    """The first texts, the last one cut, so that they predict so many tokens."""
    left = n_tokens
    for text in texts:
        if left < 1:
            return
        yield text[: max(left + 1, 3)]
        left -= len(text) - 1


def length_of(config: ClassEffectsFlags, model: nn.Module) -> int:
    """Tokens of the longest text: `--length`, or what the model was trained on.

    Raises:
        UserError: When the model has a table of fewer positions, or ablations are asked
            for at a position behind.
    """
    most = most_positions(model)
    if most is not None and config.length > most:
        raise UserError(
            f"--length must be at most {most}, the positions of the model, got "
            f"{config.length}"
        )
    of_model: Any = model.config
    trained_on = getattr(of_model, "max_position_embeddings", None)
    length = min(config.length, trained_on or config.length)
    check_positions(tuple(config.at_positions), length, "--at_positions")
    return length
