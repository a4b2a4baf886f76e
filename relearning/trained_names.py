"""What the flag `trained` means for the names of parameters, without torch."""

import re
from collections.abc import Callable

from circuitcut.relearning.lora_rank import lora_rank
from circuitcut.storage.errors import UserError

PARTS: dict[str, str] = {
    "all": r"",
    "mlp": r"(^|\.)(mlp|ffn|intermediate)\.|\.layer\.\d+\.output\.dense\.|^blocks\.",
    "attention": r"(^|\.)(attn|attention|self_attn)\.",
}
"""Names for `trained` -> the regular expression a parameter's name must match."""

_LAYER = re.compile(r"\.(\d+)\.")
_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?")


def matcher(trained: str) -> Callable[[str], bool]:
    """Whether a parameter of this name is trained; `head` depends on the model.

    Raises:
        UserError: When the expression is not valid, or layers do not rise.
    """
    if lora_rank(trained) is not None:
        return lambda name: ".lora_A." in name or ".lora_B." in name
    layers = _LAYERS.fullmatch(trained)
    if layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])
        if first > last:
            raise UserError(
                f"argument trained must be layers:FIRST-LAST, got {trained!r}"
            )

        def in_layers(name: str) -> bool:
            number = _LAYER.search(name)
            return number is not None and first <= int(number[1]) <= last

        return in_layers
    try:
        pattern = re.compile(PARTS.get(trained, trained))
    except re.error as error:
        raise UserError(
            f"argument trained must be a regular expression, got {trained!r}: {error}"
        ) from error
    return lambda name: pattern.search(name) is not None
