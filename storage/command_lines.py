"""Commands that a reader can paste into the shell from which a program was started."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def command(verb: str, flags: Mapping[str, Any]) -> str:
    """A command line to paste into the same shell, as this program was started."""
    words = [_as_typed(sys.executable), str(_scripts_folder() / f"{verb}.py")]
    console_script = sys.argv[0].rsplit(" ", 1)[0]
    if Path(console_script).name.startswith("circuitcut"):
        words = [_as_typed(console_script), verb.replace("_", "-")]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _as_typed(program: str) -> str:
    """The program's name where the shell finds it by that, else its path."""
    name, folder = Path(program).name, Path(program).parent.resolve()
    name = "python" if name.startswith("python") else name
    found = shutil.which(name)
    if found is not None and Path(found).parent.resolve() == folder:
        return name
    here = os.path.relpath(program)
    return program if here.startswith(os.pardir) else here


def _scripts_folder() -> Path:
    """Where the scripts lie, as the running one of them was named."""
    program = Path(sys.argv[0])
    is_script = program.parent.name == "scripts" and program.suffix == ".py"
    return program.parent if is_script else Path("scripts")
