"""Adapters under a held cut: what is cut stays cut, and nothing else is copied."""

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import circuitcut.relearning.protocol as protocol
from circuitcut.masks.ablation import mean_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.loading import LoadedModel
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.finetune import held_model
from circuitcut.relearning.lora import (
    adapted_modules,
    adapter_change,
    add_adapters_,
    factor,
    has_adapter,
)
from circuitcut.relearning.lora_rank import lora_rank
from circuitcut.relearning.protocol import base_copy, relearn, run_condition
from circuitcut.relearning.redistribution import weight_distance
from circuitcut.relearning.study import Findings, RelearnSettings, Study
from circuitcut.relearning.trained import trained_parameters
from circuitcut.storage.atomic import read_tensors
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task
from circuitcut.training.fit_arguments import Checkpoints
from circuitcut.training.fit_settings import FitSettings
from tests.models.tiny import D_MLP, D_MODEL, N_LAYERS, tiny_inputs, tiny_model

RANK = 3
STEPS = FitSettings(6, 0.05, "adamw", weight_decay=0.5, clip_norm=1.0)
HEADS = {"gpt2": "causal_lm", "llama": "causal_lm", "bert": "token_classification"}
CUT = Condition("cut", "lasting", 0)


def mask_of(model: Any, units: list[str], ablation: str = "zero") -> FrozenMask:
    """Every third unit ablated."""
    sites = sites_of(model, units)
    values = zero_values(sites)
    if ablation == "mean":
        inputs = tiny_inputs(model)
        where = inputs["attention_mask"].bool()
        values = mean_values(model, sites, [(inputs, where)])
    keep = {site.name: torch.arange(site.n_units) % 3 > 0 for site in sites}
    return FrozenMask(keep, sites, values)


def adapted(kind: str, units: list[str], ablation: str = "zero") -> Any:
    """A base model without gradients, its adapted copy and its mask."""
    base = tiny_model(kind, HEADS[kind]).requires_grad_(False)
    mask = mask_of(base, units, ablation)
    model = base_copy(base, "lora", is_written=False)
    add_adapters_(model, mask, rank=RANK, seed=0, held=mask)
    return base, model, mask


def loss(model: nn.Module, step: int) -> Tensor:
    del step
    return (model(**tiny_inputs(model)).logits - 1).square().mean()


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("units", [["neurons"], ["heads"], ["neurons", "heads"]])
@pytest.mark.parametrize("kind", HEADS)
def test_weights_behind_ablated_units_do_not_change_and_others_do(
    kind: str, units: list[str], ablation: str
):
    base, model, mask = adapted(kind, units, ablation)
    before = deepcopy(base.state_dict())
    inputs = tiny_inputs(base)
    with mask.applied(base):
        expected = base(**inputs).logits
    with held_model(model, mask, "lora") as tuned:
        assert torch.equal(model(**inputs).logits, expected)  # B is 0
        tuned.fit_(loss, STEPS)
        model.eval()
        trained = model(**inputs).logits
    assert (trained - expected).abs().max() > 0.1
    for site in mask.sites:
        module = model.get_submodule(site.module)
        change = adapter_change(module)
        change = change if isinstance(module.base_layer, Conv1D) else change.T
        ablated = ~mask.keep[site.name].repeat_interleave(site.unit_size)
        assert (change[ablated] == 0).all()
        assert (change[~ablated].abs().amax(1) > 0).all()
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), name
    # oracle: the changes written into a plain copy, under the same mask
    merged = deepcopy(base)
    for path in adapted_modules(base, mask):
        weight = merged.get_submodule(path).weight
        weight.data += adapter_change(model.get_submodule(path)).float()
    with mask.applied(merged):
        torch.testing.assert_close(
            merged(**inputs).logits, trained, rtol=1e-4, atol=1e-4
        )
    assert weight_distance(model, base) == pytest.approx(
        weight_distance(merged, base), rel=1e-4
    )


def test_adapters_alone_are_new_trained_and_in_the_optimiser(tmp_path: Path):
    base, model, mask = adapted("llama", ["neurons"])
    attention = [(D_MODEL, D_MODEL), (D_MODEL, D_MODEL // 2)] * 2
    mlp = [(D_MODEL, D_MLP), (D_MODEL, D_MLP), (D_MLP, D_MODEL)]
    expected = N_LAYERS * sum(RANK * (a + b) for a, b in attention + mlp)
    own = {id(p) for p in base.parameters()}
    new = [p for p in model.parameters() if id(p) not in own]
    assert sum(p.numel() for p in new) == expected
    with held_model(model, mask, "lora") as tuned:
        assert sum(p.numel() for p in tuned.parameters.values()) == expected
        assert not any(p.requires_grad for p in base.parameters())
        tuned.fit_(
            loss,
            replace(STEPS, checkpoint_every=3, n_steps=3),
            checkpoints=Checkpoints(tmp_path, resume=False),
        )
    (file,) = tmp_path.rglob("*.safetensors")
    saved = sum(tensor.numel() for tensor in read_tensors(file).values())
    n_tensors = len(new)
    assert 3 * expected <= saved <= 3 * expected + 3 * n_tensors  # with two moments


def test_modules_whose_own_weights_are_cut_get_no_adapter():
    base = tiny_model("gpt2", "causal_lm").requires_grad_(False)
    whole = sites_of(base, ["weights"])
    mask = mask_of(base, ["weights"])
    keep = {whole[0].name: mask.keep[whole[0].name]}
    first = FrozenMask(keep, whole[:1], zero_values(whole[:1]))
    paths = adapted_modules(base, first)
    assert whole[0].module not in paths
    assert len(paths) == 4 * N_LAYERS - 1
    with pytest.raises(UserError, match="no linear module"):
        adapted_modules(base, mask)


def test_what_does_not_train_is_shared_with_the_base_model():
    base = tiny_model("llama", "causal_lm").requires_grad_(False)
    copy = base_copy(base, "mlp", is_written=False)
    own = {id(p) for p in base.parameters()}
    new = {name for name, p in copy.named_parameters() if id(p) not in own}
    assert new == set(trained_parameters(base, "mlp"))
    whole = base_copy(base, "mlp", is_written=True)
    assert not own & {id(p) for p in whole.parameters()}


@pytest.mark.parametrize("trained", ["all", "head", r"^blocks\."])
def test_sharing_what_does_not_train_changes_no_number(
    trained: str,
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    settings = RelearnSettings(n_steps=5, batch_size=6, lr=0.05, trained=trained)
    study = Study(task, loaded, mask, settings)
    shared = run_condition(study, CUT, tmp_path / "shared")
    monkeypatch.setattr(protocol, "base_copy", lambda base, *_, **__: deepcopy(base))
    copied = run_condition(study, CUT, tmp_path / "copied")
    assert [m.row() for m in shared.measurements] == [
        m.row() for m in copied.measurements
    ]
    assert shared.measurements[-1].distance > 0


def test_bfloat16_weights_get_float32_adapters_from_the_seed():
    base = tiny_model("llama", "causal_lm").bfloat16().requires_grad_(False)
    mask = mask_of(base, ["heads"])
    state = torch.get_rng_state()
    models = [base_copy(base, "lora", is_written=False) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_adapters_(model, mask, rank=RANK, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    path = adapted_modules(base, mask)[0]
    a, again, other = (factor(model.get_submodule(path), "A") for model in models)
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert a.dtype == factor(models[0].get_submodule(path), "B").dtype == torch.float32
    assert models[0](**tiny_inputs(base)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("holding", ["lasting", "one_shot"])
def test_a_resumed_condition_has_the_numbers_of_an_uninterrupted_one(
    task: Task, loaded: LoadedModel, mask: FrozenMask, holding: str, tmp_path: Path
):
    settings = RelearnSettings(
        n_steps=6, batch_size=6, lr=0.05, n_evaluations=2, trained="lora:2"
    )
    settings = replace(settings, checkpoint_every=2)
    study = Study(task, loaded, mask, settings)
    condition = replace(CUT, holding=holding)
    models: list[nn.Module] = []

    def at_end(*args: Any) -> dict[str, Any]:
        models.append(args[1])
        return {}

    whole = run_condition(study, condition, tmp_path / "a", findings=Findings(at_end))

    def stop(condition: Condition, step: int, numbers: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_condition(study, condition, tmp_path / "b", findings=Findings(on_log=stop))
    resumed = run_condition(
        study, condition, tmp_path / "b", resume=True, findings=Findings(at_end)
    )
    assert [m.row() for m in whole.measurements] == [
        m.row() for m in resumed.measurements
    ]
    assert whole.measurements[-1].distance > whole.measurements[0].distance
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(has_adapter(module) for module in loaded.model.modules())


@pytest.mark.parametrize(
    ("trained", "message"),
    [("lora:0", "must be a whole number from 1"), ("lora", "has no adapters")],
)
def test_wrong_ways_to_ask_for_adapters(trained: str, message: str):
    model = tiny_model("gpt2", "causal_lm")
    with pytest.raises(UserError, match=message):
        trained_parameters(model, trained)
    assert (lora_rank("lora"), lora_rank("lora:4"), lora_rank("mlp")) == (8, 4, None)


def test_edges_and_a_missing_package_are_refused_before_the_first_step(
    task: Task,
    loaded: LoadedModel,
    mask: FrozenMask,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    decoder = tiny_model("gpt2", "causal_lm")
    edges = mask_of(decoder, ["edges"])
    with pytest.raises(UserError, match="mask on edges"):
        adapted_modules(decoder, edges)
    study = Study(task, loaded, mask, RelearnSettings(trained="lora"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'circuitcut\[lora\]'"):
        relearn(study, [CUT], tmp_path)
    assert not list(tmp_path.iterdir())
