"""A mask is measured on the data it was made on, or on others that are asked for."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from circuitcut.experiments.flags import DATA_FLAGS, TaskConfig
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.saved_runs import task_flags_at
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Corpus

_KEY = "data_sha256"


def same_data(
    mask: FrozenMask, path: Path, given: TaskConfig, *, allow_other: bool
) -> Callable[[Corpus], None]:
    """What refuses data that have changed since the mask was made.

    Other data are accepted where a flag of `given` names them, or by `allow_other`; see
    `other_data_warning`.

    Args:
        path: Where the mask lies.
        given: The flags as they were given, without those of the mask's run.
    """

    def check(corpus: Corpus) -> None:
        before, now = mask.provenance.get(_KEY), corpus.fingerprint()
        if before in (None, now) or allow_other or _asks_for_other(given, path):
            return
        raise UserError(
            f"the data have changed since the mask in {path} was made (SHA-256 "
            f"{before[:8]} before, {now[:8]} now); restore them, or give "
            "--allow_other_data"
        )

    return check


def other_data_warning(mask: FrozenMask, experiment: Experiment) -> str | None:
    """What results say of a mask that was made on other data; None for the same."""
    if mask.provenance.get(_KEY) in (None, experiment.origin[_KEY]):
        return None
    return (
        "the mask was made on other data than these: examples that it was trained on "
        "may be among the held-out ones."
    )


def _asks_for_other(given: TaskConfig, path: Path) -> bool:
    """Whether a flag was given that names other data than those of the mask's run."""
    default = {f.name: f.default for f in fields(TaskConfig)}
    saved = task_flags_at(path)
    return any(
        getattr(given, name) not in (default[name], [])
        and getattr(given, name) != saved.get(name, default[name])
        for name in DATA_FLAGS
    )
