"""A full disk: one line with the command that goes on, which ends the run as usual."""

import errno
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

from circuitcut.scripts import relearn, report, train_mask
from circuitcut.storage.checkpoints import latest_step
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_config, run_script
from tests.scripts.conftest import FAST
from tests.scripts.test_bad_input import refused
from tests.scripts.test_stopped import litter

MASK = ["--n_steps", "40", "--n_ablated", "40", "--n_random", "0"]
MASK += ["--attribution", "none", "--checkpoint_every", "10"]
RELEARN = ["--n_steps", "4", "--limits", "4", "--seeds", "0", "--n_evaluations", "2"]
RELEARN += ["--device", "cpu", "--conditions", "cut", "uncut"]
RELEARN += ["--no_probe", "--no_redistribute"]
Message = tuple[str, Path]


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is on a disk with room."""
    parent = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(cache))
        flags = [*FAST, *MASK, "--run_dir", str(parent)]
        return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Writing more into one file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_room_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when this file is written."""
    write, save = Path.write_bytes, safetensors.torch.save_file

    def write_bytes(path: Path, data: Any) -> int:
        if path.name.startswith(f".{name}."):
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    def save_file(tensors: Any, path: Path, **settings: Any) -> None:
        if path.name.startswith(f".{name}."):
            reason = "No space left on device (os error 28)"
            raise SafetensorError(f"Error while serializing: I/O error: {reason}")
        save(tensors, path, **settings)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


def continued(script: ModuleType, config: Any, message: str, parent: Path) -> Path:
    """The run that the message tells how to continue, finished."""
    (run,) = parent.iterdir()
    _, _, command = message.partition("; then continue with ")
    name = f"scripts/{script.__name__.split('.')[-1]}.py"
    assert shlex.split(command)[-3:] == [name, "--resume", str(run)], message
    assert litter(run) == []
    assert script.main(parse_config(config, ["--resume", str(run)])) == run
    assert RunDirectory.open(run).is_finished
    return run


@pytest.mark.parametrize("n_bytes", [7_000, 60_000])
def test_a_limit_on_files_ends_a_run_in_one_line_and_it_goes_on_to_the_same_mask(
    n_bytes: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    flags = [*FAST, *MASK, "--run_dir", str(tmp_path)]
    config = train_mask.TrainMaskConfig
    with files_of_at_most(n_bytes):
        message = refused(train_mask, config, flags, monkeypatch, capsys)
    assert "File too large" in message
    assert "ulimit -f" in message
    (run,) = tmp_path.iterdir()
    # a checkpoint has 52 kB; TensorBoard's file is the first of 60 kB
    assert (latest_step(run / "checkpoints") > 0) == (n_bytes == 60_000)
    continued(train_mask, config, message, tmp_path)
    for name in ("mask.safetensors", "ranking.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tensors.safetensors", "state.json", "mask.safetensors", "results.json"]
)
def test_a_file_without_room_is_named_and_the_run_goes_on_to_the_same_mask(
    name: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    flags = [*FAST, *MASK, "--run_dir", str(tmp_path)]
    config = train_mask.TrainMaskConfig
    with monkeypatch.context() as patch:
        no_room_for(name, patch)
        message = refused(train_mask, config, flags, patch, capsys)
    assert name in message
    assert "No space left on device" in message
    assert "; free some disk space; then continue with " in message
    run = continued(train_mask, config, message, tmp_path)
    mask = "mask.safetensors"
    assert (run / mask).read_bytes() == (whole / mask).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["condition.json", "counts-00000004.safetensors"])
def test_relearning_goes_on_after_a_full_disk(
    name: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    flags = ["--mask", str(whole), *RELEARN, "--run_dir", str(tmp_path)]
    config = relearn.RelearnConfig
    with monkeypatch.context() as patch:
        no_room_for(name, patch)
        message = refused(relearn, config, flags, patch, capsys)
    assert name in message
    continued(relearn, config, message, tmp_path)


def test_a_report_without_room_leaves_the_earlier_one(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = shutil.copytree(whole, tmp_path / "run")
    out = report.main(report.ReportConfig(runs=[run]))
    before = out.read_bytes()
    no_room_for("report.html", monkeypatch)
    flags = ["--runs", str(run)]
    message = refused(report, report.ReportConfig, flags, monkeypatch, capsys)
    assert f"cannot write {out}: No space left on device" in message
    assert out.read_bytes() == before
    assert litter(run) == []


def test_a_full_disk_that_no_reader_expects_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def main(config: report.ReportConfig) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    main.__module__ = report.__name__
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        run_script(main, report.ReportConfig)
    assert caught.value.code == 2
    line = "script: error: cannot write: No space left on device; free some disk space"
    assert capsys.readouterr().err.strip() == line
