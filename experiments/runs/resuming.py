"""A run goes on with its own flags, data and weights alone; what differs is named."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import deciding, make_accelerator
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import PROVENANCE, differences, setting_differences
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.base import Corpus
from circuitcut.training.config import config_dict

C = TypeVar("C", bound=TaskConfig)
T = TypeVar("T")
_log = logging.getLogger(__name__)


def begin_or_continue(
    config: C,
    resume: Path | None,
    kind: str,
    work: Callable[[C, RunDirectory | None], Path],
) -> Path:
    """Do the work of a new run, or of that of `--resume`, locked against others.

    Args:
        resume: The run that goes on; None: a new one.
        work: Called with the flags and the run that goes on; returns the run's path.

    Raises:
        UserError: When the run that goes on is finished, of another kind or of other
            flags, or another process works on it.
    """
    make_accelerator(config)  # connects the processes: one of them locks the run
    return continued(config, resume, kind, work)


def continued(
    config: T,
    resume: Path | None,
    kind: str,
    work: Callable[[T, RunDirectory | None], Path],
) -> Path:
    """`begin_or_continue` of scripts that run in one process and have no task."""
    if resume is None:
        return work(config, None)
    with RunDirectory.continued(resume, kind) as resumed:
        check_flags(config, resumed)
        return work(config, resumed)


def check_flags(config: Any, run: RunDirectory) -> None:
    """Refuse to continue a run with other flags than its own.

    Raises:
        UserError: Naming every flag that differs.
    """
    saved, now = deciding(run.config), deciding(config_dict(config))
    if found := setting_differences(saved, now):
        raise UserError(
            f"--resume {run.path} continues the run with its own flags, got others: "
            f"{', '.join(found)}; leave them out, or start a new run"
        )


def data_check(run: RunDirectory | None) -> Callable[[Corpus], None]:
    """What refuses data that have changed since a run began.

    Args:
        run: The run that goes on; None: a new one, which takes any data.
    """

    def check(corpus: Corpus) -> None:
        check_inputs(run, {"data_sha256": corpus.fingerprint()})

    return check


def begun(
    run: RunDirectory | None, made_with: Mapping[str, Any]
) -> RunDirectory | None:
    """The run that goes on, unless its inputs have changed since; None for a new one.

    Args:
        made_with: The provenance of what would go on.

    Raises:
        UserError: Naming what differs.
    """
    check_inputs(run, made_with)
    if run is not None:
        before = (run.config.get(PROVENANCE) or {}).get("code_version")
        if before is None:
            _log.info("%s has no provenance: its inputs are not checked", run.path)
        elif before != made_with["code_version"]:
            _log.info(
                "%s was begun by code %s, this is %s: numbers may differ",
                run.path,
                before,
                made_with["code_version"],
            )
    return run


def check_inputs(run: RunDirectory | None, now: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose data, weights or mask have changed since.

    Args:
        run: The run that goes on; None: a new one, which takes any.
        now: A provenance, or a part of one.

    Raises:
        UserError: Naming what differs.
    """
    if run is None:
        return
    if found := differences(run.config.get(PROVENANCE) or {}, now):
        raise UserError(
            f"--resume {run.path} needs the inputs that the run began with; changed: "
            f"{', '.join(found)}; restore them, or start a new run"
        )
