"""Help and wrong flags are answered at once: before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from circuitcut.scripts.command_line import VERBS

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "sklearn", "scipy", "datasets", "accelerate", "transformers.models")
"""What takes seconds to import."""
PROGRAM = """
import atexit, resource, runpy, sys

def report():
    loaded = [name for name in {slow!r} if name in sys.modules]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, *loaded, file=sys.stderr)

atexit.register(report)
sys.argv = [{script!r}, *{flags!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def answer(verb: str, *flags: str) -> tuple[int, str, float, list[str]]:
    """Exit code, output, CPU seconds, and the slow modules that were imported."""
    script = str(ROOT / "scripts" / f"{verb.replace('-', '_')}.py")
    program = PROGRAM.format(slow=SLOW, script=script, flags=flags)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    *lines, last = done.stderr.splitlines()
    seconds, *loaded = last.split()
    return done.returncode, "\n".join([done.stdout, *lines]), float(seconds), loaded


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_given_before_torch_is_imported(verb: str):
    code, text, seconds, loaded = answer(verb, "--help")
    assert code == 0, text
    assert "usage" in text
    assert loaded == []
    assert seconds < 4


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_refused_before_torch_is_imported(verb: str):
    code, text, seconds, loaded = answer(verb, "--no_such_flag", "1")
    assert code == 2
    assert "no_such_flag" in text
    assert len(text.strip().splitlines()) == 1
    assert loaded == []
    assert seconds < 4


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("train-mask", ["--lr", "nan"]),
        ("relearn", ["--conditions", "cut", "burnt"]),
        ("export-mask", ["--format", "doc"]),
    ],
)
def test_a_wrong_value_is_refused_before_torch_is_imported(verb: str, flags: list[str]):
    code, text, _, loaded = answer(verb, *flags)
    assert code == 2
    assert flags[0] in text or "must" in text
    assert loaded == []
