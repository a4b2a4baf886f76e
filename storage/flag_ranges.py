"""Which values a flag may have: the rule stands with its field and is checked here."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from circuitcut.storage.errors import UserError

WITHIN = "within"
"""Key of a field's metadata: its `Range`."""
MOST_BYTES = 255
"""Of one name of a file or folder, on the usual file systems."""
MOST_TEXT = 4096
"""Characters of a flag: the longest path on Linux."""
_SHOWN = 60


@dataclass(frozen=True)
class Range:
    """The numbers that a flag may have; infinity and NaN are never among them."""

    least: float = -math.inf
    most: float = math.inf
    without: str = ""
    """Ends that lie outside: `least`, `most` or `both`."""

    def has(self, value: float) -> bool:
        """Whether it is finite and lies in the range."""
        above = value > self.least or (value == self.least and not self._open("least"))
        below = value < self.most or (value == self.most and not self._open("most"))
        return above and below and abs(value) != math.inf

    def __str__(self) -> str:
        low, high = _plain(self.least), _plain(self.most)
        if self.least == -math.inf:
            return "that is finite"
        if not self.without:
            return f"from {low} to {high}"
        above = "above" if self._open("least") else "at least"
        below = "below" if self._open("most") else "at most"
        return f"{above} {low} and {below} {high}"

    def _open(self, end: str) -> bool:
        return self.without in (end, "both")


FINITE = Range()
SEED = Range(0, 2**63 - 1)
"""torch and NumPy take them, also where a run adds a small number."""
COUNT = Range(1, 10**9)
COUNT_OR_0 = Range(0, 10**9)
UNITS = Range(1, 10**12)
UNITS_OR_0 = Range(0, 10**12)
POSITIVE_UNITS = Range(0, 10**12, without="least")
BATCH = Range(1, 2**16)
N_BATCHES = Range(1, 10**6)
N_RANDOM = Range(0, 10**6)
POSITIVE = Range(0, 10**6, without="least")
NOT_NEGATIVE = Range(0, 10**6)
DECAY = Range(0, 1000)
LEARNING_RATE = Range(0, 1000, without="least")
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, without="most")
POSITIVE_SHARE = Range(0, 1, without="least")
PROBABILITY = Range(0, 1, without="both")
SCALE = Range(0.001, 1000)
SCALE_OR_0 = Range(0, 1000)
_WHOLE = Range(-(2**63), 2**63 - 1)


def check_flags(config: Any) -> None:
    """Check the numbers and lists of a dataclass of flags by their fields.

    A number without a `Range` must be finite. A list must not repeat a value, and must
    not be empty where its default is not.

    Raises:
        UserError: For the first wrong value, naming the flag, the rule and the value.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list | tuple):
            has_default = callable(field.default_factory) and field.default_factory()
            if not value and has_default:
                raise UserError(
                    f"--{field.name} needs at least one value; leave it out for "
                    f"{' '.join(map(str, has_default))}"
                )
            _check_once(field.name, value)
        for item in value if isinstance(value, list | tuple) else [value]:
            check_number(f"--{field.name}", item, field.metadata.get(WITHIN))


def check_number(name: str, value: Any, within: Range | None) -> None:
    """Check one value, if it is a number.

    Raises:
        UserError: When it is not in the range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    allowed = within or (_WHOLE if isinstance(value, int) else FINITE)
    if not allowed.has(value):
        kind = "a whole number" if isinstance(value, int) else "a number"
        raise UserError(f"{name} must be {kind} {allowed}, got {quoted(value)}")


def check_word(name: str, text: str, *, free: bool = False) -> None:
    """Check the text of a flag: something that files and JSON can hold.

    Args:
        free: Text that names nothing: it may be empty, and as long as it likes.

    Raises:
        UserError: When it is empty, too long for a name, or holds a NUL or bytes that
            are not UTF-8.
    """
    try:
        parts = text.encode().split(b"/")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} must be UTF-8 text, got {quoted(text)}; rename the file, or type "
            "the text again"
        ) from error
    if "\0" in text:
        raise UserError(f"{name} must not hold a NUL character, got {quoted(text)}")
    if free:
        return
    if not text.strip():
        raise UserError(
            f"{name} must not be empty; leave the flag out, or name a value"
        )
    if len(text) > MOST_TEXT or max(map(len, parts)) > MOST_BYTES:
        raise UserError(
            f"{name} must have at most {MOST_BYTES} bytes in a name and {MOST_TEXT:,} "
            f"characters in all, got {len(text):,} characters: {quoted(text)}"
        )


def quoted(value: Any) -> str:
    """A value for a message of one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_once(name: str, values: Iterable[Any]) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise UserError(f"--{name} must name every value once, got {value} twice")
        seen.append(value)


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
