"""The README's Python example runs as it stands, and its commands name real scripts."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs_and_cuts_a_hundred_weights(
    capsys: pytest.CaptureFixture[str],
):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    n_ablated, concept, retain = capsys.readouterr().out.split()
    assert int(n_ablated) == 100
    assert 0 <= float(concept) <= 1
    assert 0 <= float(retain) <= 1


def test_every_script_and_file_that_it_names_exists():
    named = set(re.findall(r"\b(?:scripts|benchmarks)/\w+\.py\b", README))
    assert named
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing


def test_every_flag_that_it_shows_is_one_of_the_script():
    for script, rest in re.findall(r"python scripts/(\w+)\.py([^#\n]*)", README):
        source = (ROOT / "scripts" / f"{script}.py").read_text()
        source += (ROOT / "scripts" / "experiment.py").read_text()
        for name in re.findall(r"--(\w+)", rest):
            assert f"    {name}:" in source or name == "config", (script, name)
