"""Mask files: the same bytes again, and every mismatch is named."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuitcut.masks.ablation import AblationValues, mean_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.weights_hash import weights_hash, weights_sha256
from circuitcut.storage.atomic import read_tensors, write_tensors
from circuitcut.storage.errors import UserError


@pytest.fixture
def model(make_model):
    return make_model("gpt2")


@pytest.fixture
def mask(model, make_inputs) -> FrozenMask:
    sites = sites_of(model, ["neurons", "heads"])
    inputs = make_inputs("gpt2")
    values = mean_values(model, sites, [(inputs, inputs["attention_mask"].bool())])
    provenance = {
        "model": "tiny",
        "config_hash": "c0ffee",
        "weights_hash": weights_hash(model),
        "task": "ioi",
        "seeds": [1, 2],
    }
    return FrozenMask.random(
        sites, values, n_ablated=9, seed=0, special_ids=(0, 1), provenance=provenance
    )


@pytest.fixture
def folder(tmp_path: Path, mask: FrozenMask) -> Path:
    mask.save(tmp_path)
    return tmp_path


def _edit(folder: Path, **entries: object) -> None:
    path = folder / "mask.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_saving_what_was_loaded_gives_the_same_bytes(folder, mask, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    loaded = FrozenMask.load(folder)
    loaded.save(again)
    for name in ("mask.json", "mask.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert loaded.overlap(mask) == 1.0
    assert (loaded.sites, loaded.special_ids) == (mask.sites, mask.special_ids)
    assert loaded.provenance == mask.provenance
    assert loaded.ablated.kind == mask.ablated.kind
    for name, value in mask.ablated.values.items():
        assert torch.equal(loaded.ablated.values[name], value)


@pytest.mark.parametrize("name", ["", "mask.json", "mask.safetensors"])
def test_a_mask_is_found_by_its_folder_or_either_file(folder, name, model, mask):
    loaded = FrozenMask.load(folder / name, model, config_hash="c0ffee")
    assert loaded.overlap(mask) == 1.0


@pytest.mark.parametrize("kind", ["zero", "counterfactual"])
def test_masks_without_stored_values_come_back_usable(
    kind, mask, model, tmp_path, make_inputs, logits_of
):
    values = zero_values(mask.sites) if kind == "zero" else AblationValues(kind, {})
    FrozenMask(mask.keep, mask.sites, values).save(tmp_path)
    loaded = FrozenMask.load(tmp_path, model)
    assert loaded.ablated.kind == kind
    if kind == "zero":
        with loaded.applied(model):
            assert torch.isfinite(logits_of(model, make_inputs("gpt2"))).all()


def test_other_weights_of_the_same_shape_need_a_flag(folder, model):
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 5] += 1e-3
    FrozenMask.load(folder, model, allow_other_weights=True)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    with pytest.raises(UserError, match="other weights") as caught:
        FrozenMask.load(folder, model, model_name="other")
    assert "model 'tiny', here 'other'" in str(caught.value)
    FrozenMask.load(folder, model, allow_other_weights=True, model_name="other")


def test_every_difference_to_the_model_is_named_at_once(folder, make_model):
    model = make_model("gpt2")
    model.transformer.h[0].mlp.c_proj = torch.nn.Linear(13, 16)
    del model.transformer.h[1].attn.c_proj
    with pytest.raises(UserError) as caught:
        FrozenMask.load(folder, model, model_name="gpt", config_hash="dead")
    told = str(caught.value)
    for part in (
        "model 'tiny', here 'gpt'",
        "site transformer.h.0.mlp.c_proj:neurons is 64 wide in the mask, 13 here",
        "site transformer.h.1.attn.c_proj:heads is not in the model",
        "config hash c0ffee, here dead",
        "other weights",
    ):
        assert part in told


def test_another_architecture_is_refused(folder, make_model):
    with pytest.raises(
        UserError, match=r"h\.0\.mlp\.c_proj:neurons is not in the model"
    ):
        FrozenMask.load(folder, make_model("llama"), allow_other_weights=True)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"format_version": 2}, "format version 2, this program reads version 1"),
        ({"polarity": "true ablates"}, "polarity 'true ablates'"),
        ({"ablation": "noise"}, "unknown ablation kind 'noise'"),
        ({"colour": "red"}, r"unknown \['colour'\]"),
    ],
)
def test_a_header_of_another_kind_is_refused(folder, entries, told):
    _edit(folder, **entries)
    with pytest.raises(UserError, match=told):
        FrozenMask.load(folder)


def test_damaged_files_are_named(folder, tmp_path):
    tensors = folder / "mask.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"mask\.safetensors is truncated"):
        FrozenMask.load(folder)
    tensors.unlink()
    with pytest.raises(UserError, match=r"cannot read .*mask\.safetensors"):
        FrozenMask.load(folder)
    (folder / "mask.json").write_text("{")
    with pytest.raises(UserError, match=r"mask\.json is not JSON"):
        FrozenMask.load(folder)
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        FrozenMask.load(tmp_path / "nowhere")


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    path = folder / "mask.safetensors"
    tensors = read_tensors(path)
    name = "transformer.h.0.mlp.c_proj:neurons"
    without = {key: value for key, value in tensors.items() if key != f"keep/{name}"}
    wrong = {
        "lacks the tensors": without,
        "has the tensors": tensors | {"keep/other:neurons": torch.ones(2).bool()},
        "must be 64 bools": tensors | {f"keep/{name}": torch.ones(63).bool()},
    }
    for told, contents in wrong.items():
        write_tensors(path, contents)
        with pytest.raises(UserError, match=told):
            FrozenMask.load(folder)


def test_the_weights_hash_sees_values_shapes_and_names_and_nothing_else(make_model):
    model = make_model("bert")
    first = weights_hash(model)
    assert first == weights_hash(make_model("bert"))
    model.requires_grad_(True).train()
    assert first == weights_hash(model)
    with torch.no_grad():
        model.classifier.bias[2] += 1e-6
    assert first != weights_hash(model)
    assert first != weights_hash(make_model("gpt2"))


def _without_checksums(folder: Path) -> None:
    """As a version of this program before December 2026 wrote the mask."""
    entries = json.loads((folder / "mask.json").read_text())
    for key in ("sha256", "header_sha256"):
        del entries[key]
    (folder / "mask.json").write_text(json.dumps(entries))


def _flip(folder: Path) -> None:
    """Keep three units that are ablated, and ablate three that are kept."""
    tensors = read_tensors(folder / "mask.safetensors")
    keep = tensors["keep/transformer.h.0.mlp.c_proj:neurons"]
    kept, ablated = keep.nonzero().flatten(), (~keep).nonzero().flatten()
    keep[kept[:3]], keep[ablated[:3]] = False, True
    write_tensors(folder / "mask.safetensors", tensors)


def _other_mask(folder: Path, mask: FrozenMask) -> None:
    mask.random_like(5).save(folder / "other")
    (folder / "other" / "mask.safetensors").replace(folder / "mask.safetensors")


def test_a_flipped_unit_and_another_masks_tensors_are_refused(folder, mask):
    whole = (folder / "mask.safetensors").read_bytes()
    for damage in (_flip, lambda f: _other_mask(f, mask)):
        damage(folder)
        with pytest.raises(UserError, match=r"mask\.safetensors"):
            FrozenMask.load(folder)
        (folder / "mask.safetensors").write_bytes(whole)
    assert FrozenMask.load(folder).overlap(mask) == 1.0


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"n_ablated": 5}, "ablates 9 of 136 units, but mask.json says 5 of 136"),
        ({"n_units": 5}, "ablates 9 of 136 units, but mask.json says 9 of 5"),
        ({"ablation": "zero"}, "has the tensors .* with ablation zero does not name"),
        ({"ablation": "counterfactual"}, "with ablation counterfactual does not name"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(folder, entries, told, old):
    if old:
        _without_checksums(folder)
    _edit(folder, **entries)
    with pytest.raises(UserError, match=told):
        FrozenMask.load(folder)


@pytest.mark.parametrize("old", [False, True])
def test_a_bool_that_is_neither_0_nor_1_is_refused(folder, old):
    if old:
        _without_checksums(folder)
    path = folder / "mask.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start].decode())
    at = header["keep/transformer.h.0.mlp.c_proj:neurons"]["data_offsets"][0]
    content[start + at + 1] = 2
    path.write_bytes(content)
    with pytest.raises(UserError, match="neither 0 nor 1"):
        FrozenMask.load(folder)


def test_a_changed_entry_of_the_header_is_refused(folder):
    provenance = json.loads((folder / "mask.json").read_text())["provenance"]
    _edit(folder, provenance=provenance | {"task": "mnist"})
    with pytest.raises(UserError, match=r"mask\.json was changed since it was written"):
        FrozenMask.load(folder)


def test_a_mask_without_checksums_is_read_and_said_to_be_unchecked(
    folder, mask, caplog: pytest.LogCaptureFixture
):
    _without_checksums(folder)
    with caplog.at_level(logging.INFO):
        assert FrozenMask.load(folder).overlap(mask) == 1.0
    assert "mask.json has no checksum of mask.safetensors" in caplog.text


def test_the_hash_of_all_weights_sees_every_value(model, mask, tmp_path):
    provenance = {"weights_sha256": weights_sha256(model)}
    replace(mask, provenance=provenance).save(tmp_path)
    FrozenMask.load(tmp_path, model)
    with torch.no_grad():  # no value of the sample
        model.transformer.h[1].mlp.c_fc.weight[3, 5] += 1e-3
    with pytest.raises(UserError, match="other weights"):
        FrozenMask.load(tmp_path, model)


_SITE = {"kind": "neurons", "module": "h.0", "layer": 0, "n_units": 3, "unit_size": 1}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"format_version": True}, "format version true, this program reads version 1"),
        ({"sites": {}}, "entry sites must be a list, got an object"),
        ({"sites": [[]]}, r"entry sites\[0\] must be an object, got \[\]"),
        ({"sites": [_SITE | {"n_units": "3"}]}, r"n_units must be a whole .* got '3'"),
        ({"sites": [_SITE | {"n_units": -3}]}, r"sites\[0\].n_units .* got -3"),
        ({"sites": [_SITE | {"kind": "nerves"}]}, r"sites\[0\].kind must be 'neurons'"),
        ({"sites": [_SITE | {"axis": 1}]}, r"with no entry but graph, kind, .*'axis'"),
        ({"sites": [_SITE, _SITE]}, "names the site h.0:neurons twice"),
        ({"sites": [_SITE | {"kind": "edges"}]}, "a site of edges must have a graph"),
        ({"special_ids": [0.5]}, r"special_ids\[0\] must be a whole number"),
        ({"provenance": []}, "provenance: must be an object"),
        ({"provenance": {"task": 3}}, "entry task must be a text or null, got 3"),
        ({"provenance": {"settings": []}}, "settings must be an object or null"),
        (
            {"n_ablated": None},
            "n_ablated must be a whole number of 64 bits of at least",
        ),
    ],
)
def test_an_entry_of_a_wrong_type_is_named(folder, entries, told):
    _without_checksums(folder)
    _edit(folder, **entries)
    with pytest.raises(UserError, match=told):
        FrozenMask.load(folder)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.ones(63), r"of shape \(64,\), got torch.float32 of shape \(63,\)"),
        (torch.ones(64).long(), r"must be floating-point .* got torch.int64"),
        (torch.full((64,), float("nan")), "holds NaN or infinity"),
    ],
)
def test_ablation_values_that_cannot_stand_in_are_named(folder, value, told):
    _without_checksums(folder)
    path = folder / "mask.safetensors"
    name = "value/transformer.h.0.mlp.c_proj:neurons"
    write_tensors(path, read_tensors(path) | {name: value})
    with pytest.raises(UserError, match=told):
        FrozenMask.load(folder)
