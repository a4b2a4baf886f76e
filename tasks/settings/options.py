"""The data of a task as its flags name them, and the names of its splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["base", "mask", "tune", "relearn", "heldout"]
SPLITS: tuple[Split, ...] = ("base", "mask", "tune", "relearn", "heldout")
TEXT_OPTIONS = ("prefix", "bos", "chat")
"""`TaskOptions` of tasks on language models."""


@dataclass(frozen=True)
class TaskOptions:
    """The data of a task and its concept; None means the built-in choice."""

    data: str | None = None
    """A local file or folder, or `hub:owner/name`; None generates the built-in data."""
    data_format: str = "auto"
    labels_file: Path | None = None
    """Label file of a parallel token/label pair."""
    retain_data: str | None = None
    """Further text to retain: a file, a folder or a `hub:` name."""
    concept: str | None = None
    concept_words: Path | None = None
    """List of words that are the concept, whatever their tags."""
    text_column: str | None = None
    label_column: str | None = None
    concept_values: tuple[str, ...] = ()
    """Values of `label_column` that mark the concept."""
    hub_config: str | None = None
    hub_revision: str | None = None
    max_length: int = 128
    label_piece: Literal["first", "last"] = "first"
    """The word piece that has the word's tag; a decoder needs the last one."""
    prefix: str | None = None
    """Text before every input of a language model; with `chat` the user's message."""
    bos: bool = False
    """Every input of a language model begins with the begin-of-text token."""
    chat: bool = False
    """Every input is the answer to `prefix` in the tokenizer's chat template."""
    masked_lm: bool = False
    """Whether the model predicts masked tokens (an encoder) or the next token."""
    split_seed: int = 0
    n_prompts: int = 500
    """Held-out prompts whose sampled continuations are scored, at least 2."""
    split_by: Literal["subject", "object"] = "subject"
    """Facts: what no two splits share; `object`: neither subject nor object."""
    n_facts: int = 200
    """Facts: most facts of the concept, and most of all others together."""
    n_paraphrases: int | None = None
    """Facts: most prompts of one fact; None: all."""
    languages: tuple[str, ...] = ()
    """Facts: the languages of the prompts; empty: those of the data."""
    toxicity_scorer: Literal["builtin", "detoxify"] = "builtin"
    """Classifier of continuations: the built-in one or the Detoxify package."""
