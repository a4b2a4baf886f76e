"""The console command runs the scripts, with their flags and their exit codes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from circuitcut.scripts import command_line
from circuitcut.scripts.command_line import VERBS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_every_script_is_a_verb_and_every_verb_a_script():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    scripts -= {"__init__", "command_line"}
    assert {verb.replace("-", "_") for verb in VERBS} == scripts
    for verb, (module, config) in VERBS.items():
        name = verb.replace("-", "_")
        assert module == f"circuitcut.scripts.{name}"
        tree = ast.parse((SCRIPTS / f"{name}.py").read_text())
        defined = {getattr(node, "name", None) for node in tree.body}
        assert {"main", config} <= defined


def test_help_lists_the_verbs_with_what_they_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["circuitcut"])
    command_line.main()
    shown = capsys.readouterr().out
    assert re.search(r"train-mask +Find the units whose ablation", shown)
    assert all(verb in shown for verb in VERBS)


def test_an_unknown_verb_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["circuitcut", "train"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_verb_takes_the_flags_of_its_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["circuitcut", "train-mask", "--task", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("circuitcut train-mask: error: --task must be one of")


@pytest.mark.slow  # loads everything in a new process
def test_the_public_names_are_found_and_loaded_when_used():
    program = """
import sys
import circuitcut
assert not any(name.startswith("circuitcut.") for name in sys.modules)
assert "torch" not in sys.modules
for name in circuitcut.__all__:
    assert getattr(circuitcut, name) is not None, name
    assert name in dir(circuitcut)
try:
    circuitcut.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "module 'circuitcut' has no attribute 'nothing'\n"


@pytest.mark.slow  # loads torch in a new process
def test_masks_on_neurons_do_not_load_the_edge_engine():
    program = """
import sys
import torch
from circuitcut import FrozenMask, module_site, zero_values
model = torch.nn.Sequential(torch.nn.Linear(3, 3))
sites = [module_site(model, "0")]
scores = {sites[0].name: torch.arange(3.0)}
mask = FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=1)
with mask.applied(model):
    model(torch.ones(1, 3))
loaded = [name for name in sys.modules if name.startswith("circuitcut.masks.edges.")]
print(loaded)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['circuitcut.masks.edges.sites']\n"
