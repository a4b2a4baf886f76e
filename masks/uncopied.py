"""Modules that cannot be copied or pickled within a `with` block, because they are cut.

Hooks and replaced methods are copied with a module, and nothing would ever remove them
from the copy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from circuitcut.storage.errors import UserError

_REDUCE = "__reduce_ex__"
"""What `copy.deepcopy` and `pickle` call on an object."""


@contextmanager
def uncopied(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Refuse deep copies and pickles of `modules` inside the context.

    Raises:
        UserError: Inside the context, when `copy.deepcopy`, `pickle` or `torch.save`
            meets one of them, alone or within a model.
    """
    earlier = {module: vars(module).get(_REDUCE) for module in modules}
    try:
        for module in earlier:
            vars(module)[_REDUCE] = _refuse
        yield
    finally:
        for module, method in earlier.items():
            vars(module).pop(_REDUCE, None)
            if method is not None:
                vars(module)[_REDUCE] = method


def _refuse(_: Any) -> Any:
    raise UserError(
        "a model inside the context of a mask cannot be copied or pickled, for the "
        "copy would stay cut for good; leave the context first, and apply the mask to "
        "the copy or write it into its weights (FrozenMask.bake_)"
    )
