"""Flags: one frozen dataclass per script, read from the command line or config.json."""

import argparse
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypedDict, TypeVar, get_args, get_type_hints

from transformers.hf_argparser import HfArgumentParser
from transformers.utils import logging as transformers_logging

from circuitcut.storage.atomic import jsonable, read_object
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import DECIDES_DEFAULTS, FREE_TEXT, OWN_METADATA
from circuitcut.storage.flag_ranges import check_word
from circuitcut.storage.progress import FIRST, Waiting
from circuitcut.storage.provenance import PROVENANCE
from circuitcut.storage.reading.typed_fields import check_entries, check_type
from circuitcut.storage.stopping import FULL, full
from circuitcut.training.interruption import (
    last_words,
    leave_on_signals,
    stopped_by_signals,
)

T = TypeVar("T")
PROGRAM = "circuitcut"
"""The console command: `circuitcut VERB` runs a script."""
NONE = "none"
"""Means "no value" on the command line, for instance `--clip_norm none`."""

RESOLVED = "resolved"
"""In config.json: names of the flags whose value the program chose."""
_log = logging.getLogger(__name__)
_imports = Waiting("loading torch and transformers", first=FIRST)
_at_end_of_imports: list[Callable[[], None]] = []
_KEYS_OF_THE_RUN = ("kind", "name", "resume", RESOLVED, PROVENANCE)
"""Keys of a config.json that describe the saved run and are not read as flags."""

_OURS = ("circuitcut", "__main__")
_NOISY = (
    r"(torch|transformers|accelerate|datasets|huggingface_hub|tensorboard|sklearn)\b"
)


def parse_config(
    config_class: type[T],
    argv: list[str] | None = None,
    *,
    description: str | None = None,
) -> T:
    """The flags of `argv` (default: the command line) as a `config_class`.

    `--config FILE` (or a run directory) reads a saved config.json; the other flags
    override it. Default values that the saved run took are taken again, unless a flag
    that decides them (`storage.flag_fields`) has another value now. If `config_class`
    has a flag `--resume RUN`, that flag reads the config.json of RUN in the same way.
    Lists may be empty. The word `none` gives an optional value None, unless `none` is
    one of its choices.

    `--help` shows the flags under their headings (`Headings`), with the values that the
    method `chosen` of a config gives for those that are not given.

    Args:
        config_class: Dataclass whose fields are the flags.
        description: First part of the `--help` text; default: the class's docstring.

    Raises:
        SystemExit: With status 2 and one line on stderr when a flag is unknown, a value
            has the wrong type, or `config_class` refuses it; with 0 after `--help`.
    """
    parser = _Parser(config_class, description or config_class.__doc__ or "")
    argv = sys.argv[1:] if argv is None else argv
    try:
        parser.check_words(argv)
        saved = _saved_config(argv)
        flags = [] if saved is None else _flags_of(config_class, *saved)
        words = [word for word in argv if word not in _HELP]
        if saved is not None and flags and parser.decides_anew(flags, words):
            flags = _flags_of(config_class, as_given(saved[0]), saved[1])
        if len(words) < len(argv):
            parser.show_chosen([*flags, *words])
        parser.check_words(flags)
        parser.parse_args([*flags, *argv])  # refuses unknown flags by name
        parsed = parser.parse_args_into_dataclasses(
            [*flags, *argv], look_for_args_file=False
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return parsed[0]


def parse_first(module: str, config_class: type[Any], description: str | None) -> None:
    """Answer `--help` and wrong flags before a script's other imports, which are slow.

    A script calls this between its flags and these imports. It also says that they
    begin. Nothing happens where the script is only imported.

    Args:
        module: `__name__` of the script.
        description: `__doc__` of the script.

    Raises:
        SystemExit: See `parse_config`.
    """
    verb = module.rpartition(".")[2].replace("_", "-")
    if module != "__main__" and Path(sys.argv[0]).name != f"{PROGRAM} {verb}":
        return
    parse_config(config_class, description=description)
    _quiet_libraries()
    _at_end_of_imports.append(leave_on_signals(Path(sys.argv[0]).name))
    _log.info("loading torch and transformers")
    _imports.start()


def run_script(main: Callable[[T], Any], config_class: type[T]) -> None:
    """Parse the command line and run `main`; `--help` shows the script's docstring.

    Raises:
        SystemExit: With status 2 after a UserError or on a full disk, 130 after SIGINT,
            143 after SIGTERM and 141 where nobody reads the output any more (`| head`);
            all print one line on stderr. Any other exception keeps its traceback.
    """
    description = sys.modules[main.__module__].__doc__
    _imports.stop()
    try:
        with _handlers_from_before_imports(), stopped_by_signals():
            config = parse_config(config_class, description=description)
            _quiet_libraries()
            main(config)
    except UserError as error:
        _exit(2, f"error: {error}")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            # what is left in the buffer would fail again at the interpreter's end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _exit(141, "stopped: nobody reads the output any more")
        if error.errno not in FULL:
            raise
        _exit(2, f"error: {full(error)}")
    except KeyboardInterrupt as error:
        _exit(*last_words(error))
    else:  # not after an error: other processes may still wait for this one
        leave_process_group()


def _is_output_closed() -> bool:
    """Whether the program that read stdout has ended."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)  # errors alone, which are told without being asked for
    return bool(pipe.poll(0))


@contextmanager
def _handlers_from_before_imports() -> Iterator[None]:
    """Put them back at the end of the block, which installs others: without a gap."""
    try:
        yield
    finally:
        while _at_end_of_imports:
            _at_end_of_imports.pop()()


def leave_process_group() -> None:
    """Stop the threads of the process group, if this process is in one.

    Threads that outlive the interpreter abort a run that was complete (gloo:
    pytorch/pytorch pull request 179291).
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def config_dict(config: Any) -> dict[str, Any]:
    """The fields of a config in JSON types."""
    return jsonable(asdict(config))


def saved_flags(config: Any) -> dict[str, Any]:
    """The fields of a config as `config.json` holds them.

    No value is the word `none`, as on the command line; where that word is one of the
    choices of a flag, it is null.
    """
    hints = get_type_hints(type(config))
    return {
        name: NONE if value is None and not has_choice_none(hints[name]) else value
        for name, value in config_dict(config).items()
    }


def check_saved(config_class: type, saved: Mapping[str, Any], path: Path) -> None:
    """Check that the flags in a saved config have the types of their fields.

    A flag may be null, which older runs wrote, or the word `none`. Entries that are no
    flags are no matter of this.

    Args:
        path: Of the file, for messages.

    Raises:
        UserError: Naming the flag, what it must be, and what was found.
    """
    flags = {f.name for f in fields(config_class)}
    hints = get_type_hints(config_class)
    given = {
        name: _in_json(hints[name])
        for name, value in saved.items()
        if name in flags and value not in (None, NONE)
    }
    check_entries(saved, given, str(path))


def _in_json(hint: Any) -> Any:
    """A type hint of a flag as its value stands in JSON: paths are text."""
    parts = get_args(hint)
    if NoneType in parts:
        return _in_json(parts[0]) | None
    return str if hint is Path else hint


def has_choice_none(hint: Any) -> bool:
    """Whether the word `none` is one of the choices of a flag with this type."""
    return any(NONE in get_args(part) for part in (hint, *get_args(hint)))


def as_given(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config without the values that the program chose."""
    chosen = saved.get(RESOLVED) or []
    return {name: value for name, value in saved.items() if name not in chosen}


_HELP = {"-h", "--help"}
_LONG = 200
"""Characters of a word after which an error message cuts it."""
_FIRST, _LAST = ("data", "model", "what is cut"), "run"
"""The first headings of the help text, and the last one."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows defaults other than None, and keeps the line breaks of the description.

    Of the spellings of a flag only one is shown.
    """

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return action.option_strings[-1]
        values = self._format_args(action, action.dest.upper())
        return f"{action.option_strings[0]} {values}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default == [] or action.nargs == 0:
            return action.help  # no default to show, or a flag `--no_x`
        return f"{action.help} (default: {_shown(action.default)})"


class _Parser(HfArgumentParser):
    """HfArgumentParser without abbreviated flags; it reads `none` and empty lists.

    Its error messages have one line.
    """

    def __init__(self, config_class: Any, description: str):
        self._config_class = config_class
        self._headings = _headings_of(config_class)
        self._groups: dict[str, Any] = {}
        self._raises = False
        hints = get_type_hints(config_class)
        optional = [name for name in hints if NoneType in get_args(hints[name])]
        self._deciding = [
            f.name for f in fields(config_class) if f.metadata.get(DECIDES_DEFAULTS)
        ]
        self._free_texts = {
            f"--{f.name}" for f in fields(config_class) if f.metadata.get(FREE_TEXT)
        }
        self._optional = {f"--{name}" for name in optional}
        super().__init__(
            config_class,
            allow_abbrev=False,
            description=description.strip(),
            formatter_class=_Help,
            usage="%(prog)s [flags]",
        )
        # argparse takes -1 for a value, but -1e-3 and -inf for flags
        self._negative_number_matcher = re.compile(r"-(\.?[0-9]|inf|nan)", re.I)
        self.add_argument(
            "--config",
            type=Path,
            help="config.json or folder of an earlier run: use the flags of that run",
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        for key in OWN_METADATA:
            settings.pop(key, None)
        if settings.get("nargs") == "+":
            settings["nargs"] = "*"
        if settings.get("action") == "store_false":
            settings["help"] = f"without --{settings['dest']}"
        if settings.get("help"):
            settings["help"] = settings["help"].replace("%", "%%")
        choices = settings.get("choices", ())
        if self._optional.intersection(names) and NONE not in choices:
            settings["type"] = _or_none(settings.get("type", str))
            if choices:
                settings["choices"] = (*choices, None)
                settings["metavar"] = f"{{{','.join(choices)},{NONE}}}"
        name = settings.get("dest", names[0].removeprefix("--"))
        group = self._groups.get(self._headings.get(name, ""))
        if group is not None:
            return group.add_argument(*names, **settings)
        return super().add_argument(*names, **settings)

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        for heading in dict.fromkeys(self._headings.values()):
            self._groups[heading] = self.add_argument_group(heading)
        super()._add_dataclass_arguments(dtype)

    def check_words(self, argv: Sequence[str]) -> None:
        """Refuse words that no file name and no JSON text can hold.

        Raises:
            UserError: Naming the flag that the word belongs to.
        """
        name = "an argument"
        for word in argv:
            value = word
            if word.startswith("--"):
                name, _, value = word.partition("=")
                check_word("a flag", name)
                if "=" not in word:
                    continue
            check_word(name, value, free=name in self._free_texts)

    def show_chosen(self, argv: Sequence[str]) -> None:
        """Add the values of flags that are not given to the help texts.

        They are those of the flags in `argv` or, where these are wrong, of none.
        """
        config = self._config_of(argv)
        chosen = config.chosen() if hasattr(config, "chosen") else {}
        for action in self._actions:
            value = chosen.get(action.dest)
            if value is not None and action.default in (None, []):
                text = _shown(value)
                action.help = f"{action.help} (default by task and model: {text})"
        if chosen:
            self.epilog = f"Defaults by task and model are those of {config.shown_for}."

    def decides_anew(self, flags: list[str], argv: list[str]) -> bool:
        """Whether `argv` changes a flag that decides the defaults of others.

        Args:
            flags: Those of the saved run.
        """
        with suppress(ValueError), self._raising():  # wrong flags are reported later
            saved, given = self.parse_args(flags), self.parse_args([*flags, *argv])
            return any(getattr(saved, n) != getattr(given, n) for n in self._deciding)
        return False

    def _config_of(self, argv: Sequence[str]) -> Any:
        """The config of these flags or, where they are wrong, of no flags."""
        for flags in (list(argv), []):
            with suppress(ValueError), self._raising():
                return self.parse_args_into_dataclasses(
                    flags, return_remaining_strings=True, look_for_args_file=False
                )[0]
        return None

    @contextmanager
    def _raising(self) -> Iterator[None]:
        """Raise ValueError for wrong flags while the block runs."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def error(self, message: str) -> NoReturn:
        if self._raises:
            raise ValueError(message)
        words = [
            word if len(word) <= _LONG else f"{word[:_LONG]}..."
            for word in message.split()
        ]
        self.exit(2, f"{self.prog}: error: {' '.join(words)}\n")


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("%", "%%")


def _headings_of(config_class: Any) -> dict[str, str]:
    """The heading of every flag in the help text, the first heading first."""
    listed: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        for heading, names in vars(base).get("headings", {}).items():
            listed |= dict.fromkeys(names, heading)
    usual = getattr(config_class, "heading", "flags")
    names = [*(field.name for field in fields(config_class)), "config"]
    of_flag = {"config": _LAST, **{n: listed.get(n, usual) for n in names[:-1]}}

    def place(name: str) -> int:
        order = (*_FIRST, usual)
        heading = of_flag[name]
        if heading in order:
            return order.index(heading)
        return len(order) + (heading == _LAST)

    return {name: of_flag[name] for name in sorted(names, key=place)}


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        return None if text == NONE else convert(text)

    converted.__name__ = getattr(convert, "__name__", "value")  # argparse shows it
    return converted


def _saved_config(argv: list[str]) -> tuple[dict[str, Any], Path] | None:
    """The config.json that `argv` names, and its path."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", "--resume", dest="path", type=Path)
    try:
        path = parser.parse_known_args(argv)[0].path
    except argparse.ArgumentError:
        return None  # a flag without its value: the main parser reports it
    if path is None or str(path) == NONE:
        return None
    path = path / "config.json" if path.is_dir() else path
    saved = read_object(path)
    if not saved:
        raise UserError(f"{path} is empty: it must hold the flags of a run; restore it")
    check_type(saved, _OfTheRun, str(path))
    return saved, path


class _OfTheRun(TypedDict, total=False):
    """Entries of a config.json that are no flags, of those that are read here."""

    kind: str
    resolved: list[str] | None


def _flags_of(config_class: Any, saved: Mapping[str, Any], path: Path) -> list[str]:
    """The command line flags that are equivalent to a saved config."""
    check_saved(config_class, saved, path)
    defaults = {field.name: field.default for field in fields(config_class)}
    flags: list[str] = []
    for name, value in saved.items():
        if name in _KEYS_OF_THE_RUN:
            continue
        if name not in defaults:
            kind = saved.get("kind")
            hint = f"known: {', '.join(defaults)}"
            if kind is not None:
                hint = (
                    f"it is from a {kind} run; this script cannot repeat or resume it"
                )
            raise UserError(f"{path}: unknown key {name!r}; {hint}")
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={value}")
        elif defaults[name] not in (None, MISSING):
            flags.append(f"--{name}={NONE}")
    return flags


def _quiet_libraries() -> None:
    """Show the log lines of circuitcut, but only the errors of other libraries."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    level = logging.INFO if _is_first() else logging.WARNING
    for package in _OURS:
        logging.getLogger(package).setLevel(level)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not its retries
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=_NOISY)


def _is_first() -> bool:
    """The launcher numbers the processes; only the first one logs its progress."""
    return os.environ.get("RANK", "0") == "0"


def _exit(status: int, message: str) -> NoReturn:
    name = Path(sys.argv[0]).name
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n")
    raise SystemExit(status)
