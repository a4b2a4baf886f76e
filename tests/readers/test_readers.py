"""Whatever a file holds, reading it gives a valid object or one line for the user."""

import ast
import contextlib
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitcut.storage.errors import UserError
from tests.readers.mutations import damaged
from tests.readers.registry import READERS, Reader

ROOT = Path(__file__).parent.parent.parent
MOST_SECONDS = 20
"""That one file may take, on a loaded machine; most take milliseconds."""
MOST_CHARACTERS = 2_000
"""Of a message: it stands on one line of a terminal."""
SLOW = 10
"""Times the examples of the default suite."""


@cache
def _valid(name: str) -> dict[str, bytes]:
    """The files of a valid input, by name."""
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].write(Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A new folder with a valid input."""
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    try:
        for file, content in _valid(name).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(reader: Reader, folder: Path) -> Any:
    """What the reader gives; a UserError, if it raises one, must be one short line."""

    def too_slow(*_: object) -> None:
        raise AssertionError(f"a file takes more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader.read(folder)
    except UserError as error:
        message = str(error)
        assert "\n" not in message, message
        assert 0 < len(message) < MOST_CHARACTERS, message
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damage(name: str, n_examples: int, *, derandomize: bool = True) -> None:
    """Read so many damaged inputs of a reader."""
    reader = READERS[name]

    @settings(
        max_examples=n_examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(reader.damaged))
        content = _valid(name)[file]
        is_json = Path(file).suffix in (".json", ".jsonl")
        changed = data.draw(damaged(content, is_json=is_json))
        with _folder(name) as folder:
            (folder / file).write_bytes(changed)
            _read(reader, folder)

    one()


QUICK = [name for name, reader in READERS.items() if reader.n_examples]


@pytest.mark.parametrize("name", QUICK)
def test_a_valid_input_is_read(name: str):
    with _folder(name) as folder:
        result = _read(READERS[name], folder)
    is_scoreless = name.startswith("scores of") and isinstance(result, UserError)
    assert is_scoreless or not isinstance(result, UserError), result


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_input_is_read_or_refused_in_one_line(name: str):
    damage(name, READERS[name].n_examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_inputs_are_read_or_refused_in_one_line(name: str):
    damage(name, SLOW * (READERS[name].n_examples or 1))


def _make_empty(path: Path) -> None:
    path.write_bytes(b"")


def _make_folder(path: Path) -> None:
    path.mkdir()


def _make_pipe(path: Path) -> None:
    os.mkfifo(path)


def _make_device(path: Path) -> None:
    path.symlink_to(os.devnull)


PLACES = [_make_empty, _make_folder, _make_pipe, _make_device]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", QUICK)
def test_an_empty_file_a_folder_a_pipe_and_a_device_are_answered_at_once(
    name: str, place: Any
):
    for file in dict.fromkeys(READERS[name].damaged):
        with _folder(name) as folder:
            (folder / file).unlink()
            place(folder / file)
            _read(READERS[name], folder)


READING = {
    *("read_json", "read_object", "read_tensors", "read_metadata", "read_shapes"),
    *("read_text", "read_bytes", "parse_json", "safe_open", "load_file"),
    "open_tensors",
}
"""Functions that read files or their texts; whoever imports one is a reader."""
CALLS = {
    *("open", "read_text", "read_bytes", "from_pretrained", "GGUFReader", "loads"),
    *("decompress", "opener"),
}
"""Names of other calls that read."""
OF_THEIR_OWN = {
    "storage.compiled": "C sources of ours, and their compiled form by its SHA-256",
    "storage.provenance": "Python files of ours",
    "scripts.command_line": "docstrings of ours",
    "reports.html": "figures that it has just drawn; of an older report the first line",
    "storage.run_folder": "opens nothing but its lock",
}
"""Modules that read no file of a user."""


def _reads(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if READING & {alias.name for alias in node.names}:
                return True
        elif isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", None))
            of_a_run = isinstance(function, ast.Attribute) and (
                ast.unparse(function.value) in ("RunDirectory", "cls", "Image", "os")
            )
            if name in CALLS and not of_a_run:
                return True
    return False


def test_every_module_that_reads_files_is_registered():
    packages = (
        *("storage", "data", "models", "training", "tasks", "masks", "attribution"),
        *("weight_classes", "relearning", "reports", "experiments", "scripts"),
    )
    readers = set()
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            if _reads(ast.parse(path.read_text(encoding="utf-8"))):
                parts = path.relative_to(ROOT).with_suffix("").parts
                readers.add(".".join(parts))
    registered = {module for reader in READERS.values() for module in reader.modules}
    missing = readers - registered - set(OF_THEIR_OWN)
    assert not missing, f"register readers of {sorted(missing)} in {__name__}"
