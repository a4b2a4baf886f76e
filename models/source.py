"""Find a model's files and check its configuration, head and weight files."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from circuitcut.models.architectures import architecture_named
from circuitcut.models.builtin import BUILTIN
from circuitcut.models.gguf_files import SUFFIX as GGUF
from circuitcut.models.gguf_files import converted
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.packaged import PACKAGES, packaged_file
from circuitcut.storage.atomic import read_json, read_object, read_shapes
from circuitcut.storage.errors import UserError, one_line
from circuitcut.storage.hub_access import offline_without_answer
from circuitcut.storage.reading.typed_fields import Positive, check_entries

logger = logging.getLogger(__name__)
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HEADS = ("causal_lm", "masked_lm", "token_classification", "image_classification")


_TYPES: dict[str, Any] = {
    "model_type": str,
    "id2label": dict[str, str | int] | None,
    "labels": list[str] | None,
}
"""Of the entries of config.json that are read here; transformers checks its own."""
_TYPES_OF_MLP: dict[str, Any] = {"n_in": Positive, "intermediate_size": Positive}
_READ_BY_TRANSFORMERS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "vocab.json"),
)
_OF_WEIGHTS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Source:
    """The place that a model is loaded from."""

    name: str
    """Name given by the user."""
    path: str
    """Local folder, or the name on the hub."""
    is_local: bool
    revision: str | None
    """Revision on the hub (a commit once known), or the digest of packaged weights."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' `from_pretrained`."""
        if self.is_local:
            return {"local_files_only": True}
        return {"revision": self.revision}


def find_source(name: str, revision: str | None) -> Source:
    """The folder or hub name for `name`, without access to the network.

    A GGUF file, or a folder with one and no config.json, is converted into the cache.

    Raises:
        UserError: When `name` is a missing folder, a file, a built-in model (which has
            no files) or not of the form of a hub name.
    """
    path = Path(name).expanduser()
    is_local = name in PACKAGES or path.is_dir() or path.suffix == GGUF
    if is_local and revision is not None:
        raise UserError(
            f"argument revision is for hub models, got {revision!r} with the local "
            f"model {name!r}; leave it out"
        )
    if name in PACKAGES:
        file, digest = packaged_file(name)
        folder = converted(file, digest)[0] if file.suffix == GGUF else file.parent
        return Source(name, str(folder), True, f"sha256:{digest}")
    gguf = _gguf_of(path)
    if gguf is not None:
        folder, digest = converted(gguf)
        return Source(name, str(folder), True, f"sha256:{digest}")
    if path.is_dir():
        return Source(name, str(path), True, None)
    if name in BUILTIN:
        raise UserError(
            f"model {name!r} is built in and untrained; train it with "
            "scripts/train_base.py or name the folder of a trained one"
        )
    if path.is_file():
        raise UserError(f"model {name!r} is a file; name the folder that holds it")
    is_hub_name = _HUB_NAME.fullmatch(name) is not None
    # `runs/model` has the form of a hub name; if `runs` is a folder, it is a path.
    if not is_hub_name or (len(path.parts) > 1 and path.parent.is_dir()):
        raise UserError(
            f"model folder {name!r} does not exist; name a folder with config.json and "
            f"{WEIGHTS_FILE}, a GGUF file, a hub model such as openai-community/gpt2, "
            f"or one of {', '.join(PACKAGES)}"
        )
    return Source(name, name, False, revision)


def _gguf_of(path: Path) -> Path | None:
    """The GGUF file at `path`, or alone in the folder `path`; None if there is none."""
    if path.suffix == GGUF and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        raise UserError(
            f"model folder {str(path)!r} holds {len(files)} GGUF files; name one of "
            f"them: {', '.join(file.name for file in files)}"
        )
    return files[0] if files else None


def read_config(
    source: Source, *, check_type: Callable[[str], Any] = architecture_named
) -> tuple[Source, dict[str, Any]]:
    """The model's config.json, and the source with the commit that it came from.

    Args:
        check_type: Raises a UserError for a `model_type` that is not supported.

    Raises:
        UserError: When the file is missing or corrupt, the model is not on the hub, its
            architecture is not supported, or its weights are quantized.
    """
    if source.is_local:
        file = Path(source.path) / "config.json"
    else:
        file = _download_config(source)
        # The cache of the hub has one folder per commit.
        source = replace(source, revision=file.parent.name)
    config = read_json(file)
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file} has no model_type; it is not a model's configuration")
    check_entries(config, _TYPES, str(file))
    if config["model_type"] == MLP_TYPE:
        check_entries(config, _TYPES_OF_MLP, str(file))
    check_type(config["model_type"])
    if config.get("quantization_config"):
        raise UserError(
            f"{file} says that the weights are quantized; use the model in float32, "
            "float16 or bfloat16"
        )
    return source, config


def _download_config(source: Source) -> Path:
    logger.info("looking for model %s on the hub", source.name)
    is_offline = offline_without_answer()
    try:
        file = hf_hub_download(source.path, "config.json", revision=source.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = one_line(error)
        if is_offline:
            reason = "the hub does not answer, and it was not downloaded before"
        raise UserError(
            f"model {source.name!r} is neither built in "
            f"({', '.join(sorted(BUILTIN))}) nor packaged ({', '.join(PACKAGES)}), a "
            f"local folder or a reachable hub model ({reason}); check the name, the "
            "revision and the network"
        ) from error
    return Path(file)


def check_head(source: Source, config: dict[str, Any], head: str) -> None:
    """Check that a model of this configuration can have the head.

    Raises:
        UserError: When it cannot; the message names a kind of model that can.
    """
    if head not in _HEADS:
        raise UserError(
            f"argument head must be one of {', '.join(_HEADS)}, got {head!r}"
        )
    model_type = config["model_type"]
    if (head == "image_classification") != (model_type == MLP_TYPE):
        required = "an image model (mlp)" if model_type != MLP_TYPE else "a text model"
        raise UserError(
            f"model {source.name!r} ({model_type}) cannot do {head}; use {required}"
        )
    if head == "causal_lm" and not architecture_named(model_type).is_decoder:
        raise UserError(
            f"model {source.name!r} ({model_type}) is an encoder without a causal "
            "language model head; use a decoder such as openai-community/gpt2"
        )
    if head == "masked_lm" and architecture_named(model_type).is_decoder:
        raise UserError(
            f"model {source.name!r} ({model_type}) is a decoder without a masked "
            "language model head; use an encoder such as google-bert/bert-base-cased"
        )


def check_files(source: Source) -> dict[str, tuple[int, ...]]:
    """Check that the files of a local folder exist and are complete; shapes by name.

    Of the safetensors files only headers are read. The hub's client checks downloaded
    files, of which there are no shapes here.

    Raises:
        UserError: When a file is missing, truncated or not JSON; the message names it.
    """
    if not source.is_local:
        return {}
    folder = Path(source.path)
    for name in _READ_BY_TRANSFORMERS:
        if (folder / name).exists():
            read_object(folder / name)
    index = folder / INDEX_FILE
    if index.exists():
        entries = read_json(index)
        if not isinstance(entries, dict) or "weight_map" not in entries:
            raise UserError(f"{index} has no weight_map; restore it")
        check_entries(entries, {"weight_map": dict[str, str]}, str(index))
        files = sorted({folder / shard for shard in entries["weight_map"].values()})
    else:
        files = [folder / WEIGHTS_FILE]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} is missing; save the model with safetensors (pickled "
                "pytorch_model.bin files are not read)"
            )
        shapes |= read_shapes(file, dtypes_of_weights=_OF_WEIGHTS)
    return shapes


@contextmanager
def errors_of_config(source: Source) -> Iterator[None]:
    """Turn the errors to which wrong entries of config.json lead into a UserError.

    Transformers reads its entries while it builds a model, and raises whatever they
    lead to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"config.json of {source.name!r} cannot be used: {one_line(error)}"
        ) from error
