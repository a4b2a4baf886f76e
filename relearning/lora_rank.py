"""What the flag `trained` says about low-rank adapters, before peft is imported."""

import re
from importlib.util import find_spec

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_ranges import Range, check_number

DEFAULT_RANK = 8
RANK = Range(1, 2**16)
_LORA = re.compile(r"lora(?::([0-9]+))?")


def lora_rank(trained: str) -> int | None:
    """The rank that `trained` asks for: 8 for `lora`, 16 for `lora:16`; else None.

    Raises:
        UserError: When the rank is out of `RANK`.
    """
    match = _LORA.fullmatch(trained)
    if match is None:
        return None
    rank = int(match[1] or DEFAULT_RANK)
    check_number(f"the rank of {trained!r}", rank, RANK)
    return rank


def check_peft() -> None:
    """Check that peft is installed, without the seconds that its import takes.

    Raises:
        UserError: Saying how to install it.
    """
    if find_spec("peft") is None:
        raise UserError(
            "trained lora needs the package peft: pip install 'circuitcut[lora]', or "
            "pip install peft"
        )
