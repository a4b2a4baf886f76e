"""Run scripts from a benchmark as a user does: one process per command."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run_verb(verb: str, flags: Sequence[str]) -> None:
    """Run `scripts/VERB.py` with these flags.

    Raises:
        subprocess.CalledProcessError: When it fails; its error message is on stderr.
    """
    subprocess.run([sys.executable, str(SCRIPTS / f"{verb}.py"), *flags], check=True)
