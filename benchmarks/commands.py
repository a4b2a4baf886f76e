"""Scripts run by a benchmark as a user would: one process a command."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run_verb(verb: str, flags: Sequence[str]) -> None:
    """Run `scripts/VERB.py` with these flags.

    Raises:
        subprocess.CalledProcessError: When it fails; its error is on stderr by then.
    """
    subprocess.run([sys.executable, str(SCRIPTS / f"{verb}.py"), *flags], check=True)
