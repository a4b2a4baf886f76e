"""Several processes in one run: the first one writes and sends the result to all.

The number of processes is that of torch's process group, which accelerate sets up.
Without a process group there is one process, and nothing is sent.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

from circuitcut.storage.errors import UserError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes files: it is the only one, or the first."""
    return not _several() or distributed.get_rank() == 0


def n_processes() -> int:
    """How many processes work on this run."""
    return distributed.get_world_size() if _several() else 1


def by_first(make: Callable[[], T]) -> T:
    """Call `make` on the first process; return its result on every process.

    Every process must call this.

    Args:
        make: Called on the first process only; its result is small and can be pickled.

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
    result, error_text = message[0]
    if error_text is not None:
        raise UserError(error_text)
    return result  # type: ignore[return-value]  # without an error text it is a T


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
