"""GGUF files as ordinary checkpoints: converted once into the cache, in float32.

The weights of a quantized file are multiplied out: they keep the rounding error of the
few bits that they once had. Everything after that is an ordinary float32 model.
"""

import io
import logging
import shutil
import sys
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitcut.models.architectures import ARCHITECTURES
from circuitcut.models.quiet import quiet
from circuitcut.storage.atomic import (
    os_errors_as_user_errors,
    read_object,
    sync,
    temporary_name,
    write_json,
)
from circuitcut.storage.cache import cache_folder, content_hash
from circuitcut.storage.checksums import damaged_files, digests_of, file_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import check_regular
from circuitcut.storage.reading.typed_fields import Digest, check_type

SUFFIX = ".gguf"
_RECORD = "converted.json"
_FORMAT = "1"  # part of the folder's name: raise it when the conversion changes
_PLAIN = {"F32", "F16", "F64"}
"""Data types that need no dequantization."""
logger = logging.getLogger(__name__)


def converted(file: Path, digest: str | None = None) -> tuple[Path, str]:
    """The folder of the converted model, and the GGUF file's SHA-256 hex digest.

    The first call converts (about 20 s for 135 M parameters); later ones check the
    SHA-256 of the converted files, and convert again where one has changed.

    Args:
        digest: SHA-256 hex digest of the file, where it is known already.

    Raises:
        UserError: When the package `gguf` is missing, the file is corrupt, its family
            or its quantization is not supported, or the cache cannot be written.
    """
    digest = digest or file_digest(file)
    tag = content_hash(digest, _FORMAT, version("transformers"))[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{tag}"
    with os_errors_as_user_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir() and not _is_whole(folder):
            logger.warning("%s has changed: the model is converted again", folder)
            with os_errors_as_user_errors(folder):
                shutil.rmtree(folder)
        if not folder.is_dir():
            _check(file)
            _convert(file, digest, folder)
    return folder, digest


class _Record(TypedDict):
    files: dict[str, Digest]


def _is_whole(folder: Path) -> bool:
    """Whether every converted file has the SHA-256 that was recorded for it."""
    try:
        record = read_object(folder / _RECORD)
        check_type(record, _Record, str(folder / _RECORD))
    except UserError:
        return False
    return bool(record["files"]) and not damaged_files(folder, record["files"])


def _check(file: Path) -> None:
    """Refuse what cannot be converted, from the file's header alone.

    Raises:
        UserError: Naming the family or the quantization.
    """
    try:
        from gguf import GGUFReader
        from gguf.quants import _type_traits
    except ImportError as error:
        raise UserError(
            f"{file.name} needs the package gguf; run `pip install gguf`"
        ) from error
    check_regular(file)
    try:
        reader = GGUFReader(file)
        family = str(reader.fields["general.architecture"].contents())
        kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    except Exception as error:  # a corrupt header raises whatever its bytes lead to
        raise UserError(
            f"{file} is truncated or not a GGUF file ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:100]}); copy it again"
        ) from error
    families = sorted(set(_families()) & set(ARCHITECTURES))
    if family not in families:
        raise UserError(
            f"{file} holds a model of the family {family!r}; GGUF files are read of "
            f"{', '.join(families)}"
        )
    unknown = sorted(kinds - _PLAIN - {kind.name for kind in _type_traits})
    if unknown:
        raise UserError(
            f"{file} has weights in {', '.join(unknown)}, which the package gguf does "
            "not dequantize; take a file in F16, Q8_0 or Q4_K"
        )


def _families() -> list[str]:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return list(GGUF_SUPPORTED_ARCHITECTURES)


def _convert(file: Path, digest: str, folder: Path) -> None:
    """Write weights, tokenizer and record into `folder`, in one rename."""
    logger.info("converting %s once into %s", file.name, folder)
    try:
        model, tokenizer = _loaded(file)
    except Exception as error:  # a file of a supported family may still lack a key
        raise UserError(
            f"{file} cannot be converted ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}); copy it again, or take another"
        ) from error
    temporary = temporary_name(folder)
    with os_errors_as_user_errors(folder), quiet():
        temporary.mkdir(parents=True)
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            record = {
                "gguf": file.name,
                "gguf_sha256": digest,
                "files": digests_of(temporary),
            }
            write_json(temporary / _RECORD, record)
            for path in temporary.iterdir():
                sync(path)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _loaded(file: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer.

    The model is built anew: transformers does not save one that it calls quantized.
    """
    found = {"gguf_file": file.name, "local_files_only": True}
    # its bar of dequantized tensors cannot be switched off
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with quiet(), redirect_stderr(shown):
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, **found
        )
        settings = read.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        model = type(read)(type(read.config)(**settings))
        model.load_state_dict(read.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **found)
    return model, tokenizer
