"""Several processes of one run: the first one writes, and all know what it wrote.

Read from torch's process group, which accelerate sets up; without one there is one
process, and nothing is sent.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

from circuitcut.storage.errors import UserError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first."""
    return not _several() or distributed.get_rank() == 0


def n_processes() -> int:
    """How many processes work on this run."""
    return distributed.get_world_size() if _several() else 1


def by_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first process, on all of them; all must call this.

    Args:
        make: Called on the first process alone; its result is small and plain.

    Raises:
        UserError: On every process, when `make` raises it.
    """
    if not _several():
        return make()
    message: list[tuple[T | None, str | None]] = [(None, None)]
    if is_first():
        try:
            message = [(make(), None)]
        except UserError as error:
            message = [(None, str(error))]
    distributed.broadcast_object_list(message, src=0)
    made, refusal = message[0]
    if refusal is not None:
        raise UserError(refusal)
    return made  # type: ignore[return-value]  # of the first process: T


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
