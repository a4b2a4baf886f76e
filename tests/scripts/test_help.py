"""Help and wrong flags are answered at once: before torch is imported."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from circuitcut.experiments.defaults.of_mask import settings_of
from circuitcut.scripts.command_line import VERBS
from circuitcut.scripts.relearn import RelearnConfig
from circuitcut.scripts.train_mask import TrainMaskConfig
from circuitcut.training.config import parse_config

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "sklearn", "scipy", "datasets", "accelerate", "transformers.models")
"""What takes seconds to import."""
SERVER = """
import json, os, resource, runpy, sys, tempfile

def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

import circuitcut.training.config  # which every script imports

shared = seconds()

def answer(script, flags):
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(script))
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    loaded = [name for name in {slow!r} if name in sys.modules]
    return [code, shared + seconds(), loaded]

for line in sys.stdin:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as found:
        if os.fork() == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            found.write(json.dumps(answer(*json.loads(line))).encode())
            for file in (found, sys.stdout, sys.stderr):
                file.flush()
            os._exit(0)
        os.wait()
        parts = []
        for file in (said, found):
            file.seek(0)
            parts.append(file.read().decode())
        print(json.dumps([parts[0], *json.loads(parts[1])]), flush=True)
"""
Ask = Callable[..., tuple[int, str, float, list[str]]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """ask(verb, *flags): exit code, output, CPU seconds, and slow modules imported.

    Every question has a process of its own, forked from one that has read flags before
    and nothing else; its seconds count.
    """
    program = SERVER.format(slow=SLOW)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:
        questions, answers = server.stdin, server.stdout
        assert questions is not None
        assert answers is not None

        def answer(verb: str, *flags: str) -> tuple[int, str, float, list[str]]:
            script = str(ROOT / "scripts" / f"{verb.replace('-', '_')}.py")
            questions.write(f"{json.dumps([script, flags])}\n")
            questions.flush()
            text, code, seconds, loaded = json.loads(answers.readline())
            return code, text, seconds, loaded

        yield answer


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_given_before_torch_is_imported(verb: str, ask: Ask):
    code, text, seconds, loaded = ask(verb, "--help")
    assert code == 0, text
    assert "usage" in text
    assert loaded == []
    assert seconds < 4


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_refused_before_torch_is_imported(verb: str, ask: Ask):
    code, text, seconds, loaded = ask(verb, "--no_such_flag", "1")
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
def test_a_wrong_value_is_refused_before_torch_is_imported(
    verb: str, flags: list[str], ask: Ask
):
    code, text, _, loaded = ask(verb, *flags)
    assert code == 2
    assert flags[0] in text or "must" in text
    assert loaded == []


def shown(config: type, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The help text in one line."""
    with pytest.raises(SystemExit) as stopped:
        parse_config(config, [*flags, "--help"])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_stands_under_a_heading(verb: str, capsys):
    module, name = VERBS[verb]
    config = getattr(import_module(module), name)
    with pytest.raises(SystemExit):
        parse_config(config, ["--help"])
    text = capsys.readouterr().out
    headings = re.findall(r"^([a-z ]+):$", text, re.M)
    assert headings[0] == "options"
    assert headings[-1] == "run"
    assert "flags" not in headings
    by_heading = re.split(r"^[a-z ]+:$", text, flags=re.M)
    assert re.findall(r"^  (--\w+)", by_heading[1], re.M) == ["--help"]
    if verb == "train-mask":
        wanted = ["data", "model", "what is cut", "training", "freezing", "baselines"]
        assert headings[1:-1] == wanted


def test_the_defaults_of_the_task_and_model_on_the_command_line_are_shown(capsys):
    text = shown(TrainMaskConfig, capsys, "--task", "toxicity")
    assert "optimiser steps (default by task and model: 500)" in text
    assert "nats a token (default by task and model: no limit)" in text
    assert "those of --task toxicity --model tiny-decoder." in text
    text = shown(TrainMaskConfig, capsys)
    assert "optimiser steps (default by task and model: 250)" in text
    assert "those of --task locations --model tiny-encoder." in text
    text = shown(RelearnConfig, capsys, "--task", "ioi", "--model", "smollm2")
    assert "steps of every condition (default by task and model: 16)" in text


def test_a_wrong_flag_beside_help_leaves_the_usual_defaults(capsys):
    text = shown(TrainMaskConfig, capsys, "--task", "nowhere")
    assert "those of --task locations --model tiny-encoder." in text


def test_the_defaults_are_those_of_a_saved_run_with_the_flags_beside_it(
    capsys, tmp_path: Path
):
    saved = {"kind": "train_mask", "task": "toxicity", "lr": 0.3, "n_steps": 9}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(saved | {"resolved": ["lr", "n_steps"]}))
    text = shown(TrainMaskConfig, capsys, "--config", str(file))
    assert "those of --task toxicity" in text
    assert "optimiser steps (default by task and model: 9)" in text
    text = shown(TrainMaskConfig, capsys, "--config", str(file), "--task", "locations")
    assert "optimiser steps (default by task and model: 250)" in text


def test_a_wrong_value_beside_help_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(TrainMaskConfig, ["--n_steps", "few", "--help"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("verb", "flag", "heading"),
    [
        ("train-mask", "retain_kl", "freezing"),
        ("train-mask", "base_recipe", "model"),
        ("train-mask", "lr_multipliers", "training"),
        ("relearn", "base_recipe", "model"),
        ("relearn", "optimiser", "training"),
        ("relearn", "clip_norm", "training"),
    ],
)
def test_a_flag_stands_under_its_own_heading(
    verb: str, flag: str, heading: str, capsys
):
    module, name = VERBS[verb]
    with pytest.raises(SystemExit):
        parse_config(getattr(import_module(module), name), ["--help"])
    text = capsys.readouterr().out
    before = re.findall(r"^([a-z ]+):$|^  --(\w+)", text, re.M)
    place = before.index(("", flag))
    assert [h for h, _ in before[:place] if h][-1] == heading


def test_settings_that_follow_from_the_number_of_units_are_shares(capsys):
    edges = ["--task", "ioi", "--units", "edges", "--direction", "isolate"]
    text = shown(TrainMaskConfig, capsys, *edges)
    assert "0.0125, a share of all units" in text
    text = shown(TrainMaskConfig, capsys, *edges, "--model", "m", "--gate", "clamped")
    assert "isolate) (default by task and model: by the number of units)" in text


@pytest.mark.parametrize(("task", "model"), [("mnist", "mlp"), ("ioi", "tiny-decoder")])
def test_the_settings_shown_are_those_of_a_run(task: str, model: str):
    config = TrainMaskConfig(task=task, model=model)
    settings = vars(settings_of(config, 10_000))
    assert {name: config.chosen()[name] for name in settings} == settings
