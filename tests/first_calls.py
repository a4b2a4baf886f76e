"""Shapes are checked in the first calls of every function in every test, not in all.

The import hook of jaxtyping (pyproject.toml) decorates all functions. To check a call
costs more than most of the calls, and a function inside another one is decorated anew
whenever the outer one runs: together more than half of the time of the suite.
"""

from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType
from typing import Any

import jaxtyping

N_CHECKED = 3
"""Calls of a function that are checked in one test."""
_n_calls: dict[int, int] = {}
"""By the number of the function's code, which inner functions share."""
_check_all = jaxtyping.jaxtyped


def install() -> None:
    """Make the import hook decorate with `checked`."""
    jaxtyping.jaxtyped = checked  # type: ignore[assignment]


def forget() -> None:
    """The next calls are first ones: a new test begins."""
    _n_calls.clear()


def checked(fn: Any = None, *, typechecker: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`: of functions alone the first calls."""
    if fn is None:
        return partial(checked, typechecker=typechecker)
    of = partial(checked, typechecker=typechecker)
    if isinstance(fn, FunctionType):
        return _first_calls(fn, typechecker)
    if isinstance(fn, classmethod | staticmethod):
        return type(fn)(of(fn.__func__))
    if isinstance(fn, property):
        parts = (fn.fget, fn.fset, fn.fdel)
        return property(*(part and of(part) for part in parts))
    if isinstance(fn, type) and "__dataclass_fields__" in vars(fn):
        fn.__init__ = of(fn.__init__)
        return fn
    return _check_all(fn, typechecker=typechecker)


def _first_calls(fn: FunctionType, typechecker: Any) -> Callable[..., Any]:
    number = id(fn.__code__)
    all_checked: Any = None

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal all_checked
        n = _n_calls.get(number, 0)
        if n >= N_CHECKED:
            return fn(*args, **kwargs)
        _n_calls[number] = n + 1
        if all_checked is None:
            all_checked = _check_all(fn, typechecker=typechecker)
        return all_checked(*args, **kwargs)

    return call
