"""Names of unit kinds and built-in models: flags are read before torch is imported."""

from typing import Literal

UnitKind = Literal["neurons", "heads", "hidden", "weights", "edges"]
MODULE_KINDS: tuple[UnitKind, ...] = ("neurons", "heads", "hidden", "weights")
"""Kinds whose gates act in the site's module; edges act between modules."""
UNIT_KINDS: tuple[UnitKind, ...] = (*MODULE_KINDS, "edges")
HEADS_OF_BUILTIN = {
    "tiny-encoder": ("masked_lm", "token_classification"),
    "multilingual-encoder": ("masked_lm",),
    "tiny-decoder": ("causal_lm", "token_classification"),
    "deep-decoder": ("causal_lm", "token_classification"),
    "mlp": ("image_classification",),
}
ENCODERS = frozenset({"tiny-encoder", "multilingual-encoder", "minilm"})
"""Models by name that cannot predict the next token."""
BUILTIN = frozenset(HEADS_OF_BUILTIN)
