"""C++ sources of this package as libraries, compiled once for the processor at hand."""

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

SWITCH = "CIRCUITCUT_COMPILE"
"""Environment variable: 0 compiles and loads nothing."""
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC")
OPENMP = "-fopenmp"
"""To compile with, not to link with: the threads are those that torch has started."""
_log = logging.getLogger(__name__)


def library(
    source: Path, signatures: Mapping[str, Sequence[Any]]
) -> ctypes.CDLL | None:
    """A C++ file as a library; None, with a line in the log, where that can't be had.

    It is kept in `cache_folder()`, under a name that stands for the source, the
    compiler and the processor.

    Args:
        source: The file.
        signatures: What its functions take, by name; they return nothing.
    """
    if sys.platform != "linux" or os.environ.get(SWITCH) == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        _log.info("No C++ compiler is installed: edge masks take a tenth more time")
        return None
    try:
        loaded = ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, subprocess.SubprocessError, UserError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _log.warning(
            "%s was not compiled, edge masks take a tenth more time (%s=0 for no "
            "further attempt): %s", source.name, SWITCH, detail.strip()[-500:],
        )  # fmt: skip
        return None
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = list(arguments), None
    return loaded


def _built(source: Path, compiler: str) -> Path:
    text = source.read_text(encoding="utf-8")
    version = _run([compiler, "--version"])
    key = content_hash(text, version, " ".join((*FLAGS, OPENMP)), _processor())
    path = cache_folder() / "compiled" / f"{source.stem}-{key[:16]}.so"
    digest = path.with_suffix(".sha256")
    if path.exists():  # a file that is not whole would end the process
        if digest.exists() and digest.read_text() == content_hash(path.read_bytes()):
            return path
        _log.warning("%s is damaged: compiling it again", path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pieces, whole = Path(folder) / "pieces.o", Path(folder) / "whole.so"
        _run([compiler, *FLAGS, OPENMP, "-c", str(source), "-o", str(pieces)])
        _run([compiler, "-shared", str(pieces), "-o", str(whole)])
        data = whole.read_bytes()
        write_text(digest, content_hash(data))
        write_bytes(path, data)
    seconds = time.perf_counter() - start
    _log.info("Compiled %s in %.1f s; kept in %s", source.name, seconds, path.parent)
    return path


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout


def _processor() -> str:
    """What tells processors apart: a folder may be shared by machines."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(
        sorted({line for line in lines if line.startswith(told)})
    )
