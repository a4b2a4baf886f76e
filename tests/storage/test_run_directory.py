"""Run directories: never overwritten, found again, and honest about NaN."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.storage import run_folder
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import source_commit
from circuitcut.storage.run_directory import (
    RunDirectory,
    check_not_of_a_run,
    run_holding,
)


def _create(parent: Path, kind: str = "train_mask", **options) -> RunDirectory:
    config = {"seed": 3, "run_dir": parent}
    named = {"task": "ioi", "model": "org/gpt 2"}
    return RunDirectory.create(parent, kind=kind, config=config, **named, **options)


def test_two_runs_of_the_same_second_get_two_folders(tmp_path: Path):
    paths = {_create(tmp_path).path for _ in range(20)}
    assert len(paths) == 20
    assert all(path.name.startswith("ioi-gpt_2-2") for path in paths)
    assert all(path.parent == tmp_path for path in paths)


def test_the_default_parent_is_runs_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(None, kind="evaluate", task="t", model="m", config={})
    assert run.path.resolve().parent == tmp_path.resolve() / "runs"


def test_config_and_environment_say_what_decides_the_bits(tmp_path: Path):
    run = _create(tmp_path)
    assert run.config == {"kind": "train_mask", "seed": 3, "run_dir": str(tmp_path)}
    environment = run.environment
    assert environment["seed"] == 3
    assert environment["torch"] == torch.__version__
    assert environment["python"] == platform.python_version()
    assert environment["torch_threads"] == torch.get_num_threads()
    assert environment["device"]
    assert {"transformers", "accelerate", "numpy", "platform"} <= environment.keys()


def test_the_commit_is_that_of_this_source_tree(tmp_path: Path):
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    if not head:
        pytest.skip("git refuses this checkout")
    commit = _create(tmp_path).environment["commit"]
    assert commit.removesuffix("+changes") == head


def test_without_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    source_commit.cache_clear()
    assert _create(tmp_path).environment["commit"] is None
    source_commit.cache_clear()


def test_a_named_folder_is_taken_when_empty_and_refused_when_not(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    run = _create(tmp_path, name=Path("mine"))
    assert run.path == tmp_path / "mine"
    before = run.environment
    with pytest.raises(UserError, match=r"mine exists and is not empty"):
        _create(tmp_path, name=Path("mine"))
    assert run.environment == before


def test_a_run_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--run_dir must be a folder.*file"):
        _create(tmp_path / "file")


def test_open_takes_run_directories_only(tmp_path: Path):
    run = _create(tmp_path)
    assert RunDirectory.open(run.path).config == run.config
    with pytest.raises(UserError, match="is not a run directory"):
        RunDirectory.open(tmp_path)


def test_the_newest_finished_run_of_the_kind_is_found(tmp_path: Path):
    runs = [_create(tmp_path, name=Path(name)) for name in ("c", "b", "a")]
    other = _create(tmp_path, kind="relearn")
    for run in (runs[1], runs[0], other):
        run.write_results({})
    assert RunDirectory.newest(tmp_path, "train_mask").path == runs[1].path
    assert RunDirectory.newest(tmp_path, "relearn").path == other.path
    assert [run.is_finished for run in runs] == [True, True, False]


def test_damaged_runs_are_never_the_newest(tmp_path: Path):
    good, damaged = _create(tmp_path), _create(tmp_path)
    for run in (good, damaged):
        run.write_results({})
    (damaged.path / "config.json").write_text("{")
    assert RunDirectory.newest(tmp_path, "train_mask").path == good.path


@pytest.mark.parametrize("parent", ["", "nowhere"])
def test_no_finished_run_says_which_script_makes_one(parent: str, tmp_path: Path):
    _create(tmp_path)
    with pytest.raises(UserError, match=r"no finished train_mask run .*train_mask.py"):
        RunDirectory.newest(tmp_path / parent, "train_mask")


def test_results_have_null_for_what_is_undefined(tmp_path: Path):
    run = _create(tmp_path)
    run.write_results({"f1": float("nan"), "rows": [{"steps": float("inf")}], "n": 2})
    assert run.results == {"f1": None, "rows": [{"steps": None}], "n": 2}


def test_metrics_are_read_back_in_order(tmp_path: Path):
    run = _create(tmp_path)
    assert run.metrics() == []
    run.log(0, loss=1.5, **{"gates/ablated": 3})
    run.log(1, loss=float("nan"))
    assert run.metrics() == [
        {"step": 0, "loss": 1.5, "gates/ablated": 3},
        {"step": 1, "loss": None},
    ]


@settings(deadline=None, max_examples=20)
@given(n=st.integers(0, 8), cut=st.integers(0, 10))
def test_logging_on_after_truncation_gives_each_step_once(
    n: int, cut: int, tmp_path_factory
):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    for step in range(n):
        run.log(step, loss=float(step))
    run.truncate_metrics(cut)
    start = min(n, cut)
    for step in range(start, 8):
        run.log(step, loss=float(step))
    assert [entry["step"] for entry in run.metrics()] == list(range(8))


def test_truncation_by_prefix_leaves_other_conditions(tmp_path: Path):
    run = _create(tmp_path)
    for step in range(3):
        for condition in ("cut", "cut-2"):
            run.log(step, **{f"{condition}/loss": 1.0, f"{condition}/lr": 0.1})
    run.truncate_metrics(1, prefix="cut/")
    steps = {"cut/loss": [], "cut-2/loss": []}
    for entry in run.metrics():
        steps[next(key for key in entry if key.endswith("/loss"))].append(entry["step"])
    assert steps == {"cut/loss": [0], "cut-2/loss": [0, 1, 2]}


def test_a_line_torn_by_a_kill_is_left_out_and_cut_off(tmp_path: Path):
    run = _create(tmp_path)
    run.log(0, loss=1.0)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    assert run.metrics() == [{"step": 0, "loss": 1.0}]
    run.truncate_metrics(1)
    run.log(1, loss=0.5)
    assert [entry["step"] for entry in run.metrics()] == [0, 1]


def test_a_broken_line_in_the_middle_is_told_by_number(tmp_path: Path):
    run = _create(tmp_path)
    (run.path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not JSON"):
        run.metrics()


def test_a_path_knows_the_run_it_lies_in(tmp_path: Path):
    run = _create(tmp_path)
    assert run_holding(run.checkpoint_path / "cut-0") == run.path
    assert run_holding(run.path) == run.path
    assert run_holding(tmp_path) is None


def test_every_json_file_of_a_run_is_strict_json(tmp_path: Path):
    run = _create(tmp_path)
    run.log(0, x=float("nan"))
    run.write_results({"x": float("nan")})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in run.path.glob("*.json*"):
        for text in path.read_text().split("\n}\n{"):
            json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", ["../x", "../../x", ".", "a/../..", "/tmp/x"])
def test_a_name_stays_inside_the_parent(name: str, tmp_path: Path):
    parent = tmp_path / "a" / "runs"
    with pytest.raises(UserError, match=r"--name must stay inside --run_dir"):
        _create(parent, name=Path(name))
    with pytest.raises(UserError, match=r"--name must stay inside --run_dir"):
        RunDirectory.check(parent, Path(name))
    assert not list(tmp_path.iterdir())


def test_a_name_does_not_lead_into_another_run(tmp_path: Path):
    run = _create(tmp_path, name=Path("mine"))
    with pytest.raises(UserError, match=rf"lies in the run {run.path}"):
        _create(tmp_path, name=Path("mine/inner"))
    assert _create(tmp_path, name=Path("group/inner")).kind == "train_mask"


def test_a_run_folder_appears_with_all_its_files_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = _create(tmp_path, name=Path("whole"), files={"settings.json": {"lr": 0.1}})
    assert json.loads((run.path / "settings.json").read_text()) == {"lr": 0.1}
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "rename", killed)
        patch.setattr(run_folder.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            _create(tmp_path, name=Path("half"))
    assert not (tmp_path / "half").exists()
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert (left / "config.json").exists()
    half = _create(tmp_path, name=Path("half"))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "half"}
    assert half.environment["seed"] == 3


BUILDS = """
import os, sys
from pathlib import Path
from circuitcut.storage import run_folder

def waits(file, value):
    file.write_text("{}")
    os.utime(file.parent, (0, 0))  # it looks as if it were old
    print("builds", flush=True)
    sys.stdin.readline()

run_folder.write_json = waits
run_folder.build_folder(Path(sys.argv[1]) / "slow", {"config.json": {}})
"""


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the midst of making the run `slow`, for long."""
    program = [sys.executable, "-c", BUILDS, str(tmp_path)]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "builds\n"
        yield process
        process.kill()


def test_a_run_that_a_living_process_builds_is_left_alone(
    tmp_path: Path,
    builder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.2)
    with pytest.raises(UserError, match="another process has been making a run in"):
        _create(tmp_path, name=Path("other"))
    assert builder.communicate("go on\n")[0] == ""
    assert builder.returncode == 0
    _create(tmp_path, name=Path("other"))
    assert {path.name for path in tmp_path.iterdir()} == {"slow", "other"}


def test_what_a_killed_process_built_is_removed_at_once(
    tmp_path: Path, builder: subprocess.Popen[str]
):
    builder.kill()
    builder.wait()
    assert any(path.name.startswith(".slow.new.") for path in tmp_path.iterdir())
    _create(tmp_path, name=Path("other"))
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


PROGRAM = """
import sys
from pathlib import Path
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import source_commit
from circuitcut.storage.run_directory import RunDirectory

try:
    with RunDirectory.continued(Path(sys.argv[1]), "train_mask"):
        print("has it")
except UserError as error:
    print(error)
"""


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path):
    run = _create(tmp_path)

    def other() -> str:
        command = [sys.executable, "-c", PROGRAM, str(run.path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    with run.locked():
        assert "another process works on" in other()
        with pytest.raises(UserError, match="another process works on"), run.locked():
            pass
    assert other() == "has it\n"
    assert not (run.path / ".lock").exists()


def test_what_goes_on_is_an_unfinished_run_of_the_kind(tmp_path: Path):
    run = _create(tmp_path)
    with (
        pytest.raises(UserError, match="is a train_mask run; relearn continues"),
        RunDirectory.continued(run.path, "relearn"),
    ):
        pass
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / ".step-00000001.0123abcd.tmp").mkdir()
    (run.path / ".results.json.0123abcd.tmp").write_text("{")
    with RunDirectory.continued(run.path, "train_mask"):
        pass
    assert not [p for p in run.path.rglob(".*")]
    run.write_results({})
    for message, name in (
        ("its mask.json is gone", None),
        ("is finished", "mask.json"),
    ):
        if name:
            (run.path / name).write_text("{}")
        with (
            pytest.raises(UserError, match=message),
            RunDirectory.continued(run.path, "train_mask"),
        ):
            pass


def test_an_empty_config_is_refused(tmp_path: Path):
    run = _create(tmp_path)
    (run.path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not name the kind of its run"):
        _ = run.config


@pytest.mark.parametrize("name", ["results.json", "mask.json", "config.json"])
def test_other_files_do_not_take_the_names_of_a_run(name: str, tmp_path: Path):
    run = _create(tmp_path)
    with pytest.raises(UserError, match=r"--out must not have the name of a run's own"):
        check_not_of_a_run(run.path / name, "--out")
    check_not_of_a_run(run.path / "report.html", "--out")
    check_not_of_a_run(tmp_path / name, "--out")
