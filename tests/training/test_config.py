"""Flags: saved configs come back the same, and wrong input is told in one line."""

import errno
import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from circuitcut.storage.errors import UserError
from circuitcut.storage.stopping import Stopped
from circuitcut.training import config as module
from circuitcut.training.config import config_dict, parse_config, run_script


@dataclass(frozen=True)
class Config:
    """Flags of every kind."""

    n_steps: int = field(default=3, metadata={"help": "steps, 100 % of them"})
    lr: float = 0.1
    clip_norm: float | None = field(default=1.0, metadata={"help": "largest norm"})
    model: str | None = None
    run_dir: Path = Path("runs")
    mask: Path | None = None
    units: list[str] = field(default_factory=lambda: ["neurons"])
    layers: list[int] = field(default_factory=list)
    gate: Literal["topk", "clamped"] = "topk"
    penalty: Literal["none", "price"] | None = None
    average: bool = True
    quick: bool = False
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise UserError(f"--n_steps must be positive,\n got {self.n_steps}")


# Text that starts with a dash could be a flag inside a list.
WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
)
WORDS = WORDS.filter(str.strip)
WORDS = WORDS.filter(lambda word: not word.startswith("-") and word != "none")
CONFIGS = st.builds(
    Config,
    n_steps=st.integers(1),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    clip_norm=st.none() | st.floats(-1.0, 1.0),
    model=st.none() | WORDS | WORDS.map(lambda word: "-" + word),
    run_dir=WORDS.map(Path),
    units=st.lists(WORDS, max_size=3),
    layers=st.lists(st.integers(-2, 99), max_size=3),
    gate=st.sampled_from(["topk", "clamped"]),
    penalty=st.sampled_from([None, "none", "price"]),
    average=st.booleans(),
    quick=st.booleans(),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "test", **config_dict(Config(n_steps=7))}))
    return path


def _error(capsys: pytest.CaptureFixture, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_config(Config, list(argv))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert ": error: " in captured.err
    return captured.err


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(config=CONFIGS)
def test_a_saved_config_is_read_back(config: Config, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "test", **config_dict(config)}))
    assert parse_config(Config, ["--config", str(path)]) == config
    assert parse_config(Config, [f"--config={tmp_path}"]) == config


def test_flags_override_the_saved_config_in_any_order(saved: Path):
    for argv in (
        ["--lr", "2", "--config", str(saved)],
        ["--config", str(saved), "--lr=2"],
    ):
        assert parse_config(Config, argv) == Config(n_steps=7, lr=2.0)


def test_resuming_takes_the_flags_of_the_run(saved: Path):
    config = parse_config(Config, ["--resume", str(saved.parent)])
    assert config == Config(n_steps=7, resume=saved.parent)
    saved.write_text(json.dumps(config_dict(config)))
    assert parse_config(Config, ["--config", str(saved)]).resume is None


def test_no_flags_give_the_defaults():
    assert parse_config(Config, []) == Config()


def test_both_spellings_none_and_empty_lists_are_understood():
    argv = "--n-steps 2 --clip_norm none --units --layers -1 0 --no-average --quick"
    assert parse_config(Config, argv.split()) == Config(
        n_steps=2, clip_norm=None, units=[], layers=[-1, 0], average=False, quick=True
    )


def test_none_is_a_choice_where_it_is_listed():
    assert parse_config(Config, ["--penalty", "none"]).penalty == "none"
    assert parse_config(Config, ["--mask", "none"]).mask is None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--n_step 3", "unrecognized arguments: --n_step 3"),
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("extra", "unrecognized arguments: extra"),
        ("--n_steps 1.5", "argument --n_steps/--n-steps: invalid int value: '1.5'"),
        ("--clip_norm x", "argument --clip_norm/--clip-norm: invalid float value: 'x'"),
        ("--gate soft", "argument --gate: invalid choice: 'soft'"),
        ("--n_steps 0", "--n_steps must be positive, got 0"),
        ("--average perhaps", "argument --average: "),
        ("--config", "argument --config: expected one argument"),
        ("--config nowhere.json", "cannot read nowhere.json: No such file"),
    ],
)
def test_wrong_flags_exit_with_one_line(argv: str, expected: str, capsys):
    assert expected in _error(capsys, *argv.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"n_stepz": 3}', "unknown key 'n_stepz'; known: n_steps, lr"),
        (
            '{"n_steps": "many"}',
            "n_steps must be a whole number of 64 bits, got 'many'",
        ),
        ('{"gate": "soft"}', "gate must be 'topk' or 'clamped', got 'soft'"),
        ('{"model": {"name": "x"}}', "model must be a text or null, got an object"),
        ("[3]", "must hold a JSON object, got list"),
        ('{"n_steps": 3', "is not JSON (line 1"),
    ],
)
def test_a_wrong_config_file_exits_with_one_line(
    text: str, expected: str, tmp_path: Path, capsys
):
    (tmp_path / "config.json").write_text(text)
    assert expected in _error(capsys, "--config", str(tmp_path / "config.json"))


def test_a_file_of_flags_beside_the_script_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "script.args").write_text("--n_steps 99")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    assert parse_config(Config) == Config()


def test_help_explains_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(Config, ["--help"], description="Man page.\n\n    python x.py")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Man page.\n\n    python x.py\n" in text
    assert "steps, 100 % of them (default: 3)" in " ".join(text.split())
    assert "largest norm (default: 1)" in text


def test_a_config_is_plain_json():
    config = Config(mask=Path("runs") / "x")
    assert json.loads(json.dumps(config_dict(config))) == config_dict(config)
    assert config_dict(config) == asdict(config) | {"mask": "runs/x", "run_dir": "runs"}


def _run(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    seen = []

    def main(config: Config) -> None:
        seen.append(config)
        if error is not None:
            raise error

    monkeypatch.setattr(module, "_quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["scripts/test.py", "--n_steps", "5"])
    run_script(main, Config)
    return seen


def test_a_script_runs_its_main_with_the_flags(monkeypatch: pytest.MonkeyPatch):
    assert _run(None, monkeypatch) == [Config(n_steps=5)]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            UserError("mask is for\nanother model"),
            2,
            "error: mask is for another model",
        ),
        (
            Stopped(signal.SIGTERM, "7 steps are saved", "continue with X"),
            143,
            "terminated: 7 steps are saved; continue with X",
        ),
        (
            Stopped(said="7 steps are saved"),
            130,
            "interrupted: 7 steps are saved; the same command continues",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "error: cannot write runs/x: No space left on device; free some disk space",
        ),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: the same command starts again",
        ),
    ],
)
def test_mistakes_and_interruptions_end_a_script_in_one_line(
    error: BaseException, status: int, line: str, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as caught:
        _run(error, monkeypatch)
    assert caught.value.code == status
    assert capsys.readouterr().err == f"test.py: {line}\n"


def test_output_that_nobody_reads_ends_a_script_without_a_traceback(tmp_path: Path):
    script = tmp_path / "talks.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from circuitcut.training.config import run_script\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    n: int = 200_000\n"
        "def main(config: Config) -> None:\n"
        "    for _ in range(config.n):\n"
        "        print('a line')\n"
        "run_script(main, Config)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        said = process.stderr.read().decode()
    assert said == "talks.py: stopped: nobody reads the output any more\n"
    assert process.returncode == 141


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="a fault") as caught:
        _run(ValueError("a fault"), monkeypatch)
    assert type(caught.value) is ValueError


def test_a_script_leaves_its_process_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def main(_: Config) -> None:
        store = (tmp_path / "store").as_uri()
        dist.init_process_group("gloo", store, world_size=1, rank=0)
        assert dist.is_initialized()

    monkeypatch.setattr(module, "_quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["scripts/test.py"])
    run_script(main, Config)
    assert not dist.is_initialized()
