"""What a run was made with (settings, weights, data, code), and how two runs differ.

A provenance is a dict in JSON types: `settings` by name, `data_sha256`,
`weights_sha256`, `config_hash` and `code_version`. It stands in config.json, mask.json,
results.json and every checkpoint.
"""

import importlib.metadata
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from circuitcut.storage.atomic import jsonable
from circuitcut.storage.cache import content_hash

PROVENANCE = "provenance"
"""Its key in config.json, mask.json, results.json and in the state of a checkpoint."""
_MOST_SHOWN = 200
"""Characters of a value in a message."""
_ROOT = Path(__file__).parent.parent
_NAMES = {
    "data_sha256": "the data",
    "weights_sha256": "the base weights",
    "config_hash": "the model's configuration",
    "mask_sha256": "the mask",
    "superset_sha256": "the mask of --superset",
    "never_learned_sha256": "the base weights of never_learned",
}
"""Hashes that are compared, and what a message calls them."""


class Provenance(TypedDict, total=False):
    """Types of its entries in a file."""

    settings: dict[str, Any] | None
    data_sha256: str | None
    weights_sha256: str | None
    config_hash: str | None
    mask_sha256: str | None
    superset_sha256: str | None
    code_version: str | None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What decides the numbers and differs between two provenances, in words.

    Entries that one of them lacks are not compared: older versions of this program did
    not write all of them. Nor is the version of the code.
    """
    old, new = before.get("settings") or {}, now.get("settings") or {}
    found = setting_differences(old, new)
    for key, name in _NAMES.items():
        one, other = before.get(key), now.get(key)
        if one is not None and other is not None and one != other:
            found.append(f"{name} (SHA-256 {one[:8]} before, {other[:8]} now)")
    return found


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that both have, with different values, in words."""
    before, now = jsonable(before), jsonable(now)
    return [
        f"{name} ({_shown(before[name])} before, {_shown(now[name])} now)"
        for name in now
        if name in before and before[name] != now[name]
    ]


@cache
def code_version() -> str:
    """Version of this program: `0.1.0+git.<commit>`, or `+source.<hash>` of its files.

    The hash is that of all Python files; it stands where files differ from the commit,
    and outside git.
    """
    try:
        version = importlib.metadata.version("circuitcut")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    commit = source_commit()
    if commit is not None and "+" not in commit:
        return f"{version}+git.{commit[:12]}"
    return f"{version}+source.{_source_hash()[:12]}"


@cache
def source_commit() -> str | None:
    """Commit of this source tree, with `+changes` if files differ from it.

    None outside git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        )
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT.resolve():
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _source_hash() -> str:
    """Hash of the Python files of every package that lies beside this one."""
    packages = sorted(path.parent for path in _ROOT.glob("*/__init__.py"))
    files = [file for folder in packages for file in sorted(folder.rglob("*.py"))]
    parts = [part for file in files for part in (_name(file), file.read_bytes())]
    return content_hash(*parts)


def _name(file: Path) -> str:
    return file.relative_to(_ROOT).as_posix()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = " ".join(map(str, value)) or "nothing"
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
