"""Save a loaded model as a standard checkpoint folder, complete or not at all."""

import dataclasses
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from circuitcut.models.loaded import LoadedModel
from circuitcut.models.mlp import Mlp
from circuitcut.models.quiet import quiet
from circuitcut.models.source import WEIGHTS_FILE
from circuitcut.models.token_head import TokenClassifier
from circuitcut.storage.atomic import (
    os_errors_as_user_errors,
    sync,
    temporary_name,
    write_json,
    write_tensors,
)
from circuitcut.storage.errors import UserError

TOKEN_HEAD_FILE = "token_head.safetensors"


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write weights, configuration and tokenizer to a new folder.

    `load_model(str(folder), ...)` gives the same logits; so does `from_pretrained` of
    transformers if the head is a class of transformers. The folder gets its name only
    when it is complete.

    Raises:
        UserError: When the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder")
    temporary = temporary_name(folder)
    with os_errors_as_user_errors(folder), quiet():
        temporary.mkdir(parents=True)
        try:
            _write(loaded, temporary)
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            os.replace(temporary, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(loaded: LoadedModel, folder: Path) -> None:
    model = loaded.model
    if isinstance(model, Mlp):
        write_json(folder / "config.json", dataclasses.asdict(model.config))
        write_tensors(folder / WEIGHTS_FILE, model.state_dict())
    elif isinstance(model, TokenClassifier):
        model.backbone.save_pretrained(folder)
        write_tensors(folder / TOKEN_HEAD_FILE, model.classifier.state_dict())
    else:
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(folder)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(folder)
