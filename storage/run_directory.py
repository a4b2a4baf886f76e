"""Run directories: config, environment, metrics and results; never overwritten."""

import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from circuitcut.storage.atomic import (
    jsonable,
    os_errors_as_user_errors,
    read_json,
    temporary_name,
    write_json,
    write_text,
)
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import by_first, is_first, n_processes

DEFAULT_PARENT = Path("runs")
_PACKAGES = ("transformers", "accelerate", "numpy")
_CONFIG, _ENVIRONMENT = "config.json", "environment.json"
_METRICS, _RESULTS = "metrics.jsonl", "results.json"


class RunDirectory:
    """The files of one run, by name.

    Made by `create`, `open` or `newest`. `config.json`, `environment.json` and
    `results.json` are complete or absent; `metrics.jsonl` has one JSON object per line.
    With several processes only the first one makes the folder and writes into it;
    `log`, `truncate_metrics` and `write_results` do nothing in the other processes.
    """

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(
        cls,
        parent: Path | None,
        *,
        kind: str,
        task: str,
        model: str,
        config: Mapping[str, Any],
        name: Path | None = None,
    ) -> "RunDirectory":
        """A new directory with its `config.json` and `environment.json`.

        With several processes every process must call this; all get the folder made by
        the first one.

        Args:
            parent: Folder of run directories; None means `runs` in the working
                directory.
            kind: Name of the script that writes it, for instance `train_mask`.
            task: Used in the generated name `<task>-<model>-<time>-<id>`.
            model: Used in the generated name; of a hub name or path the last part.
            config: Flags of the run; `kind` is put before them.
            name: Use this folder (under `parent`, unless absolute) and generate none.

        Raises:
            UserError: When the folder cannot be written, or `name` exists and is not
                empty.
        """
        parent = DEFAULT_PARENT if parent is None else parent
        content = {"kind": kind, **config}
        return cls(by_first(lambda: _make(parent, name, task, model, content)))

    @classmethod
    def check(cls, parent: Path | None, name: Path | None = None) -> None:
        """Check, before long computations, that `create` can make this run.

        Raises:
            UserError: As in `create`.
        """
        by_first(lambda: _check_new(parent or DEFAULT_PARENT, name))

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The run directory at `path`.

        Raises:
            UserError: When `path` is not a run directory.
        """
        for name in (_CONFIG, _ENVIRONMENT):
            if not (path / name).is_file():
                raise UserError(f"{path} is not a run directory: it has no {name}")
        return cls(path)

    @classmethod
    def open_unfinished(cls, path: Path) -> "RunDirectory":
        """The run at `path`, to go on with it.

        Raises:
            UserError: When `path` is not a run directory, or the run is finished.
        """
        run = cls.open(path)
        if run.is_finished:
            raise UserError(f"{run.path} is finished; start a new run without --resume")
        return run

    @classmethod
    def newest(cls, parent: Path, kind: str) -> "RunDirectory":
        """The finished run of `kind` under `parent` with the latest start time.

        Raises:
            UserError: When there is none.
        """
        runs = [cls(path.parent) for path in parent.glob(f"*/{_CONFIG}")]
        finished = [run for run in runs if run.is_finished and run._has_kind(kind)]
        if not finished:
            raise UserError(
                f"no finished {kind} run under {parent}; run scripts/{kind}.py first, "
                "or name a run"
            )
        return max(finished, key=lambda run: (run._started, run.path.name))

    @property
    def kind(self) -> str:
        """Name of the script that wrote it."""
        return str(self.config.get("kind"))

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`: `kind` and the flags of the run."""
        return _read_object(self.path / _CONFIG)

    @property
    def environment(self) -> dict[str, Any]:
        """`environment.json`: versions, commit, seed, device, threads and command."""
        return _read_object(self.path / _ENVIRONMENT)

    @property
    def results(self) -> dict[str, Any]:
        """`results.json`; raises UserError while the run is not finished."""
        return _read_object(self.path / _RESULTS)

    @property
    def is_finished(self) -> bool:
        """Whether `results.json` was written."""
        return (self.path / _RESULTS).is_file()

    @property
    def is_writer(self) -> bool:
        """Whether this process writes into the directory."""
        return is_first()

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the checkpoints; it may not exist yet."""
        return self.path / "checkpoints"

    @property
    def figures_path(self) -> Path:
        """Folder of the figures; it may not exist yet."""
        return self.path / "figures"

    def log(self, step: int, **scalars: Any) -> None:
        """Append `{"step": step, ...}` to `metrics.jsonl`; NaN becomes null."""
        if not self.is_writer:
            return
        path = self.path / _METRICS
        line = json.dumps(jsonable({"step": step, **scalars}))
        with os_errors_as_user_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The entries of `metrics.jsonl` in order, without an incomplete last line.

        Raises:
            UserError: When an earlier line is not JSON; the message has its number.
        """
        path = self.path / _METRICS
        if not path.exists():
            return []
        # the text after the last newline is empty, or the run was killed while writing
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON: {error.msg}"
                ) from error
        return entries

    def truncate_metrics(self, step: int, **labels: Any) -> None:
        """Keep the entries before `step`, so that a resumed run logs each step once.

        With `labels` only entries that have all these labels are removed; entries of
        the run's other conditions stay.
        """
        if not self.is_writer:
            return
        kept = [
            entry
            for entry in self.metrics()
            if entry["step"] < step
            or any(entry.get(key) != value for key, value in labels.items())
        ]
        lines = [json.dumps(entry) + "\n" for entry in kept]
        write_text(self.path / _METRICS, "".join(lines))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`, which finishes the run; NaN becomes null."""
        if self.is_writer:
            write_json(self.path / _RESULTS, results)

    def _has_kind(self, kind: str) -> bool:
        try:
            return self.kind == kind
        except UserError:  # a damaged run is never chosen
            return False

    @property
    def _started(self) -> str:
        try:
            return str(self.environment.get("started", ""))
        except UserError:
            return ""


def run_holding(path: Path) -> Path | None:
    """The run directory that contains `path`, if there is one."""
    return next((folder for folder in (path, *path.parents) if is_run(folder)), None)


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, finished or not."""
    return (path / _CONFIG).is_file() and (path / _ENVIRONMENT).is_file()


def _make(
    parent: Path, name: Path | None, task: str, model: str, config: Mapping[str, Any]
) -> Path:
    """Make the folder of a new run, with its config and environment."""
    path = parent / (name or _generated_name(task, model))
    _check_new(parent, name)
    with os_errors_as_user_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_json(path / _CONFIG, config)
    write_json(path / _ENVIRONMENT, {"seed": config.get("seed"), **_environment()})
    return path


def _check_new(parent: Path, name: Path | None) -> None:
    """Refuse a folder that is not empty, and a parent that cannot be written to."""
    if name is not None:
        path = parent / name
        with os_errors_as_user_errors(path):
            if path.exists() and any(path.iterdir()):
                raise UserError(
                    f"run folder {path} exists and is not empty; choose another name, "
                    "or continue it with --resume"
                )
    probe = temporary_name(parent / "probe")
    with os_errors_as_user_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _generated_name(task: str, model: str) -> str:
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{task}-{Path(model).name}")[:80]
    return f"{stem}-{time}-{secrets.token_hex(3)}"


def _environment() -> dict[str, Any]:
    """Versions and hardware, which also determine the results of a run."""
    import torch  # takes seconds, and a report does not need it

    device = torch.accelerator.current_accelerator()
    return {
        "started": datetime.now(UTC).isoformat(),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build: 2.13.0+cu130
        **{name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "device": "cpu" if device is None else str(device),
        "torch_threads": torch.get_num_threads(),
        "processes": n_processes(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of this source tree, with `+changes` if files differ from it.

    None outside git.
    """
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        )
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
