"""Flags: a frozen dataclass a script, from the command line and from a saved config.json."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from storage.atomic import jsonable, read_json
from storage.errors import UserError

T = TypeVar("T")
NONE = "none"
"""What stands for no value on the command line, for instance `--clip_norm none`."""

_NOT_FLAGS = ("kind", "resume")
"""Keys of a config.json that are not taken over: they belong to the run itself."""

_OURS = (
    *("data", "tasks", "models", "masks", "storage", "training"),
    *("attribution", "relearning", "reports"),
)


def parse_config(config_class: type[T], argv: list[str] | None = None) -> T:
    """The flags of `argv` (default: the command line) as a `config_class`.

    `--config FILE` (or a run directory) puts a saved config.json before the other flags,
    which override it; a `--resume RUN` flag of `config_class` does the same with RUN's.
    Lists may be empty, and an optional value may be `none`.

    Raises:
        SystemExit: With status 2 and one line on stderr when a flag is unknown, a value
            has the wrong type or `config_class` refuses the combination; with status 0
            after `--help`.
    """
    parser = _Parser(config_class)
    argv = sys.argv[1:] if argv is None else argv
    try:
        saved = _saved_config(argv)
        flags = [] if saved is None else _flags_of(config_class, saved)
        parser.parse_args([*flags, *argv])  # refuses unknown flags by name
        return parser.parse_args_into_dataclasses(
            [*flags, *argv], look_for_args_file=False
        )[0]
    except ValueError as error:
        parser.error(str(error))


def run_script(main: Callable[[T], Any], config_class: type[T]) -> None:
    """Parse the command line and run `main`, telling the user in one line what is wrong.

    Raises:
        SystemExit: With status 2 after a UserError, 130 after an interruption. Any other
            exception keeps its traceback.
    """
    config = parse_config(config_class)
    _quiet_libraries()
    try:
        main(config)
    except UserError as error:
        _leave(2, f"error: {error}")
    except KeyboardInterrupt as error:
        _leave(
            130, f"interrupted: {error or 'a run can be continued with --resume RUN'}"
        )


def config_dict(config: Any) -> dict[str, Any]:
    """The fields of a config in JSON types, as `config.json` holds them."""
    return jsonable(asdict(config))


class _Parser(HfArgumentParser):
    """HfArgumentParser with whole flags, empty lists, `none`, and errors in one line."""

    def __init__(self, config_class: Any):
        hints = get_type_hints(config_class)
        self._optional = {
            f"--{name}" for name in hints if NoneType in get_args(hints[name])
        }
        description = (config_class.__doc__ or "").strip()
        super().__init__(config_class, allow_abbrev=False, description=description)
        self.add_argument(
            "--config",
            type=Path,
            help="config.json of an earlier run, or its folder: repeat it; flags override",
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        if settings.get("nargs") == "+":
            settings["nargs"] = "*"
        if settings.get("help"):
            settings["help"] = settings["help"].replace("%", "%%")
        if self._optional.intersection(names):
            settings["type"] = _or_none(settings.get("type", str))
            if "choices" in settings:
                settings["choices"] = (*settings["choices"], None)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        return None if text == NONE else convert(text)

    converted.__name__ = getattr(convert, "__name__", "value")
    return converted


def _saved_config(argv: list[str]) -> dict[str, Any] | None:
    """The config.json that `argv` names, with its path under the key `config`."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", "--resume", dest="path", type=Path)
    try:
        path = parser.parse_known_args(argv)[0].path
    except argparse.ArgumentError:
        return None  # without a value: the real parser says so
    if path is None:
        return None
    path = path / "config.json" if path.is_dir() else path
    saved = read_json(path)
    if not isinstance(saved, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(saved).__name__}")
    return {**saved, "config": str(path)}


def _flags_of(config_class: type, saved: Mapping[str, Any]) -> list[str]:
    """The command line that gives a saved config."""
    known = {field.name: field for field in fields(config_class) if field.init}
    flags: list[str] = []
    for name, value in saved.items():
        if name in _NOT_FLAGS or name == "config":
            continue
        if name not in known:
            raise UserError(
                f"{saved['config']}: unknown key {name!r}; known: {', '.join(known)}"
            )
        if value is None:
            if known[name].default not in (None, MISSING):
                flags.append(f"--{name}={NONE}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            raise UserError(f"{saved['config']}: key {name!r} must not be nested")
        else:
            flags.append(f"--{name}={value}")
    return flags


def _quiet_libraries() -> None:
    """Show our own log lines, and of the libraries only errors."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in (*_OURS, "__main__"):
        logging.getLogger(package).setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.simplefilter("ignore", category)


def _leave(status: int, message: str) -> NoReturn:
    name = Path(sys.argv[0]).name
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n")
    raise SystemExit(status)
