"""JSON that means one thing: no NaN, no doubled key, no number or nesting without end.

Python's parser takes all of these, or ends in a traceback.
"""

import json
import math
import re
from typing import Any

MOST_DEPTH = 100
"""Objects and lists inside each other."""
MOST_DIGITS = 300
"""Of a whole number; a longer one has no floating-point value."""
_TOO_DEEP = f"lists and objects are nested more than {MOST_DEPTH} deep"
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class JsonProblem(ValueError):
    """What is wrong with a JSON text, in words; `line` is None where it is unknown."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line

    @property
    def place(self) -> str:
        """The problem after its line, as in `line 3: it is empty`, or alone."""
        return f"line {self.line}: {self}" if self.line else str(self)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        JsonProblem: When it is not JSON, is nested deeper than 100 levels, or holds a
            key twice in one object, NaN, infinity, a number that overflows, or half of
            a surrogate pair.
    """
    if not text.strip():
        raise JsonProblem("it is empty", 1)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_whole,
            parse_float=_number,
        )
    except json.JSONDecodeError as error:
        raise JsonProblem(error.msg, error.lineno) from error
    except RecursionError:
        raise JsonProblem(_TOO_DEEP) from None
    _check_depth(value)
    if _HALF_A_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            raise JsonProblem(
                f"a text holds \\u{half:04x}, which is half of a character"
            ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonProblem(f"the key {twice[:60]!a} stands twice in one object")
    return entries


def _constant(name: str) -> Any:
    raise JsonProblem(f"{name} is no JSON number; write null for what is undefined")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise JsonProblem(f"a number has {len(digits):,} digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JsonProblem(f"the number {digits[:20]} is too large")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise JsonProblem(_TOO_DEEP)
