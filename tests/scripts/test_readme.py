"""README's Python example runs as it stands, and its commands name real scripts."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from circuitcut.scripts.command_line import VERBS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_it_is_read_on_one_screen_or_two():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 140


def test_the_python_example_cuts_the_threes_and_relearns_them(
    capsys: pytest.CaptureFixture[str],
):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(block, "README.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {name: (float(a), float(b)) for name, a, b in lines[-2:]}
    threes, rest = scores["cut"]
    assert threes < 0.15 < 0.85 < rest
    assert min(scores["relearned"]) > 0.75


def test_every_script_that_it_names_exists():
    named = set(re.findall(r"\b(?:scripts/|benchmarks/)?\w+\.py\b", README))
    assert len(named) > 10
    for name in sorted(named):
        there = [ROOT / name, ROOT / "scripts" / name]
        assert any(path.exists() for path in there), name
    assert {f"{verb.replace('-', '_')}.py" for verb in VERBS} <= named


def test_every_flag_that_it_shows_is_one_of_the_script():
    commands = re.findall(r"`(?:python )?(?:scripts/)?(\w+)\.py( --[^`]*)`", README)
    assert commands
    for script, rest in commands:
        verb = script.replace("_", "-")
        if verb not in VERBS:  # a benchmark
            source = (ROOT / "benchmarks" / f"{script}.py").read_text()
            assert all(f"    {n}:" in source for n in re.findall(r"--(\w+)", rest))
            continue
        module, config = VERBS[verb]
        fields = dataclasses.fields(getattr(import_module(module), config))
        assert set(re.findall(r"--(\w+)", rest)) <= {field.name for field in fields}


def test_the_makefile_has_the_targets_that_it_shows():
    targets = set(re.findall(r"\bmake (\w+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
