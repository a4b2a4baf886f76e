"""Checkpoints: shards, revisions, hub files, and every bad file named in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from circuitcut.models import source
from circuitcut.models.mlp import MLP_TYPE
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes import checkpoint
from circuitcut.weight_classes.checkpoint import open_checkpoint
from circuitcut.weight_classes.mlp_weights import mlps_of_layer
from tests.models.tiny import tiny_model
from tests.weight_classes.tiny import saved_model

MLP_OF_1 = "model.layers.1.mlp.up_proj.weight"


def _sharded(folder: Path) -> Path:
    """The same weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in shards.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    weight_map = {name: file for file, chosen in shards.items() for name in chosen}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


def _read_all(folder: Path) -> None:
    for layer in (0, 1):
        list(mlps_of_layer(open_checkpoint(str(folder)), layer))


def _edit(folder: Path, **entries: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_shards_give_what_one_file_gives(tmp_path: Path):
    saved_model(tmp_path / "one", "mistral")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    whole = open_checkpoint(str(tmp_path / "one"))
    shards = open_checkpoint(str(_sharded(tmp_path / "two")))
    assert shards.names == whole.names
    for layer in (0, 1):
        (one,), (two,) = (mlps_of_layer(c, layer) for c in (whole, shards))
        assert torch.equal(one.w_in, two.w_in)
        assert torch.equal(one.w_out, two.w_out)


def test_a_local_revision_is_a_folder_in_the_model(tmp_path: Path):
    for seed in (0, 1):
        saved_model(tmp_path / f"step{seed}", "llama", seed=seed)
    first, last = (open_checkpoint(str(tmp_path), f"step{seed}") for seed in (0, 1))
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(first.read(name), last.read(name))
    with pytest.raises(UserError, match=r"step7.* must be a folder in it"):
        open_checkpoint(str(tmp_path), "step7")


def test_files_of_a_hub_model_are_fetched_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub = tmp_path / "commit"
    saved_model(hub, "qwen2")
    asked: list[tuple[str, str | None]] = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        assert name == "owner/tiny"
        asked.append((file, revision))
        if not (hub / file).exists():
            raise EntryNotFoundError(file)
        return str(hub / file)

    monkeypatch.setattr(source, "hf_hub_download", download)
    monkeypatch.setattr(checkpoint, "hf_hub_download", download)
    found = open_checkpoint("owner/tiny", "v1")
    assert found.commit == "commit"  # the folder of the hub's cache is the commit
    assert asked[0] == ("config.json", "v1")
    assert {revision for _, revision in asked[1:]} == {"commit"}
    _sharded(hub)
    asked.clear()
    found = open_checkpoint("owner/tiny", "v1")
    assert [file for file, _ in asked] == [
        "config.json",
        "model.safetensors.index.json",
    ]
    found.read("layers.0.mlp.up_proj.weight")
    assert len(asked) == 3  # one shard of the two


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path):
    saved_model(tmp_path, "llama")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as refusal:
            _read_all(tmp_path)
        assert len(str(refusal.value).splitlines()) == 1

    _edit(tmp_path, model_type="mamba")
    refused("'mamba' cannot be classified.* use one of .*llama")
    _edit(tmp_path, model_type="gpt2")
    refused(r"no tensor h.0.mlp.c_fc.weight, which a model of type gpt2 has")
    _edit(tmp_path, model_type="llama", quantization_config={"bits": 4})
    refused("quantized")
    _edit(tmp_path, quantization_config=None)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != MLP_OF_1}, file)
    refused("no tensor layers.1.mlp.up_proj.weight")
    save_file(tensors | {MLP_OF_1: torch.zeros(3, 32)}, file)
    refused(r"\(3, 32\) and .* not those of one MLP")
    save_file({k: v for k, v in tensors.items() if "mlp" not in k}, file)
    refused("no tensor layers.0.mlp.up_proj.weight")  # a model without MLPs
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:1000])
    refused("truncated or not a safetensors file")
    file.unlink()
    refused("model.safetensors is missing")


def test_a_missing_shard_is_named_before_anything_is_read(tmp_path: Path):
    saved_model(tmp_path, "llama")
    (_sharded(tmp_path) / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b.safetensors is missing"):
        open_checkpoint(str(tmp_path))


def test_two_language_models_in_one_file_are_refused(tmp_path: Path):
    saved_model(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {f"second.{k}": v.clone() for k, v in tensors.items()}, file)
    with pytest.raises(UserError, match=r"got 2: model\.layers\.0"):
        _ = open_checkpoint(str(tmp_path)).prefix


def test_a_model_without_a_table_line_is_refused():
    with pytest.raises(UserError, match=f"'{MLP_TYPE}' cannot be classified"):
        checkpoint.checkpoint_of(tiny_model(MLP_TYPE), "digits")
