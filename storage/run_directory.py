"""Run directories: config, environment, metrics and results; never overwritten."""

import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from circuitcut.storage.atomic import (
    jsonable,
    os_errors_as_user_errors,
    read_object,
    write_json,
    write_text,
)
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import by_first, is_first, n_processes
from circuitcut.storage.provenance import Provenance, source_commit
from circuitcut.storage.reading.files import lines_of, read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import Count, check_entries, check_type
from circuitcut.storage.results_types import check_results
from circuitcut.storage.run_folder import (
    build_folder,
    check_writable,
    folder_lock,
    is_temporary,
    remove_leftovers,
)
from circuitcut.storage.stopping import said_how_to_go_on

DEFAULT_PARENT = Path("runs")
_PACKAGES = ("transformers", "accelerate", "numpy")
_CONFIG, _ENVIRONMENT = "config.json", "environment.json"
_METRICS, _RESULTS = "metrics.jsonl", "results.json"
_RESUMED = {"train_mask", "relearn", "relearn_stages", "knowledge", "class_effects"}
_WITH_MASK = {"train_mask", "import_mask", "select_mask"}


class _Config(TypedDict):
    """The entries of config.json that are no flags."""

    kind: str
    resolved: NotRequired[list[str] | None]
    provenance: NotRequired[Provenance | None]


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
        files: Mapping[str, Any] | None = None,
    ) -> "RunDirectory":
        """A new directory with its `config.json` and `environment.json`.

        It appears with all of them or not at all. With several processes every process
        must call this; all get the folder made by the first one.

        Args:
            parent: Folder of run directories; None means `runs` in the working
                directory.
            kind: Name of the script that writes it, for instance `train_mask`.
            task: Used in the generated name `<task>-<model>-<time>-<id>`.
            model: Used in the generated name; of a hub name or path the last part.
            config: Flags of the run; `kind` is put before them.
            name: Use this folder inside `parent` and generate none.
            files: Further JSON files that the run begins with, by name.

        Raises:
            UserError: When the folder cannot be written, or `name` lies outside of
                `parent` or in another run, or exists and is not empty.
        """
        parent = DEFAULT_PARENT if parent is None else parent
        environment = {"seed": config.get("seed"), **_environment()}
        content = {_CONFIG: {"kind": kind, **config}, _ENVIRONMENT: environment}
        content |= files or {}
        generated = Path(_generated_name(task, model))
        return cls(by_first(lambda: _make(parent, name or generated, content)))

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
    @contextmanager
    def continued(cls, path: Path, kind: str) -> Iterator["RunDirectory"]:
        """The unfinished run at `path`, locked while it goes on.

        What a killed process left half-written is removed. Every process of the run
        must call this.

        Raises:
            UserError: When `path` is not a run of this kind, is finished, or another
                process works on it.
        """
        run = cls.open(path)
        if run.kind != kind:
            raise UserError(
                f"--resume {path} is a {run.kind} run; {kind} continues its own runs"
            )
        with run.locked():
            by_first(run.check_unfinished)
            by_first(lambda: remove_leftovers(run.path))
            yield run

    def check_unfinished(self) -> None:
        """Refuse to go on with a finished run.

        Raises:
            UserError: When it is finished, or has lost its mask since.
        """
        self.check_has_mask()
        if self.is_finished:
            raise UserError(
                f"{self.path} is finished; start a new run without --resume"
            )

    def check_has_mask(self) -> None:
        """Refuse a finished run of masks whose mask is gone.

        Raises:
            UserError: Saying how to get it back.
        """
        is_gone = not (self.path / "mask.json").exists()
        if self.is_finished and self.kind in _WITH_MASK and is_gone:
            again = command(self.kind, {"config": self.path / _CONFIG})
            raise UserError(
                f"{self.path} is finished, but its mask.json is gone; restore it, or "
                f"repeat the run with {again}"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away from this run while the block runs.

        Every process of the run must call this; the first one holds the lock, which
        ends with the process at the latest. A signal or a full disk in the block is
        raised on with the command that goes on.

        Raises:
            UserError: When another process works on this run.
        """
        with folder_lock(self.path), said_how_to_go_on(self.path, self.how_to_go_on):
            yield

    def how_to_go_on(self) -> str:
        """What to do after this run was stopped: with the command to type."""
        if self.is_finished:
            return f"the run {self.path} is finished"
        if self.kind in _RESUMED:
            return f"continue with {command(self.kind, {'resume': self.path})}"
        return f"repeat it with {command(self.kind, {'config': self.path})}"

    @classmethod
    def newest(cls, parent: Path, kind: str) -> "RunDirectory":
        """The finished run of `kind` under `parent` with the latest start time.

        Raises:
            UserError: When there is none.
        """
        _check_no_file(parent)
        runs = [
            cls(path.parent)
            for path in parent.glob(f"*/{_CONFIG}")
            if not is_temporary(path.parent)
        ]
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
        """`config.json`: `kind`, the flags of the run and its provenance.

        Raises:
            UserError: When it names no kind: it is empty or damaged.
        """
        return read_config(self.path)

    @property
    def environment(self) -> dict[str, Any]:
        """`environment.json`: versions, commit, seed, device, threads and command."""
        return read_object(self.path / _ENVIRONMENT)

    @property
    def results(self) -> dict[str, Any]:
        """`results.json`, every entry of the type that docs/schema.md gives.

        Raises:
            UserError: While the run is not finished, or when an entry has another type.
        """
        results = read_object(self.path / _RESULTS)
        check_results(results, self.path / _RESULTS)
        return results

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
            UserError: When an earlier line is not JSON, has no step, or holds something
                other than numbers; the message has its number.
        """
        path = self.path / _METRICS
        if not path.exists():
            return []
        text = read_text(path)
        # the text after the last newline is empty, or the run was killed while writing
        whole = text[: text.rfind("\n") + 1]
        return [_metrics_entry(path, *line) for line in enumerate(lines_of(whole), 1)]

    def truncate_metrics(self, step: int, prefix: str = "") -> None:
        """Keep the entries before `step`, so that a resumed run logs each step once.

        A last line that was torn by a kill is cut off too.

        Args:
            step: First step that will be logged again.
            prefix: Only entries with a number whose name begins with it are removed;
                those of the run's other conditions stay.
        """
        if not self.is_writer or not (self.path / _METRICS).exists():
            return
        kept = [
            entry
            for entry in self.metrics()
            if entry["step"] < step
            or not any(key.startswith(prefix) for key in entry if key != "step")
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


def _metrics_entry(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        entry = parse_json(line)
    except JsonProblem as error:
        raise UserError(f"{where} is not JSON: {error}; delete this line") from error
    check_type(entry, dict[str, float | None], where)
    check_entries({"step": None} | entry, {"step": Count}, where)
    return dict(entry)


def run_holding(path: Path) -> Path | None:
    """The run directory that contains `path`, if there is one."""
    return next((folder for folder in (path, *path.parents) if is_run(folder)), None)


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, finished or not."""
    return (path / _CONFIG).is_file() and (path / _ENVIRONMENT).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of the run directory at `path`.

    Raises:
        UserError: When it is missing, or names no kind: it is empty or damaged.
    """
    file = path / _CONFIG
    config = read_object(file)
    if not config.get("kind"):
        raise UserError(
            f"{file} does not name the kind of its run: it is empty or damaged; "
            "restore it"
        )
    check_type(config, _Config, str(file))
    return config


def has_lost_config(path: Path) -> bool:
    """Whether `path` has other files of a run, but no `config.json`."""
    others = (_ENVIRONMENT, _RESULTS, _METRICS)
    return not (path / _CONFIG).exists() and any((path / n).exists() for n in others)


def check_not_of_a_run(file: Path, flag: str) -> None:
    """Refuse to write another program's file under a name that a run gives its own.

    Raises:
        UserError: When `file` would be `results.json`, `mask.json`, ... of a run.
    """
    names = {_CONFIG, _ENVIRONMENT, _METRICS, _RESULTS, "settings.json", "mask.json"}
    names |= {"mask.safetensors", "ranking.json", "ranking.safetensors"}
    if file.name in names and (is_run(file.parent) or has_lost_config(file.parent)):
        raise UserError(
            f"{flag} must not have the name of a run's own file, got {file}; name "
            "another file"
        )


def _make(parent: Path, name: Path, content: Mapping[str, Any]) -> Path:
    """Make the folder of a new run, with JSON files by name."""
    _check_new(parent, name)
    build_folder(parent / name, content)
    return parent / name


def _check_new(parent: Path, name: Path | None) -> None:
    """Refuse a folder that is not empty or not inside, and an unwritable parent."""
    if name is not None:
        _check_inside(parent, name)
        path = parent / name
        with os_errors_as_user_errors(path):
            if path.exists() and any(path.iterdir()):
                raise UserError(
                    f"run folder {path} exists and is not empty; choose another name, "
                    "or continue it with --resume"
                )
    _check_no_file(parent)
    check_writable(parent)


def _check_no_file(parent: Path) -> None:
    """Refuse a parent of runs that is a file."""
    if parent.exists() and not parent.is_dir():
        raise UserError(f"--run_dir must be a folder, got the file {parent}")


def _check_inside(parent: Path, name: Path) -> None:
    """Refuse a name that leads out of the parent folder, or into another run."""
    root, path = parent.resolve(), (parent / name).resolve()
    if root not in path.parents:
        raise UserError(
            f"--name must stay inside --run_dir {parent}, got {name}; name the parent "
            "folder with --run_dir"
        )
    between = path.parents[: path.parents.index(root)]
    if holder := next((folder for folder in between if is_run(folder)), None):
        raise UserError(
            f"--name {name} lies in the run {holder}; name a folder outside of it"
        )


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
        "commit": source_commit(),
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
