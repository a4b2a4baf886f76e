"""A checkpoint's tensors by name, read from its safetensors files one at a time."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import Tensor, nn

from circuitcut.models.source import (
    INDEX_FILE,
    WEIGHTS_FILE,
    Source,
    find_source,
    read_config,
)
from circuitcut.storage.atomic import open_tensors, read_object
from circuitcut.storage.errors import UserError, one_line
from circuitcut.weight_classes.layouts import Layout, layout_named

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors, each read when it is asked for."""

    name: str
    """Name of the model, as the user gave it."""
    source: Source | None
    """Where its files are; None: the weights are those of a loaded model."""
    config: Mapping[str, Any]
    """Entries of config.json."""
    names: frozenset[str]
    """Of all tensors."""
    read_full: Callable[[str], Tensor]
    """The tensor of a name with its prefix, in the data type of the file."""
    shape_full: Callable[[str], tuple[int, ...]]
    """Its shape, from the file's header alone."""

    @property
    def commit(self) -> str | None:
        """Commit on the hub, or `sha256:...` of packaged weights."""
        return self.source.revision if self.source else None

    @property
    def layout(self) -> Layout:
        """Where this family keeps its MLPs."""
        return layout_named(self.config["model_type"])

    @cached_property
    def prefix(self) -> str:
        """What stands before the layout's names here: nothing, `model.`, ...

        Raises:
            UserError: When no tensor is that of an MLP in layer 0, or several are.
        """
        first = [mlp.w_in.format(layer=0, expert=0) for mlp in self.layout.mlps]
        for name in first:
            found = sorted(n for n in self.names if n == name or n.endswith(f".{name}"))
            if len(found) > 1:
                raise UserError(
                    f"the weights of {self.name!r} must have one tensor {name}, got "
                    f"{len(found)}: {found[0]} and {found[1]}; save the language model "
                    "alone"
                )
            if found:
                return found[0].removesuffix(name)
        raise self.lacks(first[0])

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name of the layout."""
        return self.prefix + name in self.names

    def read(self, name: str) -> Tensor:
        """The tensor of a name of the layout, in the data type of the file.

        Raises:
            UserError: When there is none.
        """
        return self.read_full(self._full(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the layout, without reading it.

        Raises:
            UserError: When there is none.
        """
        return self.shape_full(self._full(name))

    def _full(self, name: str) -> str:
        if not self.has(name):
            raise self.lacks(name)
        return self.prefix + name

    def lacks(self, name: str) -> UserError:
        """What to raise where a tensor is missing."""
        return UserError(
            f"the weights of {self.name!r} have no tensor {name}, which a model of "
            f"type {self.config['model_type']} has; copy all of its files again, or "
            "correct its config.json"
        )


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint of a model; of the weights only headers are read.

    Args:
        name: Hub name, local folder, GGUF file (converted into the cache once), or a
            packaged model. Files of a hub model are downloaded when they are needed.
        revision: Branch, tag or commit on the hub. Of a local folder: the name of a
            folder in it, which holds that checkpoint.

    Raises:
        UserError: When the model is not found, its family is unknown, or a file is
            missing or truncated.
    """
    path = Path(name).expanduser()
    if revision is not None and path.is_dir():
        folder = path / revision
        if not folder.is_dir():
            raise UserError(
                f"revision {revision!r} of the local model {name!r} must be a folder "
                f"in it, got {folder}, which does not exist"
            )
        source = find_source(str(folder), None)
    else:
        source = find_source(name, revision)
    source, config = read_config(source, check_type=layout_named)
    files = _files_of(source)

    def read(tensor: str) -> Tensor:
        with open_tensors(files[tensor]()) as tensors:
            return tensors.get_tensor(tensor)

    def shape(tensor: str) -> tuple[int, ...]:
        with open_tensors(files[tensor]()) as tensors:
            return tuple(tensors.get_slice(tensor).get_shape())

    return Checkpoint(name, source, config, frozenset(files), read, shape)


def checkpoint_of(model: nn.Module, name: str) -> Checkpoint:
    """A loaded model's own parameters as a checkpoint.

    Raises:
        UserError: When the family is unknown.
    """
    config: Any = model.config
    entries = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    layout_named(entries["model_type"])
    tensors = model.state_dict()

    def shape(tensor: str) -> tuple[int, ...]:
        return tuple(tensors[tensor].shape)

    names = frozenset(tensors)
    return Checkpoint(name, None, entries, names, tensors.__getitem__, shape)


def _files_of(source: Source) -> dict[str, Callable[[], Path]]:
    """Tensor name -> a function that gives its file, downloaded if it must be."""

    def file_named(file: str) -> Callable[[], Path]:
        return lambda: _file(source, file)

    index = _index(source)
    if index is None:
        with open_tensors(_file(source, WEIGHTS_FILE)) as tensors:
            return dict.fromkeys(tensors.keys(), file_named(WEIGHTS_FILE))
    entries = read_object(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{index} has no weight_map; restore it")
    if source.is_local:
        for shard in sorted(set(entries.values())):
            with open_tensors(_file(source, shard)):
                pass
    return {tensor: file_named(shard) for tensor, shard in entries.items()}


def _index(source: Source) -> Path | None:
    """The list of the shards; None: the weights are in one file."""
    if source.is_local:
        file = Path(source.path) / INDEX_FILE
        return file if file.exists() else None
    try:
        return Path(hf_hub_download(source.path, INDEX_FILE, revision=source.revision))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _unreachable(source, INDEX_FILE, error) from error


def _file(source: Source, file: str) -> Path:
    """A weight file on this machine.

    Raises:
        UserError: When it is missing, or cannot be downloaded.
    """
    if source.is_local:
        path = Path(source.path) / file
        if not path.is_file():
            raise UserError(
                f"{path} is missing; copy it again, or save the model with "
                "safetensors (pickled pytorch_model.bin files are not read)"
            )
        return path
    _log.info("%s of %s", file, source.name)
    try:
        return Path(hf_hub_download(source.path, file, revision=source.revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _unreachable(source, file, error) from error


def _unreachable(source: Source, file: str, error: Exception) -> UserError:
    return UserError(
        f"{file} of {source.name!r} cannot be downloaded ({one_line(error)}); check "
        "the revision and the network, or name a model with safetensors files"
    )
