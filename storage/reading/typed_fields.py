"""Values read from JSON, checked against type hints: which entry is of a wrong type."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from circuitcut.storage.errors import UserError

_LEAST, _LARGEST = -(2**63), 2**64 - 1


@dataclass(frozen=True)
class AtLeast:
    """Marks a number in a type hint: `Annotated[int, AtLeast(0)]`."""

    least: int


@dataclass(frozen=True)
class Between:
    """Marks a number in a type hint by its range, both ends included."""

    least: float
    most: float


@dataclass(frozen=True)
class Matching:
    """Marks a text in a type hint by what it must be: a pattern, and its name."""

    pattern: str
    name: str


Count = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]
Digest = Annotated[str, Matching(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")]


def check_type(value: Any, hint: Any, where: str, *, closed: bool = False) -> None:
    """Check a value from a JSON file against a type hint, at every depth.

    Hints are those of JSON: bool, int, float (whole numbers too), str, None, `Literal`,
    lists, tuples, dicts with text as keys, `TypedDict`, unions, and `Annotated` with
    `AtLeast`, `Between` or `Matching`. A bool is no number. Whole numbers have 64 bits.

    Args:
        where: File and entry, for the message.
        closed: Refuse keys that a `TypedDict` does not have.

    Raises:
        UserError: Naming the entry, what it must be, and what was found.
    """
    problem = _problem(value, hint, "", closed)
    if problem is not None:
        raise _wrong(problem, where)


def check_entries(
    entries: Mapping[str, Any],
    hints: Mapping[str, Any],
    where: str,
    *,
    closed: bool = False,
) -> None:
    """`check_type` of the entries that there are, by name; others are not looked at."""
    for name, hint in hints.items():
        if name in entries:
            problem = _problem(entries[name], hint, name, closed)
            if problem is not None:
                raise _wrong(problem, where)


def shown(value: Any, most: int = 60) -> str:
    """A value of a file for a message: on one line, in ASCII, not too long."""
    if isinstance(value, dict):
        return f"an object with {len(value)} entries"
    if isinstance(value, list) and len(value) > 4:
        return f"a list of {len(value)}"
    names = {True: "true", False: "false", None: "null"}
    is_name = value is None or isinstance(value, bool)
    text = names[value] if is_name else ascii(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown_names(names: Iterable[Any], most: int = 12) -> str:
    """Names in a file, such as those of columns, for a message: the first ones."""
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(shown(str(name), 40)[1:-1] for name in known[:most]) + more


_Problem = tuple[str, str, Any]
"""Entry, what it must be, what was found."""


def _wrong(problem: _Problem, where: str) -> UserError:
    entry, expected, found = problem
    at = f"entry {entry} " if entry else ""
    return UserError(f"{where}: {at}must be {expected}, got {shown(found)}")


def _problem(value: Any, hint: Any, entry: str, closed: bool) -> _Problem | None:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return None
    if origin in (Union, UnionType):
        return _of_union(value, parts, entry, closed)
    if origin is Annotated:
        return _of_annotated(value, hint, entry, closed)
    if origin is Literal:
        fits = any(type(value) is type(part) and value == part for part in parts)
        return None if fits else (entry, _described(hint), value)
    if is_typeddict(hint):
        return _of_entries(value, hint, entry, closed)
    if origin in (list, tuple, dict) or hint in (list, dict):
        return _of_container(value, hint, entry, closed)
    fits = {
        int: type(value) is int and _LEAST <= value <= _LARGEST,
        float: type(value) in (int, float),
        NoneType: value is None,
        None: value is None,
    }.get(hint, type(value) is hint)
    return None if fits else (entry, _described(hint), value)


def _of_union(
    value: Any, parts: tuple[Any, ...], entry: str, closed: bool
) -> _Problem | None:
    problems = [_problem(value, part, entry, closed) for part in parts]
    if None in problems:
        return None
    for part, problem in zip(parts, problems, strict=True):
        # of the one part whose outer type fits
        if problem is not None and problem[:2] != (entry, _described(part)):
            return problem
    return entry, " or ".join(map(_described, parts)), value


def _of_annotated(value: Any, hint: Any, entry: str, closed: bool) -> _Problem | None:
    plain, mark = get_args(hint)
    if problem := _problem(value, plain, entry, closed):
        return entry, _described(hint), problem[2]
    match mark:
        case AtLeast(least):
            fits = value >= least
        case Between(least, most):
            fits = least <= value <= most
        case Matching(pattern):
            fits = re.fullmatch(pattern, value) is not None
        case _:
            raise TypeError(f"{mark!r} marks no type hint of JSON")
    return None if fits else (entry, _described(hint), value)


def _of_entries(value: Any, hint: Any, entry: str, closed: bool) -> _Problem | None:
    if not isinstance(value, dict):
        return entry, "an object", value
    if missing := sorted(hint.__required_keys__ - value.keys()):
        return entry, f"an object with {', '.join(missing)}", value
    hints = _hints_of(hint)
    if closed and (unknown := [key for key in value if key not in hints]):
        known = ", ".join(sorted(hints))
        return entry, f"an object with no entry but {known}", unknown[0]
    for key, part in hints.items():
        if key in value and (
            problem := _problem(value[key], part, _joined(entry, key), closed)
        ):
            return problem
    return None


def _of_container(value: Any, hint: Any, entry: str, closed: bool) -> _Problem | None:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin is dict:
        if not isinstance(value, dict):
            return entry, _described(hint), value
        items = [(_joined(entry, key), item) for key, item in value.items()]
        kinds = [parts[1] if parts else Any] * len(items)
    else:
        if not isinstance(value, list):
            return entry, _described(hint), value
        items = [(f"{entry}[{i}]", item) for i, item in enumerate(value)]
        fixed = origin is tuple and parts[-1] is not ...
        if fixed and len(parts) != len(items):
            return entry, f"a list of {len(parts)}", value
        kinds = list(parts) if fixed else [parts[0] if parts else Any] * len(items)
    for (name, item), kind in zip(items, kinds, strict=True):
        if problem := _problem(item, kind, name, closed):
            return problem
    return None


@cache
def _hints_of(hint: Any) -> Mapping[str, Any]:
    """Types of the keys, without the marks that say which of them may be missing."""
    hints = get_type_hints(hint, include_extras=True)
    return {
        key: get_args(part)[0] if _is_mark(part) else part
        for key, part in hints.items()
    }


def _is_mark(hint: Any) -> bool:
    return getattr(get_origin(hint), "_name", "") in ("Required", "NotRequired")


def _joined(entry: str, key: str) -> str:
    key = shown(key, 40)[1:-1]
    return f"{entry}.{key}" if entry else key


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(shown(part) for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, parts))
    if origin is Annotated:
        mark = parts[1]
        if isinstance(mark, Matching):
            return mark.name
        if isinstance(mark, Between):
            return f"{_described(parts[0])} from {mark.least:,} to {mark.most:,}"
        return f"{_described(parts[0])} of at least {mark.least}"
    if is_typeddict(hint):
        return "an object"
    names = {
        bool: "true or false",
        int: "a whole number of 64 bits",
        float: "a number",
        str: "a text",
        NoneType: "null",
        None: "null",
        list: "a list",
        tuple: "a list",
        dict: "an object",
    }
    return names[origin or hint]
