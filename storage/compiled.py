"""Compile a C++ source of this package once per processor and load it as a library."""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitcut.storage.atomic import write_bytes, write_text
from circuitcut.storage.cache import cache_folder, content_hash
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import Waiting

SWITCH = "CIRCUITCUT_COMPILE"
"""Environment variable; with the value 0 nothing is compiled or loaded."""
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC")
OPENMP = "-fopenmp"
"""Used when compiling, not when linking: torch has already started the threads."""
_log = logging.getLogger(__name__)


def library(
    source: Path, signatures: Mapping[str, Sequence[Any]]
) -> ctypes.CDLL | None:
    """A C++ file as a loaded library; None, with a line in the log, if that fails.

    The library is kept in `cache_folder()`. Its name holds a hash of the source, the
    compiler and the processor.

    Args:
        source: The C++ file.
        signatures: Argument types of its functions, by name; they return nothing.
    """
    if sys.platform != "linux" or os.environ.get(SWITCH) == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        _log.info("No C++ compiler is installed: edge masks take about 10 % more time")
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled_file(source, compiler)))
    except (OSError, subprocess.SubprocessError, UserError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _log.warning(
            "%s was not compiled: edge masks take about 10 %% more time (set %s=0 to "
            "skip compiling): %s", source.name, SWITCH, detail.strip()[-500:],
        )  # fmt: skip
        return None
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = list(arguments), None
    return loaded


def _compiled_file(source: Path, compiler: str) -> Path:
    text = source.read_text(encoding="utf-8")
    version = _run([compiler, "--version"])
    key = content_hash(text, version, " ".join((*FLAGS, OPENMP)), _processor())
    path = cache_folder() / "compiled" / f"{source.stem}-{key[:16]}.so"
    digest = path.with_suffix(".sha256")
    if path.exists():  # loading an incomplete file would end the process
        if digest.exists() and digest.read_text() == content_hash(path.read_bytes()):
            return path
        _log.warning("%s is damaged: compiling it again", path)
    start = time.perf_counter()
    with (
        Waiting(f"compiling {source.name}, once on this machine"),
        tempfile.TemporaryDirectory() as folder,
    ):
        object_file, shared = Path(folder) / "source.o", Path(folder) / "library.so"
        _run([compiler, *FLAGS, OPENMP, "-c", str(source), "-o", str(object_file)])
        _run([compiler, "-shared", str(object_file), "-o", str(shared)])
        data = shared.read_bytes()
        write_text(digest, content_hash(data))
        write_bytes(path, data)
    seconds = time.perf_counter() - start
    _log.info("Compiled %s in %.1f s; kept in %s", source.name, seconds, path.parent)
    return path


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=300
    )
    return result.stdout


def _processor() -> str:
    """Processor model and features: several machines may share one cache folder."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(
        sorted({line for line in lines if line.startswith(fields)})
    )
