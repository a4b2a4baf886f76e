"""Several processes in one run: the first one writes and sends the result to all.

The number of processes is that of torch's process group, which accelerate sets up.
Without a process group there is one process, and nothing is sent.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from circuitcut.storage.errors import UserError

T = TypeVar("T")
PARENT = "CIRCUITCUT_PARENT"
"""Environment variable: number of the process with which this one ends."""
_PAUSE = 0.5
"""Seconds between two looks at it."""


def is_first() -> bool:
    """Whether this process writes files: it is the only one, or the first."""
    group = _group()
    return group is None or group.get_rank() == 0


def n_processes() -> int:
    """How many processes work on this run."""
    group = _group()
    return 1 if group is None else group.get_world_size()


def by_first(make: Callable[[], T]) -> T:
    """Call `make` on the first process; return its result on every process.

    Every process must call this.

    Args:
        make: Called on the first process only; its result is small and can be pickled.

    Raises:
        UserError: On every process, when `make` raises it.
    """
    group = _group()
    if group is None:
        return make()
    message: list[tuple[T | None, str | None]] = [(None, None)]
    if is_first():
        try:
            message = [(make(), None)]
        except UserError as error:
            message = [(None, str(error))]
    group.broadcast_object_list(message, src=0)
    result, error_text = message[0]
    if error_text is not None:
        raise UserError(error_text)
    return result  # type: ignore[return-value]  # without an error text it is a T


def end_with_parent() -> None:
    """Let this process end, as by SIGTERM, when the one named by `PARENT` has ended.

    A process that was killed cannot stop those that it has started.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signal.SIGTERM)


def _group() -> Any:
    """The module torch.distributed with a process group; None without one.

    Whoever set up a process group has imported torch, which takes seconds.
    """
    module = sys.modules.get("torch.distributed")
    has_group = module and module.is_available() and module.is_initialized()
    return module if has_group else None
