"""The most changed texts in results.json: tokens, logit lens and continuations."""

from collections.abc import Sequence
from typing import Any

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loaded import LoadedModel
from circuitcut.weight_classes.tokens.changed_texts import Change
from circuitcut.weight_classes.tokens.continuations import greedy
from circuitcut.weight_classes.tokens.logit_lens import Seen, compared, readings


def described(
    loaded: LoadedModel, mask: FrozenMask, when: str, change: Change, n_generated: int
) -> dict[str, Any]:
    """One text under one ablation.

    Costs two forward passes for the lens and two continuations of the text.

    Args:
        when: The condition of the ablation.
        n_generated: Tokens of each continuation.
    """
    tokenizer: Any = loaded.tokenizer
    *before, following = change.ids

    def words(pairs: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": tokenizer.decode([t]), "change": c} for t, c in pairs]

    def seen(prediction: Seen) -> dict[str, Any]:
        values = vars(prediction)
        return values | {"top": tokenizer.decode([prediction.top])}

    clean, written = readings(loaded.model, before), {}
    if n_generated:
        written["clean"] = greedy(loaded.model, before, n_generated)
    with mask.applied(loaded.model):
        ablated = readings(loaded.model, before)
        if n_generated:
            written["ablated"] = greedy(loaded.model, before, n_generated)
    return {
        "when": when,
        "text": change.text,
        "position": change.position,
        "context": tokenizer.decode(before[-32:]),
        "next": tokenizer.decode([following]),
        "clean": change.clean,
        "ablated": change.ablated,
        "promoted": words(change.promoted),
        "suppressed": words(change.suppressed),
        "lens": [
            {
                "layer": level.layer,
                "sublayer": level.sublayer,
                "clean": seen(level.clean),
                "ablated": seen(level.ablated),
                "promoted": words(level.promoted),
                "suppressed": words(level.suppressed),
            }
            for level in compared(clean, ablated, following)
        ],
        "continued": {key: tokenizer.decode(ids) for key, ids in written.items()},
    }
