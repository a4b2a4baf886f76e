"""Commands to paste: as the running program was started."""

import sys
from pathlib import Path

import pytest

from circuitcut.storage.command_lines import command


def test_the_next_command_is_given_in_the_way_of_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("python", "circuitcut"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)

    def next_of(program: str) -> str:
        monkeypatch.setattr(sys, "argv", [program])
        return command("export_mask", {"mask": "x"})

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert next_of("bin/circuitcut train-mask") == "circuitcut export-mask --mask x"
    assert next_of("scripts/relearn.py") == "python scripts/export_mask.py --mask x"
    monkeypatch.setenv("PATH", "/usr/bin")  # the environment is not activated
    assert next_of("bin/circuitcut train-mask") == "bin/circuitcut export-mask --mask x"
    found = next_of("/code/scripts/relearn.py")
    assert found == "bin/python /code/scripts/export_mask.py --mask x"
